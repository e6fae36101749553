"""``indis fit``: tune a method's sampler on endpoints. ``--method`` decides which options there
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from indis import artifact, models
from indis.cli.console import (
    WithModel,
    bar,
    check_loss,
    command_line,
    emit,
    held_interrupt,
    say,
    taught_model,
    writable,
    writable_file,
)
from indis.endpoints import load_endpoints
from indis.methods import Method, named
from indis.starts import Starts
from indis.storage import checksum, digest, load_json, save_json
from indis.tuning import Fit, Search, Tuning

M = TypeVar("M", bound=Method)
OWN = (
    "config.json",
    "policy.safetensors",
    "checkpoint.safetensors",
    "curve.json",
)  # what a fit writes


def fit_command(arguments: Sequence[str]) -> Any:
    """The command with the options of the method that the arguments name.

    Raises:
        ValueError: if there is no such method.
    """
    return FitCommand[named(_named_method(arguments) or "indis")]  # type: ignore[misc]  # a type chosen at run time


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """``--steps 3-10`` means one phi for every N from 3 to 10: the method "every-n".

    Raises:
        ValueError: if it is not a range, or the arguments name another method.
    """
    words = [
        part
        for word in arguments
        for part in (word.split("=", 1) if word.startswith("--steps=") else [word])
    ]
    for i, (option, value) in enumerate(zip(words, words[1:], strict=False)):
        if option == "--steps" and "-" in value[1:]:
            fewest, steps = _range(value)
            if (method := _named_method(words)) not in (None, "every-n"):
                raise ValueError(f"steps must be one number for method {method}, got {value!r}")
            return [
                *words[:i],
                "--method",
                "every-n",
                "--fewest",
                fewest,
                "--steps",
                steps,
                *words[i + 2 :],
            ]
    return words


def _named_method(arguments: Sequence[str]) -> str | None:
    """The last one that the arguments name."""
    given = [b for a, b in zip(arguments, arguments[1:], strict=False) if a == "--method"]
    given += [a.removeprefix("--method=") for a in arguments if a.startswith("--method=")]
    return given[-1] if given else None


def _range(text: str) -> tuple[str, str]:
    fewest, _, most = text.partition("-")
    if not (fewest.isdigit() and most.isdigit() and 1 <= int(fewest) <= int(most)):
        raise ValueError(f"steps must be a number or a rising range such as 3-10, got {text!r}")
    return fewest, most


@dataclass(frozen=True)
class FitCommand(WithModel, Generic[M]):
    """Tune a method's sampler on teacher endpoints and write an artifact; run again to resume.

    The options below are those of the method: ask again with `--method NAME --help` for another
    one's.

    Example: indis fit --data runs/endpoints --out runs/indis-n3 --steps 3 --loss fashion

    Example: indis fit --data runs/endpoints --out runs/every --steps 3-10 --loss fashion

    Example: indis fit --method god --data runs/endpoints --out runs/god-n3 --steps 3 --loss fashion
    """

    data: Path
    """Folder that `indis teach` wrote."""
    out: Path
    """Folder that the artifact is written into, new or of the same fit; the checkpoint stays beside
    it."""
    config: Annotated[M, tyro.conf.arg(name="")]
    """What is fitted and how."""
    method: str = "indis"
    """Method: indis, look, local, every-n, god, ld3, dyweight, ald3, amed, amed-plugin, epd,
    epd-plugin, adasde,
    gits, dmn, ays."""
    start: Path | None = None
    """Artifact that phi begins at, of a fitted global plan; its own base grid if absent."""
    save_every: int = 100
    """Iterations between checkpoints; the best state so far is kept as well, and what an interrupt
    falls into."""
    json: Path | None = None
    """Write the learning curve and the outcome to this file."""

    def run(self) -> None:
        """Fit, save, report the held-out loss."""
        if self.save_every < 1:
            raise ValueError(f"save-every must be at least 1, got {self.save_every}")
        data, meta = load_endpoints(self.data)
        denoiser, loss = self.load_taught(meta, self.data), models.loss(self.config.loss)
        check_loss(self.config.loss, loss, denoiser, data)
        writable(self.out)
        writable_file(self.json, {self.out: OWN})
        start = artifact.read(self.start) if self.start else None
        begun = checksum(artifact.find(self.start) / "policy.safetensors") if self.start else None
        process = self.config.tuning(denoiser, data, loss, start=start)
        identity = {
            "method": self.method,
            "config": asdict(self.config),
            "endpoints": meta["shards"],
            "start": begun,
        }
        curve = self._resume(process, identity)
        self._iterate(process, identity, curve)
        untuned = (
            process.untuned
            if isinstance(process, Fit | Starts) and self.config.recipe.holdout
            else None
        )
        provenance = {
            "command": command_line(),
            "model": taught_model(meta, self.data),
            "weights": denoiser.fingerprint,
            "teacher": meta["provenance"],
            "fitted_on": artifact.seen_seeds(data.seeds, *([self.start] if self.start else [])),
            "method": self.method,
            "config": asdict(self.config),
            "heldout_loss": process.best if curve else None,
            "parameters": process.sampler.policy.parameter_count(),
        }
        artifact.save(process.sampler, self.out, provenance)
        say(
            f"{self._result(process, untuned, curve)} with {provenance['parameters']} parameters in {self.out}"
        )
        emit({"curve": curve, "untuned_loss": untuned, **provenance}, self.json)

    def _result(self, process: Tuning, untuned: float | None, curve: list[list[float]]) -> str:
        """What came out, beside what it began at; of several beginnings a look between two is on no
        curve.
        """
        if not curve:
            return "fitted without held-out endpoints"
        if untuned is None:
            return f"held-out {self.config.loss} {process.best:.5f}"
        if process.best >= untuned:
            return f"held-out {self.config.loss} {untuned:.5f} at iteration 0: nothing was better than the start,"
        at = next((f" at iteration {step:g}" for step, value in curve if value == process.best), "")
        return f"held-out {self.config.loss}: start {untuned:.5f} -> best {process.best:.5f}{at}"

    def _require_own(self) -> None:
        """Do not write over what another command made."""
        if not (self.out / "config.json").exists():
            return
        made = artifact.load_config(self.out).get("provenance")
        mine = digest([self.method, asdict(self.config)])
        if not isinstance(made, dict) or digest([made.get("method"), made.get("config")]) != mine:
            raise ValueError(
                f"out must be a new folder or that of the same fit, got {self.out}, which holds another one"
            )

    def _resume(self, process: Tuning, identity: dict) -> list[list[float]]:
        path = self.out / "checkpoint.safetensors"
        if not path.exists() or isinstance(
            process, Search
        ):  # else the checkpoint tells more exactly whose it is
            self._require_own()
            return []
        process.resume(path, identity)
        say(f"resuming at iteration {process.step} of {process.iterations}")
        return load_json(self.out / "curve.json")

    def _iterate(self, process: Tuning, identity: dict, curve: list[list[float]]) -> None:
        # Between two iterations a checkpoint is exact; a search has no such place, and nothing to
        # save.
        with bar() as progress, held_interrupt(hold=not isinstance(process, Search)) as interrupted:
            task = progress.add_task(
                f"fit N={self.config.steps}", total=None, completed=process.step
            )
            for state in process.run():
                text = f"fit N={self.config.steps} best {state.best:.4f}"
                progress.update(
                    task, completed=state.step, total=state.iterations, description=text
                )
                if state.heldout is not None:
                    curve.append([state.step, state.heldout])
                # The best state so far is worth a checkpoint: whatever comes, a fit that stops has
                # it.
                best = state.heldout is not None and state.heldout <= state.best
                if (
                    best
                    or state.step % self.save_every == 0
                    or state.step == state.iterations
                    or interrupted()
                ):
                    save_json(self.out / "curve.json", curve)
                    process.save(self.out / "checkpoint.safetensors", identity)
                if interrupted():
                    raise KeyboardInterrupt

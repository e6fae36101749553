"""``indis fit``: tune a method's sampler on endpoints. ``--method`` decides which options there
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import tyro

from indis import artifact, models
from indis.checks import require_memory
from indis.cli.console import JsonFile, bar, command_line, default, emit, say
from indis.cli.model import WithModel, check_loss, describe_pipeline, taught_model
from indis.cli.paths import writable, writable_file
from indis.cli.signals import delayed_interrupt
from indis.endpoints import load_endpoints
from indis.methods import Method, named
from indis.storage import checksum, digest, save_json
from indis.tuning import Fit, Search, Tuning
from indis.writer import one_writer

M = TypeVar("M", bound=Method)
Curve = list[tuple[int, float]]
CHECKPOINT, CURVE = "checkpoint.safetensors", "curve.json"
OWN = ("config.json", "policy.safetensors", CHECKPOINT, CURVE)
MOST_STEPS = 1000
A_LAYER = 1 << 20  # bytes of a layer of any width, generously


def fit_command(options: Sequence[str]) -> tuple[Any, list[str]]:
    """Return the command with the options of the method that is named, and the words it parses.

    ``--steps 3-10`` is one policy for every number of steps from 3 to 10, the method "every-n".

    Raises:
        ValueError: If there is no such method, or it takes no range of steps.
    """
    words = [
        part
        for word in options
        for part in (word.split("=", 1) if word.startswith("--steps=") else [word])
    ]
    method = _named_method(words)
    for i, (option, value) in enumerate(zip(words, words[1:], strict=False)):
        if option == "--steps" and "-" in value[1:]:
            fewest, most = _range(value)
            if method not in (None, "every-n"):
                raise ValueError(f"steps must be one number for method {method}, got {value!r}")
            method = "every-n"
            given = ["--method", method, "--fewest", fewest, "--steps", most]
            words = [*words[:i], *given, *words[i + 2 :]]
            break
    return FitCommand[named(method or "indis")], words  # type: ignore[misc]  # chosen at run time


def _named_method(options: Sequence[str]) -> str | None:
    """Return the method that is named last."""
    given = [b for a, b in zip(options, options[1:], strict=False) if a == "--method"]
    given += [a.removeprefix("--method=") for a in options if a.startswith("--method=")]
    return given[-1] if given else None


def _range(text: str) -> tuple[str, str]:
    fewest, _, most = text.partition("-")
    whole = fewest.isdecimal() and most.isdecimal()
    if not (whole and 1 <= int(fewest) <= int(most) <= MOST_STEPS):
        raise ValueError(
            f"steps must be a number or a rising range such as 3-10, up to {MOST_STEPS}, "
            f"got {text!r}"
        )
    return fewest, most


@dataclass(frozen=True)
class FitCommand(WithModel, Generic[M]):
    """Tune a sampler on teacher endpoints. Run it again to resume.

    These are the options of one method; see also `indis fit --method NAME --help`.

    Example: indis fit --data runs/data --out runs/n3 --steps 3 --loss fashion

    Example: indis fit --data runs/data --out runs/every --steps 3-10 --loss fashion

    Example: indis fit --method god --data runs/data --out runs/god --steps 3
    """

    keeps: ClassVar[str] = CHECKPOINT

    data: Path
    """Folder of endpoints that `indis teach` wrote."""
    out: Path
    """Folder for the artifact and its checkpoint: a new one, or one of the same fit."""
    config: Annotated[M, tyro.conf.arg(name="")]
    """What is fitted, and how."""
    method: str = "indis"
    """Method that is fitted."""
    model: Annotated[str | None, default("that of the endpoints", "MODEL")] = None
    """Model that is sampled. Needed for a function of your own."""
    start: Annotated[Path | None, default("the plain solver", "FOLDER")] = None
    """Artifact of a fitted global plan to begin at."""
    stream: bool = False
    """Read end points from disk when they are used, so that memory does not grow with them."""
    save_every: int = 100
    """Iterations between checkpoints. One is also written at every new best and on Ctrl-C."""
    json: JsonFile = None
    """Write the learning curve and the outcome."""

    def run(self) -> None:
        """Fit, save, and report the held-out loss."""
        self._check()
        with one_writer(self.out):
            self._fit()

    def _fit(self) -> None:
        data, meta = load_endpoints(self.data, stream=self.stream)
        denoiser = self.load_taught(meta, self.data, self.model)
        loss = models.loss(self.config.loss)
        check_loss(self.config.loss, loss, denoiser, data)
        start = artifact.read(self.start) if self.start else None
        begun = checksum(artifact.find(self.start) / "policy.safetensors") if self.start else None
        process = self.config.tuning(denoiser, data, loss, start=start)
        identity = {
            "method": self.method,
            "config": asdict(self.config),
            "endpoints": meta["shards"],
            "start": begun,
        }
        self._resume(process, identity)
        self._iterate(process, identity)
        curve = process.curve
        fitted = isinstance(process, Fit) and self.config.recipe.holdout
        initial = process.initial_loss if fitted else None
        provenance = {
            "command": command_line(),
            "model": self.model or taught_model(meta, self.data),
            **describe_pipeline(denoiser),
            "weights": denoiser.fingerprint,
            "teacher": meta["provenance"],
            "fitted_on": artifact.seen_seeds(data.seeds, *([self.start] if self.start else [])),
            "method": self.method,
            "config": asdict(self.config),
            "heldout_loss": process.best if curve else None,
            "parameters": process.sampler.policy.parameter_count(),
        }
        artifact.save(process.sampler, self.out, provenance)
        say(self._result(process, initial, curve))
        say(f"{provenance['parameters']} parameters in {self.out}")
        emit({"curve": curve, "initial_loss": initial, **provenance}, self.json)

    def _check(self) -> None:
        """Refuse what would fail or do harm later."""
        if self.save_every < 1:
            raise ValueError(f"save-every must be at least 1, got {self.save_every}")
        if self.config.steps > MOST_STEPS:
            raise ValueError(f"steps must be in 1 ... {MOST_STEPS}, got {self.config.steps}")
        if self.out.resolve() == self.data.resolve():
            raise ValueError(f"out must be another folder than data, got {self.out}")
        # Weights, gradients and two moments of each layer of the network that reads samples.
        width, depth = (getattr(self.config, name, 1) for name in ("width", "depth"))
        require_memory("width", width, 16, power=2)
        require_memory("depth", depth, 16 * width**2 + A_LAYER)
        writable(self.out)
        writable_file(self.json, {self.out: OWN})

    def _result(self, process: Tuning, initial: float | None, curve: Curve) -> str:
        """Say what came out, beside the loss it began with."""
        if not curve:
            return "fitted; no endpoints were held out to judge it by"
        name, best = f"held-out {self.config.loss}", process.best
        if initial is None:
            return f"{name} {best:.5f}"
        if not process.improved:
            return (
                f"nothing improved on the start: {name} began at {initial:.5f} and never fell "
                f"below it, so the artifact is the untuned sampler; try a lower --lr"
            )
        at = next((f" at iteration {step:g}" for step, value in curve if value == best), "")
        return f"{name}: start {initial:.5f} -> best {best:.5f}{at}"

    def _resume(self, process: Tuning, identity: dict[str, Any]) -> None:
        """Continue from the folder's checkpoint, if there is one."""
        path = self.out / CHECKPOINT
        if not path.exists() or isinstance(process, Search):
            self._require_same_fit()
            return
        process.resume(path, identity)
        say(f"resuming at iteration {process.step} of {process.iterations}")

    def _require_same_fit(self) -> None:
        """Refuse to write over what another command made."""
        if not (self.out / "config.json").exists():
            return
        made = artifact.load_config(self.out).get("provenance")
        mine = digest([self.method, asdict(self.config)])
        if not isinstance(made, dict) or digest([made.get("method"), made.get("config")]) != mine:
            raise ValueError(
                f"out must be a new folder or that of the same fit, got {self.out}, "
                f"which holds another one"
            )

    def _iterate(self, process: Tuning, identity: dict[str, Any]) -> None:
        """Run to the end, writing checkpoints.

        A checkpoint is exact between two iterations. A search has no such place and nothing to
        save, so Ctrl-C stops it at once.
        """
        delay = not isinstance(process, Search)
        with bar() as progress, delayed_interrupt(delay=delay) as interrupted:
            task = progress.add_task(
                f"fit N={self.config.steps}", total=None, completed=process.step
            )
            for state in process.run():
                text = f"fit N={self.config.steps} best {state.best:.4f}"
                progress.update(
                    task, completed=state.step, total=state.iterations, description=text
                )
                new_best = state.heldout is not None and state.heldout <= state.best
                due = state.step % self.save_every == 0 or state.step == state.iterations
                if new_best or due or interrupted() is not None:
                    process.save(self.out / CHECKPOINT, identity)
                    # A copy for people; a resumed fit goes by the curve in its checkpoint.
                    save_json(self.out / CURVE, process.curve)
                if (stop := interrupted()) is not None:
                    raise stop

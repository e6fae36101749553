"""``indis fit``: tune a policy on endpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from indis import artifact, losses, models
from indis.cli.console import bar, command_line, emit, say, taught_model, writable, writable_file
from indis.methods.indis import IndisConfig, fit
from indis.storage import checksum, load_json, save_json
from indis.teacher import load_endpoints
from indis.training import Fit


@dataclass(frozen=True)
class FitCommand:
    """Tune a policy on teacher endpoints and write an artifact; run again to resume.

    Example: indis fit --data runs/endpoints --out runs/indis-n3 --steps 3 --loss fashion

    Example: indis fit --data runs/endpoints --out runs/god-n3 --steps 3 --loss fashion --no-per-instance --fit.lr 0.05
    """

    data: Path
    """Folder that `indis teach` wrote."""
    out: Path
    """Folder of the artifact; holds the checkpoint until the fit is done."""
    config: Annotated[IndisConfig, tyro.conf.arg(name="")] = field(default_factory=IndisConfig)
    """What is fitted and how."""
    start: Path | None = None
    """Artifact of a fitted global plan that phi begins at."""
    save_every: int = 100
    """Iterations between checkpoints."""
    json: Path | None = None
    """Write the learning curve and the outcome to this file."""

    def run(self) -> None:
        """Fit, save, report the held-out loss."""
        if self.save_every < 1:
            raise ValueError(f"save-every must be at least 1, got {self.save_every}")
        data, meta = load_endpoints(self.data)
        model = taught_model(meta, self.data)
        writable(self.out)
        writable_file(self.json)
        start = artifact.load(self.start) if self.start else None
        begun = checksum(self.start / "policy.safetensors") if self.start else None
        process = fit(self.config, models.load(model), data, losses.named(self.config.loss), start=start)
        identity = {"config": asdict(self.config), "endpoints": meta["shards"], "start": begun}
        curve = self._resume(process, identity)
        self._iterate(process, identity, curve)
        provenance = {
            "command": command_line(),
            "model": model,
            "teacher": meta["provenance"],
            "config": asdict(self.config),
            "heldout_loss": process.best if curve else None,
            "parameters": process.sampler.policy.parameter_count(),
        }
        artifact.save(process.sampler, self.out, provenance)
        result = f"held-out {self.config.loss} {process.best:.5f}" if curve else "fitted without held-out endpoints"
        say(f"{result} with {provenance['parameters']} parameters in {self.out}")
        emit({"curve": curve, **provenance}, self.json)

    def _resume(self, process: Fit, identity: dict) -> list[list[float]]:
        path = self.out / "checkpoint.safetensors"
        if not path.exists():
            return []
        process.resume(path, identity)
        say(f"resuming at iteration {process.step} of {self.config.fit.iterations}")
        return load_json(self.out / "curve.json")

    def _iterate(self, process: Fit, identity: dict, curve: list[list[float]]) -> None:
        with bar() as progress:
            task = progress.add_task(
                f"fit N={self.config.steps}", total=self.config.fit.iterations, completed=process.step
            )
            for state in process.run():
                progress.update(
                    task, completed=state.step, description=f"fit N={self.config.steps} best {state.best:.4f}"
                )
                if state.heldout is not None:
                    curve.append([state.step, state.heldout])
                if state.step % self.save_every == 0 or state.step == state.iterations:
                    save_json(self.out / "curve.json", curve)
                    process.save(self.out / "checkpoint.safetensors", identity)

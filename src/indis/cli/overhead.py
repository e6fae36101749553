"""``indis overhead``: what a policy costs beside the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indis import artifact
from indis.checks import require_least
from indis.cli.console import WithModel, emit, say, track, writable_file
from indis.cli.sample import check_fits
from indis.denoise import Denoiser
from indis.policies import Fixed
from indis.studies.overhead import overhead, pairs


@dataclass(frozen=True)
class Overhead(WithModel):
    """Measure what a policy adds to the time of sampling, against one fixed plan with the same evaluations.

    Example: indis overhead --artifact fashion-nfe5 fashion-nfe5-local --json overhead.json
    """

    artifact: tuple[str, ...]
    """Fitted samplers: folders, or names of those that ship."""
    model: str = "fashion"
    """Model: toy, toy:AB, fashion, fashion:WEIGHTS."""
    batch: int = 32
    """Samples drawn at once."""
    repeats: int = 20
    """Timed pairs of runs; quartiles need at least 2."""
    json: Path | None = None
    """Write the rows to this file."""

    def run(self) -> None:
        """Time, print a row an artifact."""
        require_least(self, batch=1, repeats=2)
        if not self.artifact:
            raise ValueError("artifact must be at least one fitted sampler, got none")
        writable_file(self.json)
        denoiser = self.load_model(self.model)
        rows = [self._row(name, denoiser) for name in self.artifact]
        emit({"rows": rows}, self.json)

    def _row(self, name: str, denoiser: Denoiser) -> dict[str, Any]:
        sampler = artifact.load(artifact.find(Path(name)))
        if isinstance(sampler.policy, Fixed):
            raise ValueError(f"artifact must have a policy that decides something, got the fixed plan of {name}")
        check_fits(name, sampler, denoiser)
        ratios = list(track(pairs(sampler, denoiser, self.batch, self.repeats), self.repeats, f"time {name}"))
        row: dict[str, Any] = {
            "artifact": name,
            "model": denoiser.name,
            "nfe": sampler.nfe,
            "batch": self.batch,
        } | overhead(ratios)
        low, middle, high = (100 * row[key] for key in ("low", "overhead", "high"))
        say(f"{name:24} {sampler.nfe} NFE  {middle:+5.1f} %  (quartiles {low:+.1f} and {high:+.1f} %)")
        return row

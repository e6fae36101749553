"""``indis bench overhead``: what a policy costs beside the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from indis import artifact
from indis.bench import budget
from indis.bench.overhead import overhead, pairs
from indis.checks import require_least, require_memory
from indis.cli.console import JsonFile, emit, say, track
from indis.cli.model import WithModel
from indis.cli.paths import writable_file
from indis.cli.sampler import check_fits, found
from indis.denoise import Denoiser
from indis.policies import Fixed
from indis.sampler import Sampler


@dataclass(frozen=True)
class Overhead(WithModel):
    """Time a sampler against a fixed plan of as many evaluations.

    Example: indis bench overhead --artifact fashion-nfe5 fashion-nfe5-local
    """

    artifact: tuple[str, ...]
    """Fitted samplers: folders that `indis fit` wrote, or names of those that ship."""
    model: str = "fashion"
    """Model that is sampled."""
    batch: int = 32
    """Number of samples that are drawn at once."""
    repeats: int = 20
    """Number of pairs of runs that are timed, at least 2."""
    json: JsonFile = None
    """Write the rows."""

    def run(self) -> None:
        """Time, print a row an artifact."""
        require_least(self, batch=1, repeats=2)
        require_memory("batch", self.batch, 64)
        if not self.artifact:
            raise ValueError("artifact must be at least one fitted sampler, got none")
        writable_file(self.json)
        denoiser = self.load_model(self.model)
        samplers = [
            (name, self._load(name, denoiser)) for name in self.artifact
        ]  # all, before any is timed
        rows = [self._row(name, sampler, denoiser) for name, sampler in samplers]
        emit({"rows": rows}, self.json)

    def _load(self, name: str, denoiser: Denoiser) -> Sampler:
        folder = found(name)
        if (folder / budget.FILE).exists():
            raise ValueError(
                f"artifact must have one number of steps for all samples, got the budget in {name}"
            )
        sampler = artifact.load(folder)
        if isinstance(sampler.policy, Fixed):
            raise ValueError(
                f"artifact must have a policy that decides something, got the fixed plan of {name}"
            )
        check_fits(name, sampler, denoiser)
        return sampler

    def _row(self, name: str, sampler: Sampler, denoiser: Denoiser) -> dict[str, Any]:
        ratios = list(
            track(pairs(sampler, denoiser, self.batch, self.repeats), self.repeats, f"time {name}")
        )
        row: dict[str, Any] = {
            "artifact": name,
            "model": denoiser.name,
            "nfe": sampler.nfe,
            "batch": self.batch,
        } | overhead(ratios)
        low, middle, high = (100 * row[key] for key in ("low", "overhead", "high"))
        say(
            f"{name:24} {sampler.nfe} NFE  {middle:+5.1f} %  "
            f"(quartiles {low:+.1f} and {high:+.1f} %)"
        )
        return row

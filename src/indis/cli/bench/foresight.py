"""``indis sight``: can a policy foresee what each sample wants, and from what?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from indis import artifact, models
from indis.bench import foresight as sight
from indis.bench.foresight import SightConfig, Wishes
from indis.cli.console import emit, say, track
from indis.cli.model import WithModel, check_loss
from indis.cli.paths import writable_file
from indis.cli.sampler import check_fits
from indis.endpoints import load_endpoints
from indis.policies import LearnedPolicy


@dataclass(frozen=True)
class Sight(WithModel):
    """Measure what share of each sample's own wish for a plan its condition, noise or first answers
    tell.

    A small share for "noise" means that phi(x_T, c) has little to learn beyond a global plan; a
    larger one for "answer 0" or later means that a closed loop (`indis fit --method look`) has.

    Example: indis sight --artifact fashion-nfe3-god --data runs/endpoints --count 4000 --json sight.json
    """

    artifact: str
    """Fitted global plan: the folder of an `indis fit --method god`, or the name of one that
    ships."""
    data: Path
    """Folder of teacher endpoints that `indis teach` wrote."""
    count: int = 4000
    """How many of the endpoints are used at most."""
    loss: str = "fashion"
    """Loss whose gradients are a sample's wish: mse, squared, fashion, fashion-dists, lpips."""
    config: SightConfig = field(default_factory=SightConfig)
    """How the predictors of the wishes are fitted."""
    json: Path | None = None
    """Write the rows to this file."""

    def run(self) -> None:
        """Observe, teach, print a row a view."""
        writable_file(self.json)
        rows = []
        for row in sight.shares(self._observed(), self.config):
            say(f"{row['view']:12} {100 * row['explained']:5.1f} %")
            rows.append({"artifact": self.artifact} | row)
        emit({"rows": rows}, self.json)

    def _observed(self) -> Wishes:
        if self.count < 20:
            raise ValueError(f"count must be at least 20, got {self.count}")
        sampler = artifact.read(self.artifact)
        policy = sampler.policy
        if not isinstance(policy, LearnedPolicy) or policy.reads != "nothing":
            raise ValueError(
                f"artifact must be a global plan (`indis fit --method god`), got {self.artifact}"
            )
        data, meta = load_endpoints(self.data)
        data, denoiser, loss = (
            data[: self.count],
            self.load_taught(meta, self.data),
            models.loss(self.loss),
        )
        check_fits(self.artifact, sampler, denoiser)
        check_loss(self.loss, loss, denoiser, data)
        parts = sight.observe(sampler, denoiser, data, loss)
        return sight.gathered(list(track(parts, -(-len(data) // sight.BATCH), "observe")))

"""``indis bench foresight``: can a policy foresee what each sample wants, and from what?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from indis import artifact, models
from indis.bench import foresight as sight
from indis.bench.foresight import SightConfig, Wishes
from indis.cli.console import JsonFile, emit, say, track
from indis.cli.model import WithModel, check_loss
from indis.cli.paths import writable_file
from indis.cli.sampler import check_fits
from indis.endpoints import load_endpoints
from indis.policies import LearnedPolicy


@dataclass(frozen=True)
class Sight(WithModel):
    """Measure how well a sample's gradients of a plan can be predicted.

    If the share for "noise" is small, a network that reads it has little to learn.

    If that for "answer 0" is larger, one that reads answers has (--method look).

    Example: indis bench foresight --artifact fashion-nfe3-god --data runs/data
    """

    artifact: str
    """Fitted global plan: a folder of `indis fit --method god`, or the name of one that ships."""
    data: Path
    """Folder of teacher endpoints that `indis teach` wrote."""
    count: int = 4000
    """Largest number of endpoints that are used."""
    loss: str = "fashion"
    """Loss whose gradients are predicted."""
    config: SightConfig = field(default_factory=SightConfig)
    """How the predictors are fitted."""
    json: JsonFile = None
    """Write the rows."""

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

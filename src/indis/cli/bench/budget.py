"""``indis bench budget``: give every sample its own number of steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from indis import artifact, models
from indis.bench import budget
from indis.bench.budget import BudgetConfig, BudgetSampler
from indis.cli.console import JsonFile, emit, say, track
from indis.cli.model import WithModel, check_loss, taught_model
from indis.cli.paths import writable, writable_file
from indis.cli.sampler import check_fits
from indis.denoise import Counted, Denoiser
from indis.endpoints import Endpoints, load_endpoints
from indis.evaluate import score_pairs
from indis.losses import Loss
from indis.sampler import Sampler
from indis.storage import save_json

# What `indis teach` says about end points.
TAUGHT_BY = ("model", "weights", "solver", "grid", "steps")


@dataclass(frozen=True)
class Budget(WithModel):
    """Spend a mean number of evaluations where it helps most.

    A network predicts each sample's loss at each number of steps.

    Example: indis fit --data runs/data --out runs/every --steps 3-10 --loss fashion

    Example: indis bench budget --artifact runs/every --data A --heldout B --out C
    """

    artifact: Path
    """Folder of a sampler for a range of steps, which `indis fit --steps 3-10` wrote."""
    data: Path
    """Folder of teacher endpoints to measure losses on."""
    heldout: Path
    """Folder of other endpoints, to compare with the same number of steps for all."""
    out: Path
    """Folder for the artifacts, one below it for each mean: mean4, mean5."""
    mean: tuple[float, ...] = (5.0,)
    """Mean numbers of evaluations to aim at."""
    count: int = 10_000
    """Largest number of endpoints of --data that are measured."""
    loss: str = "fashion"
    """Loss that is predicted and compared."""
    config: BudgetConfig = field(default_factory=BudgetConfig)
    """How the predictor is fitted."""
    json: JsonFile = None
    """Write the comparison."""

    def run(self) -> None:
        """Measure, foresee, price, compare."""
        if self.count < 10:
            raise ValueError(f"count must be at least 10, got {self.count}")
        sampler, loss = artifact.read(self.artifact), models.loss(self.loss)
        policy = budget.any_steps(sampler)
        if not self.mean:
            raise ValueError("mean must be at least one number, got none")
        costs = budget.evaluations(sampler)
        for mean in self.mean:  # before anything is measured
            budget.check_mean(costs, mean)
        writable(self.out)
        writable_file(self.json, {self.out: ("budget_comparison.json", "mean*/*")})
        (data, meta), (heldout, other) = load_endpoints(self.data), load_endpoints(self.heldout)
        self._check_alike(meta["provenance"], other["provenance"])
        if set(data.seeds.tolist()) & set(heldout.seeds.tolist()):
            raise ValueError(
                f"heldout must hold other seeds than data, got {self.heldout} and {self.data}"
            )
        artifact.check_unseen(self.artifact, heldout.seeds)
        denoiser, data = self.load_taught(meta, self.data), data[: self.count]
        check_fits(self.artifact, sampler, denoiser)
        check_loss(self.loss, loss, denoiser, data)
        measured = track(
            budget.measure(sampler, denoiser, data, loss), len(policy.counts), "measure"
        )
        table = torch.stack([values for _, values in measured], dim=1)
        predictor = budget.foresee(sampler, data, table, self.config)
        with torch.no_grad():
            foreseen = predictor(data.noise, data.condition.features)
        seen = artifact.seen_seeds(data.seeds, self.artifact)
        provenance = {"model": taught_model(meta, self.data), "fitted_on": seen}
        rows = fixed_rows(sampler, denoiser, heldout, loss)
        for mean in self.mean:
            price = budget.price_for(foreseen, costs, mean)
            own = BudgetSampler(sampler, predictor, price, mean)
            budget.save(own, self.out / f"mean{mean:g}", provenance)
            rows.append(budget_row(own, denoiser, heldout, loss))
            warn_below(mean, budget.mean_nfe(foreseen, costs, price))
        save_json(self.out / "budget_comparison.json", {"loss": self.loss, "rows": rows})
        for row in rows:
            spent = f"{row['kind']:6} mean NFE {row['nfe']:6.3f}"
            say(f"{spent}  held-out {self.loss} {row['heldout_loss']:.6f}{beaten_by(row, rows)}")
        emit({"loss": self.loss, "rows": rows}, self.json)

    def _check_alike(self, one: dict[str, Any], other: dict[str, Any]) -> None:
        """Both are compared as far as both say what made them; scripts need not."""
        for key in TAUGHT_BY:
            if key in one and key in other and one[key] != other[key]:
                raise ValueError(
                    f"heldout must be of the same model and teacher as data, "
                    f"got {key} {other[key]} in {self.heldout} and {one[key]} in {self.data}"
                )


def fixed_rows(
    sampler: Sampler, denoiser: Denoiser, heldout: Endpoints, loss: Loss
) -> list[dict[str, Any]]:
    """The loss at each N for all."""
    rows, policy = [], budget.any_steps(sampler)
    for steps in policy.counts:
        own = sampler.at(steps)
        scores = score_pairs(denoiser, own, heldout, loss)
        rows.append({"kind": "fixed", "nfe": float(own.nfe), **scores.row()})
    return rows


def budget_row(
    own: BudgetSampler, denoiser: Denoiser, heldout: Endpoints, loss: Loss
) -> dict[str, Any]:
    """The loss with a number for each; evaluations are counted."""
    counter = Counted(denoiser)
    scores = score_pairs(counter, own, heldout, loss)
    return {
        "kind": "budget",
        "nfe": counter.samples / scores.pairs,
        "asked": own.mean,
        **scores.row(),
    }


def warn_below(asked: float, reached: float) -> None:
    """Say so where a price leads to a lower mean than the one that it was set for."""
    if asked - reached > 0.05:
        say(
            f"asked for {asked:g}, reached {reached:.2f}: the predictor tells samples "
            f"too little apart, no price lies between; more --iterations or --count may help"
        )


def beaten_by(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Of a budget: a note where the same N for all, at no more than the mean asked for, has a lower
    loss.
    """
    allowed = max(row["nfe"], row.get("asked", 0.0))
    same = [one for one in rows if one["kind"] == "fixed" and one["nfe"] <= allowed]
    best = min(same, key=lambda one: one["heldout_loss"], default=row)
    if row["kind"] == "fixed" or best["heldout_loss"] >= row["heldout_loss"]:
        return ""
    return f"; asked for {row['asked']:g}, the same {best['nfe']:g} for all has a lower loss"

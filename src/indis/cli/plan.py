"""``indis plan``: what a sampler does, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from indis.cli.console import JsonFile, emit
from indis.cli.paths import writable_file
from indis.cli.sampler import SamplerChoice
from indis.denoise import Denoiser
from indis.endpoints import LAST_SEED
from indis.evaluate import realized_plans
from indis.export import sigmas
from indis.plan import Discretization
from indis.sampler import Sampler
from indis.storage import describe

MOST_SEEDS = 100


@dataclass(frozen=True)
class ShowPlan(SamplerChoice):
    """Print a sampler's timesteps, noise levels, shifts and scales.

    A plan that reads the network's answers is shown as it turned out for each seed.

    Example: indis plan --artifact fashion-nfe3-god

    Example: indis plan --artifact fashion-nfe3 --seed 0 1 2 --json plan.json
    """

    seed: tuple[int, ...] = (0,)
    """Seeds of the samples whose plans are shown."""
    json: JsonFile = None
    """Write the plans."""

    def run(self) -> None:
        """Print the plans."""
        writable_file(self.json)
        sampler, denoiser, plan, shared = self.planned()
        sigma = sigmas(denoiser.schedule, plan)
        shown = [None] if shared else [*self.seed]
        console = Console(highlight=False)
        for row, seed in enumerate(shown):
            console.print(_table(plan[row : row + 1], sigma[row].tolist(), seed))
        emit(
            {
                "model": denoiser.name,
                "artifact": None if self.artifact is None else str(self.artifact),
                "solver": describe(sampler.solver),
                "analytic_first": sampler.analytic_first,
                "nfe": sampler.nfe,
                "keep": plan.keep,
                "to_zero": plan.to_zero,
                "plans": [
                    _numbers(plan[row : row + 1], sigma[row].tolist(), seed)
                    for row, seed in enumerate(shown)
                ],
            },
            self.json,
        )

    def planned(self) -> tuple[Sampler, Denoiser, Discretization, bool]:
        """Return sampler and model, the plans of the seeds, and whether all samples share one.

        Raises:
            ValueError: If the seeds are none or too many, or the artifact is a budget.
        """
        if not 1 <= len(self.seed) <= MOST_SEEDS:
            raise ValueError(f"seed must be 1 to {MOST_SEEDS} numbers, got {len(self.seed)}")
        denoiser = self.load_model(self.model_spec)
        sampler = self.build(denoiser)
        if not isinstance(sampler, Sampler):
            raise ValueError(
                f"steps must be given for {self.artifact}, which takes another number for each "
                f"sample"
            )
        return sampler, denoiser, *realized(sampler, denoiser, self.seed)


def realized(
    sampler: Sampler, denoiser: Denoiser, seeds: Sequence[int]
) -> tuple[Discretization, bool]:
    """Return the plans of seeds, one row each, and whether all samples share one plan.

    A further seed is run besides, which tells a plan of one sample from a shared one.
    """
    further = next(seed for seed in (*range(len(seeds) + 1), LAST_SEED) if seed not in seeds)
    plan = realized_plans(denoiser, sampler, [*seeds, further])
    columns = [value for value in plan.columns().values() if isinstance(value, Tensor)]
    shared = all(bool((column == column[:1]).all()) for column in columns)
    if len(plan.tau) == 1:
        return plan, True
    return plan[: len(seeds)], shared and not (plan.churn or plan.corrections)


def _numbers(plan: Discretization, sigma: list[float], seed: int | None) -> dict[str, Any]:
    """Return one plan as JSON."""
    weights, stretch = (None if v is None else v[0].tolist() for v in (plan.weights, plan.stretch))
    return {
        "seed": seed,
        "tau": plan.tau[0].tolist(),
        "sigma": sigma,
        "asked_at": (plan.tau[0, :-1] + plan.dtau[0]).tolist(),
        "shift": plan.dtau[0].tolist(),
        "scale": plan.gamma[0].tolist(),
        "weights": weights,
        "stretch": stretch,
        "churn": bool(plan.churn),
        "corrections": bool(plan.corrections),
    }


def _table(plan: Discretization, sigma: list[float], seed: int | None) -> Table:
    """Return one plan as a table, a row a step."""
    one = _numbers(plan, sigma, seed)
    title = "plan of every sample" if seed is None else f"plan of seed {seed}"
    table = Table(title=title, title_justify="left")
    names = ["step", "tau", "sigma", "asked at", "shift", "scale"]
    more = [name for name in ("weights", "stretch") if one[name] is not None]
    for name in (*names, *more):
        table.add_column(name, justify="right")
    for k in range(plan.steps):
        values = (one["tau"][k], sigma[k], one["asked_at"][k], one["shift"][k], one["scale"][k])
        cells = [f"{value:.5g}" for value in values]
        if "weights" in more:
            cells.append(" ".join(f"{value:+.2f}" for value in one["weights"][k]))
        if "stretch" in more:
            cells.append(f"{one['stretch'][k]:.4f}")
        table.add_row(str(k + 1), *cells)
    table.add_row("end", f"{one['tau'][-1]:.5g}", f"{sigma[-1]:.5g}")
    return table

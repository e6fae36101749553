"""The sampler of a command: an artifact, or a plain solver on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from indis import artifact, models
from indis.bench import budget
from indis.bench.budget import BudgetSampler
from indis.cli.model import WithModel
from indis.denoise import Denoiser
from indis.methods import heuristic
from indis.noise import same_schedule
from indis.plan import Discretization
from indis.policies import Fixed
from indis.sampler import Sampler

MOST_STEPS = 10_000


def _default(text: str, metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {text})")


@dataclass(frozen=True)
class SamplerChoice(WithModel):
    """An artifact, or a solver on a grid.

    Raises:
        ValueError: If the number of steps is out of range.
    """

    artifact: Annotated[Path | None, _default("the plain solver", "FOLDER|NAME")] = None
    """Fitted sampler: a folder that `indis fit` wrote, or the name of one that ships."""
    solver: Annotated[str | None, _default("ipndm:3", "NAME")] = None
    """Solver without a fit. An artifact has its own."""
    grid: Annotated[str | None, _default("natural", "NAME")] = None
    """Timesteps of the plain solver. An artifact has its own."""
    steps: Annotated[int | None, _default("5, or the artifact's", "N")] = None
    """Number of steps. An artifact takes another one only if it was fitted for a range."""
    afs: bool = False
    """Replace the plain solver's first evaluation by its closed form, which saves one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"steps must be in 1 ... {MOST_STEPS}, got {self.steps}")
        for name, given in (("solver", self.solver), ("grid", self.grid), ("afs", self.afs)):
            if self.artifact is not None and given not in (None, False):
                raise ValueError(
                    f"{name} must be left out beside artifact, which has its own, got {given}"
                )

    def model_spec(self, given: str | None) -> str:
        """Return the model to load: the one given, else the artifact's, else fashion.

        Raises:
            ValueError: If the artifact was fitted to a function of the user's own, which runs only
                where it is named.
        """
        made_for = artifact.made_for(found(self.artifact)) if self.artifact else None
        if given is not None or made_for is None:
            return given or "fashion"
        if models.is_own(made_for):
            raise ValueError(
                f"{self.artifact} was fitted to {made_for}, which runs only where you name it: "
                f"add --model {made_for}"
            )
        return made_for

    def build(self, denoiser: Denoiser) -> Sampler | BudgetSampler:
        """Return the sampler; a budget's gives each sample its own number of steps.

        Raises:
            FileNotFoundError: If there is no such artifact.
            ValueError: If it was fitted to another model, or has another number of steps.
        """
        if self.artifact is None:
            return heuristic(denoiser, **self.plain)
        folder = found(self.artifact)
        if self.steps is None and (folder / budget.FILE).exists():
            own = budget.load(folder)
            check_fits(self.artifact, own.sampler, denoiser)
            return own
        sampler = artifact.read(folder)
        check_fits(self.artifact, sampler, denoiser)
        if self.steps is None:
            return sampler
        if len(sampler.policy.counts) == 1 and self.steps != sampler.policy.steps:
            raise ValueError(
                f"steps must be {sampler.policy.steps} for {self.artifact}, got {self.steps}"
            )
        return sampler.at(self.steps)

    @property
    def plain(self) -> dict[str, Any]:
        """The plain solver, with its defaults filled in."""
        return {
            "solver": self.solver or "ipndm:3",
            "grid": self.grid or "natural",
            "steps": self.steps or 5,
            "analytic_first": self.afs,
        }


def found(name: Path | str) -> Path:
    """Return the folder of an artifact.

    Raises:
        FileNotFoundError: If there is none. For a folder of artifacts the message lists them.
    """
    folder = artifact.find(name)
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if inside and not (folder / "config.json").exists():
        listed = ", ".join(str(folder / part) for part in inside)
        raise FileNotFoundError(
            f"artifact must be one folder, got {name}, which holds several: {listed}"
        )
    return folder


def check_fits(name: Path | str, sampler: Sampler, denoiser: Denoiser) -> None:
    """Pass if a sampler that was loaded from the artifact ``name`` suits a model.

    Raises:
        ValueError: If it was made for another schedule or shape, or fitted to another model.
    """
    # Only learned policies know schedule and shape.
    schedule, shape = (getattr(sampler.policy, part, None) for part in ("schedule", "shape"))
    if schedule is not None and not same_schedule(schedule, denoiser.schedule):
        raise ValueError(
            f"{name} needs a model with schedule {schedule}, "
            f"{denoiser.name} has {denoiser.schedule}"
        )
    if shape is not None and tuple(shape) != tuple(denoiser.shape):
        raise ValueError(
            f"{name} needs a model with shape {shape}, {denoiser.name} has {denoiser.shape}"
        )
    if isinstance(sampler.policy, Fixed):  # knows neither, only times
        _check_times(name, sampler.policy.shared_plan(), denoiser)
    made_for = artifact.made_for(name)
    wanted = models.name_of(made_for) if made_for is not None else None
    if wanted not in (None, denoiser.name):
        raise ValueError(f"{name} was fitted to model {made_for}, got {denoiser.name}")


def _check_times(name: Path | str, plan: Discretization, denoiser: Denoiser) -> None:
    try:
        plan.check(denoiser.schedule).check_start(denoiser.schedule)
    except ValueError as error:
        raise ValueError(f"{name} does not fit the schedule of {denoiser.name}: {error}") from None


def spent(sampler: Sampler | BudgetSampler, calls: float) -> str:
    """Say what a sample cost; ``calls`` evaluations of each were counted."""
    if isinstance(sampler, BudgetSampler):
        return f"{calls:g} evaluations on average"
    beside = "" if sampler.depth == calls else f" one after another, {calls:g} in all,"
    return f"{sampler.depth} evaluations{beside} each"

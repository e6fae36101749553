"""The sampler of a command: an artifact, or a plain solver on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from indis import artifact, models
from indis.bench import budget
from indis.bench.budget import BudgetSampler
from indis.cli.console import default
from indis.cli.model import WithModel
from indis.denoise import Denoiser
from indis.methods import heuristic
from indis.sampler import Sampler

MOST_STEPS = 10_000


@dataclass(frozen=True)
class SamplerChoice(WithModel):
    """An artifact, or a solver on a grid.

    Raises:
        ValueError: If the number of steps is out of range.
    """

    artifact: Annotated[Path | None, default("the plain solver", "FOLDER|NAME")] = None
    """Fitted sampler: a folder that `indis fit` wrote, or the name of one that ships."""
    solver: Annotated[str | None, default("ipndm:3", "NAME")] = None
    """Solver without a fit. An artifact has its own."""
    grid: Annotated[str | None, default("natural", "NAME")] = None
    """Timesteps of the plain solver. An artifact has its own."""
    steps: Annotated[int | None, default("5, or the artifact's", "N")] = None
    """Number of steps. An artifact takes another one only if it was fitted for a range."""
    model: Annotated[str | None, default("that of artifact or endpoints, or fashion", "M")] = None
    """Model that is sampled."""
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

    @property
    def model_spec(self) -> str:
        """The model to load: the one given, else the artifact's, else fashion.

        Raises:
            ValueError: If the artifact was fitted to a function of the user's own, which runs only
                where it is named.
        """
        made_for = artifact.made_for(found(self.artifact)) if self.artifact else None
        if self.model is not None or made_for is None:
            return self.model or "fashion"
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
        return sampler if self.steps is None else sampler.at(self.steps)

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
    made_for = artifact.made_for(name)
    wanted = models.name_of(made_for) if made_for is not None else None
    if wanted not in (None, denoiser.name):
        raise ValueError(f"{name} was fitted to model {made_for}, got {denoiser.name}")
    try:
        sampler.policy.check(denoiser)
    except ValueError as error:
        raise ValueError(f"{name} does not suit model {denoiser.name}: {error}") from None


def spent(sampler: Sampler | BudgetSampler, calls: float) -> str:
    """Say what a sample cost; ``calls`` evaluations of each were counted."""
    if isinstance(sampler, BudgetSampler):
        return f"{calls:g} evaluations on average"
    beside = "" if sampler.depth == calls else f" one after another, {calls:g} in all,"
    return f"{sampler.depth} evaluations{beside} each"

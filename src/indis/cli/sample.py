"""``indis sample``: draw samples with an artifact or a plain solver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from indis import artifact, models
from indis.bench import budget
from indis.bench.budget import BudgetSampler
from indis.cli.console import WithModel, bar, emit, say, writable_file
from indis.denoise import Counted, Denoiser, ClassConditional
from indis.endpoints import check_seeds
from indis.evaluate import Draw, sample_batches
from indis.methods import heuristic
from indis.noise import same_schedule
from indis.pixels import to_bytes
from indis.plan import Discretization
from indis.policies import AnySteps, Fixed
from indis.sampler import Sampler
from indis.storage import save_tensors, write_aside


@dataclass(frozen=True)
class SamplerChoice(WithModel):
    """An artifact, or a solver on a grid."""

    artifact: Path | None = None
    """Fitted sampler: the folder of `indis fit`, one of those of `indis budget`, or one that ships:
    fashion-nfe3,
    -nfe5, -nfe7, each also with -god (one plan for all) or -local (re-plans at every node, corrects
    each place) at its end. If absent, the plain solver below."""
    solver: str | None = None
    """Solver without a fit (ipndm:3 if absent): euler, heun, ipndm, adams_bashforth, deis, dpmpp,
    unipc or midpoint, as
    name[:order[:variant]]; an artifact has its own."""
    grid: str | None = None
    """Grid of the plain solver: natural (if absent; polynomial:7, or uniform for a flow), uniform,
    log_snr, polynomial,
    quadratic, vp_time, flow_shift or resolution, as name[:parameter], or list:T0,T1,... of times;
    an artifact has its own."""
    steps: int | None = None
    """Number of steps: of the plain solver (5 if absent); of an artifact for every N (`indis fit
    --steps 3-10`; the
    largest if absent); of one of `indis budget` in place of each sample's own. Other artifacts have
    one number."""
    afs: bool = False
    """Whether the plain solver's first step is analytic: one evaluation less; an artifact has its
    own."""

    def build(self, denoiser: Denoiser) -> Sampler | BudgetSampler:
        """The sampler, a budget's included.

        Raises:
            ValueError: if the artifact was fitted to another model, or the plain solver is
                described beside it.
        """
        if self.artifact is not None:
            self._check_alone()
            folder = found(self.artifact)
            if self.steps is None and (folder / budget.FILE).exists():
                own = budget.load(folder)
                check_fits(self.artifact, own.sampler, denoiser)
                return own
            sampler = self._choose(artifact.read(folder))
            check_fits(self.artifact, sampler, denoiser)
            return sampler
        return heuristic(denoiser, **self.plain)

    @property
    def plain(self) -> dict[str, Any]:
        """The plain solver, with the defaults that it takes."""
        return {
            "solver": "ipndm:3" if self.solver is None else self.solver,
            "grid": "natural" if self.grid is None else self.grid,
            "steps": 5 if self.steps is None else self.steps,
            "analytic_first": self.afs,
        }

    def _check_alone(self) -> None:
        for name, given in (("solver", self.solver), ("grid", self.grid), ("afs", self.afs)):
            if given not in (None, False):
                raise ValueError(
                    f"{name} must be left out beside artifact, which has its own, got {given}"
                )

    def _choose(self, sampler: Sampler) -> Sampler:
        if self.steps is not None:
            if not isinstance(sampler.policy, AnySteps):
                if self.steps != sampler.policy.steps:
                    raise ValueError(
                        f"steps must be {sampler.policy.steps} for {self.artifact}, got {self.steps}"
                    )
                return sampler
            sampler.policy.choose(self.steps)
        return sampler


def found(name: Path | str) -> Path:
    """The folder of an artifact.

    Raises:
        FileNotFoundError: if there is none; of a folder of artifacts it says which there are.
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
    """Pass if the sampler that was loaded from the artifact ``name`` is one for this model.

    Raises:
        ValueError: if it was made for another schedule or shape, or fitted to another model.
    """
    schedule, shape = (
        getattr(sampler.policy, part, None) for part in ("schedule", "shape")
    )  # if it was learned
    if schedule is not None and not same_schedule(schedule, denoiser.schedule):
        raise ValueError(
            f"{name} needs a model with schedule {schedule}, {denoiser.name} has {denoiser.schedule}"
        )
    if shape is not None and shape != denoiser.shape:
        raise ValueError(
            f"{name} needs a model with shape {shape}, {denoiser.name} has {denoiser.shape}"
        )
    if isinstance(sampler.policy, Fixed):  # knows neither, only times
        _check_times(name, sampler.policy.plan, denoiser)
    made_for = artifact.made_for(name)
    name_made = models.name_of(made_for) if made_for is not None else None
    if name_made not in (None, denoiser.name):
        raise ValueError(f"{name} was fitted to model {made_for}, got {denoiser.name}")


def _check_times(name: Path | str, plan: Discretization, denoiser: Denoiser) -> None:
    try:
        plan.check(denoiser.schedule).check_start(denoiser.schedule)
    except ValueError as error:
        raise ValueError(f"{name} does not fit the schedule of {denoiser.name}: {error}") from None


@dataclass(frozen=True)
class Sample(SamplerChoice):
    """Draw samples; a sample is its seed, whatever the batch size.

    Example: indis sample --model fashion --artifact runs/indis-n3 --out samples.png

    Example: indis sample --model fashion --solver unipc:3 --grid log_snr --steps 7 --out samples.png
    """

    out: Path = Path("samples.png")
    """File of the samples: a .png grid (images) or a .safetensors file (anything)."""
    model: str = "fashion"
    """Model: toy, toy:AB, fashion, or fashion:PATH with the folder of `indis train-model` or a file
    of weights."""
    first_seed: int = 0
    """Seed of the first sample; the others follow one by one."""
    count: int = 40
    """How many samples, one a seed."""
    label: tuple[int, ...] = ()
    """Classes that the seeds take in turn (fashion: 0 ... 9, or 10 for none); if absent, seed mod
    10."""
    json: Path | None = None
    """Write which samples these are, where, and what they cost to this file."""

    def run(self) -> None:
        """Draw and write."""
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        check_seeds(self.first_seed, self.count)
        if self.out.suffix not in (".png", ".safetensors"):
            raise ValueError(f"out must end in .png or .safetensors, got {self.out}")
        writable_file(self.out)
        writable_file(self.json, {self.out: ()})
        denoiser = Counted(self._denoiser())
        sampler = self.build(denoiser)
        seeds = range(self.first_seed, self.first_seed + self.count)
        samples = torch.cat(list(drawn(denoiser, sampler, seeds)))
        if self.out.suffix == ".png":
            save_grid(samples, self.out)
        else:
            save_tensors(self.out, {"samples": samples, "seeds": torch.tensor(list(seeds))})
        calls = denoiser.samples / self.count
        say(f"{self.count} samples with {spent(sampler, calls)} in {self.out}")
        emit(
            self._row(
                denoiser.name, sampler.depth if isinstance(sampler, Sampler) else calls, calls
            ),
            self.json,
        )

    def _row(self, model: str, nfe: float, calls: float) -> dict[str, Any]:
        """Which samples, of what, and what was counted."""
        which = {
            "model": model,
            "first_seed": self.first_seed,
            "count": self.count,
            "label": list(self.label),
        }
        fitted = {"artifact": str(self.artifact), "steps": self.steps}
        return {
            "out": str(self.out),
            **which,
            **(fitted if self.artifact else self.plain),
            "nfe": nfe,
            "calls": calls,
        }

    def _denoiser(self) -> Denoiser:
        denoiser = self.load_model(self.model)
        return Asked(denoiser, self.label) if self.label else denoiser


def drawn(denoiser: Denoiser, sampler: Draw, seeds: Sequence[int]) -> Iterator[torch.Tensor]:
    """:func:`~indis.evaluate.sample_batches` under a progress bar, on the CPU."""
    with bar() as progress:
        task = progress.add_task("samples", total=len(seeds))
        for batch in sample_batches(denoiser, sampler, seeds):
            progress.update(task, advance=len(batch))
            yield batch.cpu()


def spent(sampler: Sampler | BudgetSampler, calls: float) -> str:
    """What a sample cost, of which ``calls`` were counted; some of a step's may be made at the same
    time.
    """
    if isinstance(sampler, BudgetSampler):
        return f"{calls:g} evaluations on average"
    beside = "" if sampler.depth == calls else f" one after another, {calls:g} in all,"
    return f"{sampler.depth} evaluations{beside} each"


class Asked(Counted):
    """A denoiser whose seeds take these labels in turn; a sample is still its seed, whatever the
    batch.

    Raises:
        ValueError: if it knows no labels, or not these.
    """

    def __init__(self, denoiser: Denoiser, labels: Sequence[int]) -> None:
        super().__init__(denoiser)
        if not isinstance(denoiser, ClassConditional):
            raise ValueError(
                f"label must be left out for {denoiser.name}, which has no classes, got {list(labels)}"
            )
        labelled = denoiser.class_condition
        labelled(list(labels))  # before any work
        self.condition = lambda seeds: labelled([labels[seed % len(labels)] for seed in seeds])


def save_grid(samples: torch.Tensor, path: Path, columns: int = 10, zoom: int = 3) -> None:
    """A picture of images ``(count, 1 or 3, height, width)`` in [-1, 1], ten a row.

    Raises:
        ValueError: if the samples are not images.
    """
    # Pillow comes with the image extras; a user of vector models need not have it.
    from PIL import Image

    if samples.ndim != 4:
        raise ValueError(
            f"only images can be drawn, these samples are {tuple(samples.shape[1:])}: use .safetensors"
        )
    rows = [
        torch.cat(list(row), dim=2) for row in _padded(to_bytes(samples), columns).split(columns)
    ]
    picture = torch.cat(rows, dim=1).movedim(0, 2).expand(-1, -1, 3).numpy()
    image = Image.fromarray(picture).resize(
        (picture.shape[1] * zoom, picture.shape[0] * zoom), Image.Resampling.NEAREST
    )
    write_aside(path, lambda temporary: image.save(temporary, format="png"))


def _padded(images: torch.Tensor, columns: int) -> torch.Tensor:
    missing = -len(images) % columns
    return torch.cat([images, torch.zeros(missing, *images.shape[1:], dtype=images.dtype)])

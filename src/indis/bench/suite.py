"""Benches: a model to compare samplers on, with its teacher, its base solver, and what a sampler is
judged by.

A bench fixes everything that a comparison must hold equal: the teacher's end points, the loss, the
budget of a fit, the held-out seeds. Sizes are fields of :class:`Sizes`, in a full and a quick
edition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from indis import losses, methods, models
from indis.denoise import Denoiser, to_device_of
from indis.endpoints import Endpoints
from indis.evaluate import frechet_of_images, frechet_of_seeds, score_pairs
from indis.methods import INDIS, heuristic
from indis.methods.midpoint_table import TwoStage
from indis.models.fashion import Fashion
from indis.models.fashion_features import WEIGHTS as FEATURE_WEIGHTS
from indis.models.fashion_features import frechet_judge
from indis.models.toy import Toy
from indis.recipe import Recipe
from indis.sampler import Sampler
from indis.storage import checksum, describe

Scores = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much of everything: end points to tune on, held-out ones, samples for a distance to the
    data.

    Raises:
        ValueError: for a number outside its range.
    """

    endpoints: int
    heldout: int
    samples: int
    recipe: Recipe

    def __post_init__(self) -> None:
        if self.endpoints <= self.recipe.holdout:
            raise ValueError(
                f"endpoints must be above holdout = {self.recipe.holdout}, got {self.endpoints}"
            )
        if self.heldout < 1:
            raise ValueError(f"heldout must be at least 1, got {self.heldout}")
        if self.samples < 0 or self.samples == 1:  # one has no covariance
            raise ValueError(f"samples must be 0 or at least 2, got {self.samples}")


class Bench(ABC):
    """One model's side of a comparison."""

    name: str
    loss_name: str
    grids: tuple[str, ...]  # heuristic grids worth a row
    teacher_solver: str
    teacher_grid: str
    teacher_steps: int
    shard: int  # end points a file, what an interrupt can lose
    shared: dict[str, Any]  # config fields of every method that has them
    full: Sizes
    brief: Sizes

    def __init__(self, *, bf16: bool = False, device: torch.device | str = "cpu") -> None:
        self.denoiser = models.load(self.name, device)
        self.drawing: Denoiser = self.denoiser
        if bf16:
            if not isinstance(self.denoiser, Fashion):
                raise ValueError(
                    f"bf16 must be left out for {self.name}, which has no network to run in it"
                )
            self.drawing = self.denoiser.in_bf16()

    @cached_property
    def loss(self) -> losses.Loss:
        """What is tuned, and reported as the held-out loss."""
        return models.loss(self.loss_name)

    @property
    def teacher(self) -> Sampler:
        """The many-step sampler whose end points are matched."""
        return heuristic(
            self.denoiser,
            solver=self.teacher_solver,
            grid=self.teacher_grid,
            steps=self.teacher_steps,
        )

    def provenance(self) -> dict[str, Any]:
        """Which model and teacher the end points are of."""
        return {
            "model": self.denoiser.name,
            "weights": self.denoiser.fingerprint,
            "solver": describe(self.teacher.solver),
            "grid": self.teacher_grid,
            "steps": self.teacher_steps,
        }

    def identity(self) -> list[str]:
        """What all scores depend on besides the sampler."""
        return [self.denoiser.fingerprint]

    def own(self, method: str) -> dict[str, Any]:
        """What a method needs on this bench in place of its own defaults."""
        return {}

    def grid_sampler(self, grid: str, steps: int, *, analytic_first: bool) -> Sampler:
        """The student's solver on a heuristic grid."""
        return heuristic(
            self.denoiser,
            solver=self.shared["solver"],
            grid=grid,
            steps=steps,
            analytic_first=analytic_first,
        )

    @abstractmethod
    def judge(self, sampler: Sampler, heldout: Endpoints, samples: int) -> Scores:
        """Distances to the teacher, and with ``samples`` > 0 to the data."""

    @abstractmethod
    def judge_teacher(self, data: Endpoints, samples: int) -> Scores:
        """What the teacher's own end points get."""

    @abstractmethod
    def notes(self, sizes: Sizes) -> list[str]:
        """What a reader must know about the numbers."""


class FashionBench(Bench):
    """The image model that ships. FD-Fashion and the perceptual distance use one feature network;
    the MSE does not.
    """

    name, loss_name = "fashion", "fashion"
    grids = (
        "polynomial:7",
        "polynomial:5",
        "polynomial:3",
        "log_snr",
        "vp_time:2",
        "vp_time",
        "quadratic",
        "uniform",
    )
    teacher_solver, teacher_grid, teacher_steps = "ipndm:3", "polynomial:7", 30
    shard = 500
    shared = {"solver": "ipndm:3", "grid": "polynomial:7", "loss": "fashion"}
    full = Sizes(10_000, 1000, 10_000, Recipe(120, 48, holdout=300, validate_every=15))
    brief = Sizes(600, 300, 600, Recipe(60, 32, holdout=100, validate_every=20))

    def own(self, method: str) -> dict[str, Any]:
        """Two-stage methods start far better on EDM's grid than on their own, AMED-Plugin on one
        even in log-SNR.
        """
        if method == "amed-plugin":
            return {"grid": "log_snr"}
        return {"grid": "polynomial:7"} if issubclass(methods.named(method), TwoStage) else {}

    def identity(self) -> list[str]:
        """Also the feature network that judges."""
        return [self.denoiser.fingerprint, checksum(FEATURE_WEIGHTS)]

    def judge(self, sampler: Sampler, heldout: Endpoints, samples: int) -> Scores:
        """Perceptual distance and MSE on held-out pairs, FD-Fashion on ``samples`` new seeds."""
        pairs = score_pairs(self.denoiser, sampler, heldout, self.loss)
        scores: Scores = {
            "perceptual": pairs.heldout_loss,
            **pairs.row(),
            "fd": None,
            "samples": samples,
        }
        if samples:
            scores["fd"] = frechet_of_seeds(
                self.drawing,
                sampler,
                range(2_000_000, 2_000_000 + samples),
                *frechet_judge(),
            )
        return scores

    def judge_teacher(self, data: Endpoints, samples: int) -> Scores:
        """FD-Fashion of end points that exist anyway."""
        count = min(samples, len(data))
        if count < 2:
            return {"fd": None, "samples": 0}
        targets = (
            to_device_of(data.target[i : min(i + 500, count)], self.denoiser)
            for i in range(0, count, 500)
        )
        distance = frechet_of_images(map(self.denoiser.decode, targets), *frechet_judge())
        return {"fd": distance, "samples": count}

    def notes(self, sizes: Sizes) -> list[str]:
        """Seeds, precision, and the two uses of the feature network."""
        dtype = "float32" if self.drawing is self.denoiser else "bfloat16 autocast"
        return [
            f"FD-Fashion: seeds from 2000000, balanced classes, network in {dtype}; of the "
            "grids, the best alone.",
            "The loss is the perceptual distance of the same feature network that FD-Fashion uses.",
        ]


class ToyBench(Bench):
    """The paper's 2-D toy, whose denoiser is exact: KL and W1 are distances to the true
    distribution.
    """

    name, loss_name = "toy", "squared"
    grids = ("uniform", "quadratic", "polynomial:3", "log_snr", "flow_shift:3")
    teacher_solver, teacher_grid, teacher_steps = "euler", "uniform", 100
    shard = 4096
    shared = {
        "solver": "ipndm:3",
        "grid": "uniform",
        "loss": "squared",
        "width": 96,
    }
    # Errors are heavy-tailed, so a few probes would measure the sensitivity of themselves.
    full = Sizes(
        20_000,
        20_000,
        20_000,
        Recipe(400, 512, relative=True, probes=2000, holdout=1000, validate_every=50),
    )
    brief = Sizes(
        4000,
        4000,
        4000,
        Recipe(120, 256, relative=True, probes=2000, holdout=500, validate_every=20),
    )

    def own(self, method: str) -> dict[str, Any]:
        """Wider bounds where there are any, as the optimum lies far from the base; a grid that
        suits a flow.
        """
        kind = methods.named(method)
        if issubclass(kind, INDIS):
            return {"dtau": 0.9, "gamma": 0.9}
        return {"grid": "uniform"} if issubclass(kind, TwoStage) or method == "ald3" else {}

    def judge(self, sampler: Sampler, heldout: Endpoints, samples: int) -> Scores:
        """Squared distance and MSE to the teacher, KL and W1 to the true distribution, with their
        floors.
        """
        with torch.no_grad():
            end = torch.cat(list(self._ends(sampler, heldout)))
        return {
            "heldout_loss": self.loss(end, heldout.target).double().mean().item(),
            "teacher_mse": losses.mse(end, heldout.target).double().mean().item(),
            "pairs": len(heldout),
            **self._distances(end),
        }

    def judge_teacher(self, data: Endpoints, samples: int) -> Scores:
        """KL and W1 of the teacher's own end points."""
        return self._distances(data.target[:samples]) if samples else {}

    def notes(self, sizes: Sizes) -> list[str]:
        """Units and floors."""
        floor = self._distances(self._exact(sizes.heldout, seed=1))
        return [
            "Squared distance sums both coordinates. KL(data || samples) in nats on a 48 x 48 "
            "histogram, W1 in data "
            "units.",
            f"Exact samples of the same size get KL {floor['kl']:.3f} and W1 {floor['w1']:.4f}.",
        ]

    @cached_property
    def _truth(self) -> torch.Tensor:
        return self._exact(100_000, seed=0)

    def _exact(self, count: int, seed: int) -> torch.Tensor:
        assert isinstance(self.denoiser, Toy)
        return self.denoiser.mixture.sample(count, torch.Generator().manual_seed(seed)).float()

    def _ends(self, sampler: Sampler, data: Endpoints) -> Iterator[torch.Tensor]:
        sampler = to_device_of(sampler, self.denoiser)
        for start in range(0, len(data), 4096):
            yield sampler(
                self.denoiser, to_device_of(data.noise[start : start + 4096], self.denoiser)
            ).cpu()

    def _distances(self, samples: torch.Tensor) -> Scores:
        from indis.bench.toy_metrics import histogram_kl, wasserstein1

        return {"kl": histogram_kl(samples, self._truth), "w1": wasserstein1(samples, self._truth)}


class GalaxiesBench(Bench):
    """A real model of a package (:mod:`indis.models.galaxies`); its samples differ far more than
    clothes do.
    """

    name, loss_name = "galaxies", "log-brightness"
    grids = FashionBench.grids
    teacher_solver, teacher_grid, teacher_steps = "ipndm:3", "log_snr", 20
    shard = 500
    shared = {"solver": "ipndm:3", "grid": "log_snr", "loss": "log-brightness"}
    full = Sizes(4800, 400, 0, Recipe(150, 48, relative=True, holdout=300, validate_every=25))
    brief = Sizes(300, 100, 0, Recipe(20, 16, relative=True, holdout=60, validate_every=10))

    def own(self, method: str) -> dict[str, Any]:
        """Two-stage methods start on the grid of the others, even in log-SNR."""
        return {"grid": "log_snr"} if issubclass(methods.named(method), TwoStage) else {}

    def judge(self, sampler: Sampler, heldout: Endpoints, samples: int) -> Scores:
        """Mean square error in log brightness, and that of the pixels."""
        return score_pairs(self.denoiser, sampler, heldout, self.loss).row() | {"samples": 0}

    def judge_teacher(self, data: Endpoints, samples: int) -> Scores:
        """Nothing: there is no set of real pictures to compare with."""
        return {"samples": 0}

    def notes(self, sizes: Sizes) -> list[str]:
        """Units."""
        return [
            "Held-out loss is the mean square error in log brightness; MSE is that of pixels in "
            "[-1, 1], whose unit is 3.75 of log brightness."
        ]


BENCHES: dict[str, type[Bench]] = {
    "toy": ToyBench,
    "fashion": FashionBench,
    "galaxies": GalaxiesBench,
}


def named(name: str) -> type[Bench]:
    """The bench of a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in BENCHES:
        raise ValueError(f"model must be one of {', '.join(BENCHES)}, got {name!r}")
    return BENCHES[name]


def resized(sizes: Sizes, given: dict[str, Any]) -> Sizes:
    """Sizes with what was given (not None) in place of the default; a key is a field of Sizes or of
    its fit.
    """
    changes = {name: value for name, value in given.items() if value is not None}
    fit = replace(
        sizes.recipe,
        **{name: changes.pop(name) for name in list(changes) if hasattr(sizes.recipe, name)},
    )
    return replace(sizes, recipe=fit, **changes)

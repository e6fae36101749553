"""The paper's toy: a two-dimensional tree of Gaussians whose denoiser is exact.

The tree is the toy of Karras et al. (2024), "Guiding a diffusion model with a bad version of
itself": a binary tree drawn in the plane, of one class or both. Its posterior mean is computed in
closed form (:mod:`indis.models.mixture`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from indis.denoise import UNCONDITIONAL, Condition, Form
from indis.models.mixture import BRANCH, Mixture, posterior_mean
from indis.noise import RectifiedFlow
from indis.numerics import broadcast

DESCRIPTION = "exact 2-D mixture; toy:AB has both classes"
ORIGIN, SCALE = np.array([0.0030, 0.0325]), np.array([1.3136, 1.3844])
DEPTH = 7
ANGLES = {"A": math.pi / 4, "B": 5 * math.pi / 4}


def tree(classes: str = "A", seed: int = 2) -> Mixture:
    """Return the tree of one class or both, drawn from numpy's ``RandomState(seed)``.

    Args:
        classes: "A" or "B" with 1016 components each, or "AB".
        seed: the seed of the draws.

    Raises:
        ValueError: if ``classes`` is none of the three.
    """
    if classes not in ("A", "B", "AB"):
        raise ValueError(f'classes must be "A", "B" or "AB", got {classes!r}')
    random = np.random.RandomState(seed)
    # Class B goes on with the stream of class A, so A is always drawn.
    grown = {name: list(_grow(random, 0, ORIGIN, angle)) for name, angle in ANGLES.items()}
    branches = [branch for name in classes for branch in grown[name]]
    weights, means, covariances = (
        torch.from_numpy(np.concatenate(v)) for v in zip(*branches, strict=True)
    )
    return Mixture(weights / weights.sum(), means, covariances)


_Branch = tuple[np.ndarray, np.ndarray, np.ndarray]


def _grow(
    random: np.random.RandomState, depth: int, start: np.ndarray, angle: float
) -> Iterator[_Branch]:
    """Yield a branch and then, depth first, its children.

    The place of each draw in the stream is part of the recipe.
    """
    if depth == DEPTH:
        return
    length = 0.292 * 0.8**depth * (1 + 0.2 * random.randn())
    along = np.array([math.cos(angle), math.sin(angle)])
    yield _branch(depth, start, along, length)
    for sign in (1, -1):
        turn = sign * 0.7**depth * (1 + 0.2 * random.randn())
        yield from _grow(random, depth + 1, start + along * length, angle + turn)


def _branch(depth: int, start: np.ndarray, along: np.ndarray, length: float) -> _Branch:
    """Weights, means and covariances of eight components spaced evenly along a branch."""
    size, thickness = SCALE * length * 0.06, 0.2 * 0.8**depth / length
    line = np.outer(along, along)
    shape = (line + (np.eye(2) - line) * thickness**2) * np.outer(size, size)
    means = (start + along * length * np.linspace(0.07, 0.93, BRANCH)[:, None]) * SCALE
    return np.full(BRANCH, length * 0.5**depth), means, np.tile(shape, (BRANCH, 1, 1))


class Toy:
    """The exact denoiser of a tree, in velocity form.

    Args:
        mixture: the data.
        name: its name, also its fingerprint.
        schedule: the flow; by default the one that corresponds to sigma = 0.002 ... 80.
    """

    shape = (2,)
    native = Form.VELOCITY

    def __init__(
        self, mixture: Mixture, name: str = "toy", schedule: RectifiedFlow | None = None
    ) -> None:
        self.mixture, self.name, self.fingerprint = mixture, name, name
        self.schedule = schedule or RectifiedFlow(t_min=0.002 / 1.002, t_max=80 / 81)
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Toy:
        """Return itself, expecting its tensors there; the mixture's constants follow the points."""
        self.device = torch.device(device)
        return self

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity (x - E[x_0 | x]) / t ``(batch, 2)``.

        Args:
            x: points ``(batch, 2)``.
            t: times ``(batch,)``; those beyond the schedule, even t >= 1, are answered exactly.
            condition: not read.
        """
        mean, _, sigma = self._mean(x, t)
        return (x - mean) / broadcast(sigma, x)

    def with_features(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return the answer and all that a network could know, as a FeatureDenoiser.

        Args:
            x: points ``(batch, 2)``.
            t: times ``(batch,)``.
            condition: not read.

        Returns:
            The answer ``(batch, 2)``, and the state at unit variance beside the posterior mean
            ``(batch, 4)``, without gradient.
        """
        mean, alpha, sigma = self._mean(x, t)
        unit = x / broadcast((alpha**2 + sigma**2).sqrt(), x)
        return (x - mean) / broadcast(sigma, x), torch.cat([unit, mean], dim=1).detach()

    def _mean(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The posterior mean ``(batch, 2)``, alpha and sigma, each ``(batch,)``."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return posterior_mean(x, alpha, sigma, self.mixture), alpha, sigma

    def decode(self, x: Tensor) -> Tensor:
        """Return ``x``: points are the data."""
        return x

    def condition(self, seeds: list[int]) -> Condition:
        """Return the empty condition."""
        return UNCONDITIONAL


def load(classes: str = "A", seed: int = 2) -> Toy:
    """Return the denoiser of a tree.

    Args:
        classes: the classes of :func:`tree`: "A", "B" or "AB".
        seed: the seed of the tree.

    Raises:
        ValueError: if ``classes`` is none of the three.
    """
    suffix = "" if seed == 2 else f"-seed{seed}"
    return Toy(tree(classes, seed), name_of(classes) + suffix)


def name_of(detail: str) -> str:
    """Return the name of the denoiser that ``toy:detail`` loads: "toy", or "toy-AB"."""
    return "toy" if detail in ("", "A") else f"toy-{detail}"

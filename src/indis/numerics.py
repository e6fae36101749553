"""Small numerical helpers that the rest of the library stands on.

Two dtypes live side by side. *Times and coefficients* are float64: a step weight is a difference of
nearly equal numbers, and they are tiny tensors, so precision costs nothing. *Samples* keep whatever
dtype the caller gave (float32 as a rule). The two meet in exactly one place, :func:`broadcast`,
which casts a coefficient to the sample's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor

TIME_DTYPE = torch.float64


def broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    """Give a per-sample coefficient ``(grid,)`` the dtype and the trailing axes of ``x`` ``(batch,
    *shape)``.
    """
    return coefficient.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def restored(value: Tensor, exact: Tensor, still: Tensor) -> Tensor:
    """``value`` with the bits of ``exact`` where ``still``, its gradient kept: a way there and back
    rounds.
    """
    return value + torch.where(still, exact - value.detach(), 0)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw on the CPU from this seed, and leave the caller's generators as they were, those of GPUs
    too.

    ``torch.manual_seed`` would reseed every GPU's generator as well, which forking the CPU's does
    not undo.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@cache
def gauss_legendre(points: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre quadrature on [0, 1], float64, each of shape
    ``(points,)``.
    """
    nodes, weights = np.polynomial.legendre.leggauss(points)
    # Kept for good: under inference mode it would be a constant that gradients cannot pass later.
    with torch.inference_mode(False):
        return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def lagrange(nodes: list[Tensor], at: Tensor) -> list[Tensor]:
    """The Lagrange basis polynomials of ``nodes`` (each ``(grid,)``) evaluated at ``at`` ``(grid,
    points)``.
    """
    basis = []
    for j, own in enumerate(nodes):
        value = torch.ones_like(at)
        for i, other in enumerate(nodes):
            if i != j:
                value = value * (at - other[:, None]) / (own - other)[:, None]
        basis.append(value)
    return basis


def integrate_lagrange(
    nodes: list[Tensor],
    start: Tensor,
    stop: Tensor,
    density: Tensor | None = None,
    points: int = 16,
) -> list[Tensor]:
    r"""Integrals :math:`\int_{start}^{stop} \ell_j(u) \rho(u) du` of the Lagrange basis, by
    Gauss-Legendre quadrature.

    ``nodes`` are ``(grid,)`` tensors, ``density`` holds :math:`\rho` at :func:`quadrature_points`
    of the same interval (one for a plain integral). Sixteen points are exact for every polynomial
    of degree below 32, need no linear solve and stay differentiable in the nodes and in both ends.
    """
    at, weights = quadrature_points(start, stop, points)
    return weigh_lagrange(nodes, at, weights if density is None else weights * density)


def weigh_lagrange(nodes: list[Tensor], at: Tensor, mass: Tensor) -> list[Tensor]:
    """Sums of the Lagrange basis over points ``at`` with weights ``mass``, each ``(grid,
    points)``.
    """
    return [(value * mass).sum(-1) for value in lagrange(nodes, at)]


def quadrature_points(
    start: Tensor, stop: Tensor, points: int = 16, panels: int = 1
) -> tuple[Tensor, Tensor]:
    """Quadrature nodes and (signed) weights on ``[start, stop]``, each ``(grid, panels * points)``.

    With several ``panels`` of equal width an integrand may have a singularity near the interval.
    """
    unit, weights = (v.to(start.device) for v in gauss_legendre(points))
    if panels > 1:
        unit = ((torch.arange(panels, device=unit.device)[:, None] + unit) / panels).flatten()
        weights = (weights / panels).repeat(panels)
    width = (stop - start)[:, None]
    return start[:, None] + width * unit, width * weights


def phi(order: int, z: Tensor) -> Tensor:
    r"""The exponential-integrator functions :math:`\phi_n(z) = \int_0^1 e^{(1-s)z} s^{n-1}/(n-1)!\,
    ds`, n >= 1.

    By quadrature: the textbook recurrence :math:`\phi_{n+1} = (\phi_n - 1/n!) / z` loses every
    digit of
    :math:`\phi_3` at z = 1e-8 even in float64.
    """
    s, weights = (v.to(z.device) for v in gauss_legendre(24))
    kernel = ((1 - s) * z[..., None]).exp() * s ** (order - 1) / math.factorial(order - 1)
    return (kernel * weights).sum(-1)

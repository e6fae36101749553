"""Small numerical helpers that the rest of the library stands on.

Two dtypes live side by side. *Times and coefficients* are float64: a step weight is a difference of
nearly equal numbers, and they are tiny tensors, so precision costs nothing. *Samples* keep whatever
dtype the caller gave (float32 as a rule). The two meet in exactly one place, :func:`broadcast`,
which casts a coefficient to the sample's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

TIME_DTYPE = torch.float64


def broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    """Give coefficients ``(grid,)`` the dtype, device and number of axes of samples ``x``."""
    if x.device.type != "cpu":  # first the dtype: some devices have no float64
        coefficient = coefficient.to(x.dtype).to(x.device)
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
    """Evaluate the Lagrange basis polynomials of ``nodes`` at points.

    Args:
        nodes: Tensors of the same shape ``(...)``.
        at: Points ``(..., points)``.

    Returns:
        One tensor ``(..., points)`` for each node.
    """
    basis = []
    for j, own in enumerate(nodes):
        value = torch.ones_like(at)
        for i, other in enumerate(nodes):
            if i != j:
                value = value * (at - other[..., None]) / (own - other)[..., None]
        basis.append(value)
    return basis


def integrate_lagrange(
    nodes: list[Tensor],
    start: Tensor,
    stop: Tensor,
    density: Tensor | None = None,
    points: int = 16,
) -> list[Tensor]:
    r"""Integrate the Lagrange basis, :math:`\int_{start}^{stop} \ell_j(u) \rho(u) du`.

    Gauss-Legendre quadrature with 16 points is exact for every polynomial of degree below 32. It
    needs no linear solve and stays differentiable in the nodes and in both ends.

    Args:
        nodes: Tensors of the same shape ``(...)``.
        start: Lower ends ``(...)``.
        stop: Upper ends ``(...)``.
        density: :math:`\rho` at :func:`quadrature_points` of the same interval; one if absent.
        points: Points of the quadrature.

    Returns:
        One tensor ``(...)`` for each node.
    """
    at, weights = quadrature_points(start, stop, points)
    return weigh_lagrange(nodes, at, weights if density is None else weights * density)


def weigh_lagrange(nodes: list[Tensor], at: Tensor, mass: Tensor) -> list[Tensor]:
    """Sum the Lagrange basis over points ``at`` with weights ``mass``, each ``(..., points)``."""
    return [(value * mass).sum(-1) for value in lagrange(nodes, at)]


def quadrature_points(
    start: Tensor, stop: Tensor, points: int = 16, panels: int = 1
) -> tuple[Tensor, Tensor]:
    """Return quadrature nodes and signed weights on ``[start, stop]``.

    Args:
        start: Lower ends ``(...)``.
        stop: Upper ends ``(...)``.
        points: Points a panel.
        panels: Panels of equal width. With several an integrand may have a singularity near the
            interval.

    Returns:
        Nodes and weights, each ``(..., panels * points)``.
    """
    unit, weights = gauss_legendre(points)
    if panels > 1:
        unit = ((torch.arange(panels)[:, None] + unit) / panels).flatten()
        weights = (weights / panels).repeat(panels)
    width = (stop - start)[..., None]
    return start[..., None] + width * unit, width * weights


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


Scalar = float | Tensor  # a coefficient shared by the batch, or one a sample: (grid, 1, ..., 1)


def scalars_for(columns: Tensor, like: Tensor) -> Any:
    """Turn coefficients into factors of samples, cast and moved once.

    Args:
        columns: Coefficients ``(grid, n)`` or ``(grid, n, m)``, float64 on the CPU.
        like: Samples ``(batch, *shape)``.

    Returns:
        A list of n scalars, or of n lists of m. Coefficients that are the same for the whole batch
        and that carry no gradient become Python numbers: they cost no tensor operation, and
        factors of one are left out.
    """
    if columns.ndim == 2:
        return [row[0] for row in scalars_for(columns[..., None], like)]
    same: list[list[bool]] = [[False] * columns.shape[2]] * columns.shape[1]
    if not columns.requires_grad:
        shared: list[list[float]] = columns[0].tolist()
        if len(columns) == 1:
            return shared
        same = (columns == columns[:1]).all(0).tolist()
    moved = columns.to(like.device, like.dtype)
    moved = moved.reshape(*moved.shape, *[1] * (like.ndim - 1))
    tensors = [step.unbind(1) for step in moved.unbind(1)]
    return [
        [shared[k][i] if same[k][i] else own for i, own in enumerate(step)]
        for k, step in enumerate(tensors)
    ]


def scaled(scale: Scalar | None, x: Tensor) -> Tensor:
    """Return ``scale`` times ``x``; None and exactly 1 leave ``x`` as it is."""
    if scale is None or (isinstance(scale, float) and scale == 1):
        return x
    return scale * x


def weighted_sum(
    weights: Sequence[Scalar], values: Sequence[Tensor], added: Tensor | None = None
) -> Tensor:
    """Return sum_j w_j v_j plus ``added``, in as few passes over the samples as there are terms.

    Args:
        weights: Scalars, one for each value or more: those without a value do not count.
        values: Tensors ``(batch, *shape)``, the first of which is the state.
        added: A further term ``(batch, *shape)``.

    Returns:
        The sum.
    """
    total: Tensor | None = None
    own = False  # whether nobody else holds the total, so that it may be changed in place
    for weight, value in zip(weights, values, strict=False):
        if isinstance(weight, float):
            if weight == 0:
                continue
            if total is None:
                total, own = (value, False) if weight == 1 else (value * weight, True)
            elif own:
                total = total.add_(value, alpha=weight)
            else:
                total, own = torch.add(total, value, alpha=weight), True
        elif total is None:
            total, own = value * weight, True
        elif own:
            total = total.addcmul_(value.to(total.dtype), weight)
        else:
            total, own = torch.addcmul(total, value.to(total.dtype), weight), True
    if total is None:
        total = torch.zeros_like(next(iter(values)))
    return total if added is None else total + added


def to_sample_device(times: Tensor, like: Tensor) -> Tensor:
    """Move times to the device of samples; float32 where that has no float64 (MPS)."""
    if like.device.type == "mps":
        times = times.float()
    return times.to(like.device)

r"""EDM's four preconditionings (Karras et al., 2022, Table 1): a network F becomes a denoiser D.

.. math:: D(x, \sigma) = c_{skip} x + c_{out} F(c_{in} x, c_{noise})

EDM's own keeps inputs and training targets at unit variance for every sigma; VP, VE and iDDPM are
the formulas of the models before it. Denoisers answer in noise form, (x - D) / sigma: the slope of
the ODE in sigma, and what INDIS scales with gamma.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from indis.noise import EDM
from indis.numerics import broadcast

Network = Callable[[Tensor, Tensor], Tensor]
SAMPLED = (0.002, 80.0)  # EDM's sampler asks no network outside of this range


class Factors(NamedTuple):
    """What surrounds F at noise levels ``(batch,)``; every factor is ``(batch,)``.

    The data prediction is ``skip`` x + ``out`` F, and the noise prediction ``noise_skip`` x +
    ``noise_out`` F, in a form without the cancellation of x - D.
    """

    c_in: Tensor
    c_noise: Tensor
    skip: Tensor
    out: Tensor
    noise_skip: Tensor
    noise_out: Tensor


class Preconditioning(Protocol):
    """One column of the table."""

    def factors(self, sigma: Tensor) -> Factors:
        """Return the factors at noise levels ``(batch,)``, differentiable in them."""

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The smallest and largest sigma that the network was trained for."""


def denoise(network: Network, x: Tensor, sigma: Tensor, precond: Preconditioning) -> Tensor:
    """Return the data prediction D(x, sigma).

    Args:
        network: F, a function of the scaled states ``(batch, *shape)`` and c_noise ``(batch,)``.
        x: states ``(batch, *shape)``.
        sigma: noise levels ``(batch,)``.
        precond: the preconditioning.

    Returns:
        ``(batch, *shape)``.
    """
    f = precond.factors(sigma)
    answer = network(broadcast(f.c_in, x) * x, f.c_noise)
    return broadcast(f.skip, x) * x + broadcast(f.out, x) * answer


def noise_prediction(
    network: Network, x: Tensor, sigma: Tensor, precond: Preconditioning
) -> Tensor:
    """Return the noise prediction (x - D) / sigma.

    Args:
        network: F, a function of the scaled states ``(batch, *shape)`` and c_noise ``(batch,)``.
        x: states ``(batch, *shape)``.
        sigma: noise levels ``(batch,)``.
        precond: the preconditioning.

    Returns:
        ``(batch, *shape)``.
    """
    f = precond.factors(sigma)
    answer = network(broadcast(f.c_in, x) * x, f.c_noise)
    return broadcast(f.noise_skip, x) * x + broadcast(f.noise_out, x) * answer


@dataclass(frozen=True)
class EDMPrecond:
    """EDM's own: c_noise = ln(sigma) / 4, and D mixes x and F to unit variance.

    With total^2 = sigma^2 + sigma_data^2 the noise prediction is
    sigma / total^2 x - sigma_data / total F, since 1 - c_skip = sigma^2 / total^2.

    Args:
        sigma_data: the standard deviation of the data.
        sigma_min: the smallest sigma of the file, 0 in published ones.
        sigma_max: the largest, infinite in published ones.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.0
    sigma_max: float = math.inf

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Both fields."""
        return self.sigma_min, self.sigma_max

    def factors(self, sigma: Tensor) -> Factors:
        """Return the factors at noise levels ``(batch,)``."""
        data = self.sigma_data
        total = (sigma**2 + data**2).sqrt()
        return Factors(
            c_in=1 / total,
            c_noise=sigma.log() / 4,
            skip=data**2 / total**2,
            out=sigma * data / total,
            noise_skip=sigma / total**2,
            noise_out=-data / total,
        )


@dataclass(frozen=True)
class VPPrecond:
    """Of models trained on a linear beta (Song et al., 2021): F predicts the noise.

    Args:
        beta_d: slope of beta.
        beta_min: beta at time zero.
        M: number of steps whose indices the network was told.
        epsilon_t: the smallest time.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000
    epsilon_t: float = 1e-5

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Sigma at ``epsilon_t`` and at 1."""
        low, high = (
            math.sqrt(math.expm1(self.beta_d * t**2 / 2 + self.beta_min * t))
            for t in (self.epsilon_t, 1.0)
        )
        return low, high

    def factors(self, sigma: Tensor) -> Factors:
        """Return the factors at noise levels ``(batch,)``."""
        root = (self.beta_min**2 + 2 * self.beta_d * sigma.square().log1p()).sqrt()
        time = (root - self.beta_min) / self.beta_d
        return _of_noise(sigma, (self.M - 1) * time)


@dataclass(frozen=True)
class VEPrecond:
    """Of models trained on unscaled noise (Song et al., 2021): F predicts minus the noise.

    Args:
        sigma_min: the smallest sigma.
        sigma_max: the largest.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Both fields."""
        return self.sigma_min, self.sigma_max

    def factors(self, sigma: Tensor) -> Factors:
        """Return the factors at noise levels ``(batch,)``."""
        one, none = torch.ones_like(sigma), torch.zeros_like(sigma)
        return Factors(one, (sigma / 2).log(), one, sigma, none, -one)


@dataclass(frozen=True)
class IDDPMPrecond:
    r"""Of improved DDPM (Nichol & Dhariwal, 2021): F predicts the noise and is told a step's index.

    The steps' noise levels are :math:`u_M = 0` and
    :math:`u_{j-1}^2 = (u_j^2 + 1) / \max(\bar\alpha_{j-1} / \bar\alpha_j, C_1) - 1` with
    :math:`\bar\alpha_j = \sin^2(\pi j / (2 M (C_2 + 1)))`. The published code rounds sigma to the
    nearest of them. Here the index is interpolated in ln(sigma), which agrees at each of them and
    can be differentiated.

    Args:
        C_1: the least ratio of two neighbouring alphas.
        C_2: offset of the cosine.
        M: number of steps.
    """

    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000
    levels: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        def alpha(j: int) -> float:
            return math.sin(math.pi / 2 * j / self.M / (self.C_2 + 1)) ** 2

        squares = [0.0]
        for j in range(self.M, 0, -1):
            squares.append((squares[-1] + 1) / max(alpha(j - 1) / alpha(j), self.C_1) - 1)
        rising = torch.tensor(squares, dtype=torch.float64).sqrt()
        object.__setattr__(self, "levels", rising.flip(0))

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The smallest level above zero and the largest."""
        return self.levels[-2].item(), self.levels[0].item()

    def factors(self, sigma: Tensor) -> Factors:
        """Return the factors at noise levels ``(batch,)``."""
        rising = self.levels[:-1].flip(0).log().to(sigma.device)  # a step's c_noise is its place
        value = sigma.double().log()
        high = torch.searchsorted(rising, value.detach()).clamp(1, self.M - 1)
        start, stop = rising[high - 1], rising[high]
        place = high - 1 + (value - start) / (stop - start)
        return _of_noise(sigma, place.to(sigma.dtype))


def _of_noise(sigma: Tensor, c_noise: Tensor) -> Factors:
    """The factors of a network that predicts the noise of x / sqrt(1 + sigma^2)."""
    one, none = torch.ones_like(sigma), torch.zeros_like(sigma)
    return Factors(1 / (sigma**2 + 1).sqrt(), c_noise, one, -sigma, none, one)


PRECONDITIONINGS: dict[str, type[Preconditioning]] = {
    "edm": EDMPrecond,
    "vp": VPPrecond,
    "ve": VEPrecond,
    "iddpm": IDDPMPrecond,
}


def schedule(precond: Preconditioning) -> EDM:
    """Return the noise schedule on which a preconditioned network is sampled.

    It is EDM's own, 0.002 ... 80, within the range that the network knows (Karras et al., 2022,
    Table 1 and App. C).
    """
    low, high = precond.sigma_range
    return EDM(max(low, SAMPLED[0]), min(high, SAMPLED[1]))

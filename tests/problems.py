"""Problems with known answers that several test modules share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indis import (
    EDM,
    Condition,
    Denoiser,
    DiscreteVP,
    Form,
    LinearVP,
    NoiseSchedule,
    RectifiedFlow,
    ScaledLinearVP,
)
from indis.numerics import TIME_DTYPE, broadcast

DATA = Path(__file__).parent / "data"
FORMS = list(Form)
SCHEDULES = {
    "edm": EDM(),
    "rectified_flow": RectifiedFlow(),
    "rectified_flow_inside": RectifiedFlow(0.002, 0.988),
    "linear_vp": LinearVP(),
    "scaled_linear_vp": ScaledLinearVP(),
    "discrete_vp": DiscreteVP(),
    "discrete_ddpm": DiscreteVP(1e-4, 0.02, spacing="linear"),
}


class Problem:
    """What every denoiser here has in common: no weights, pixels are the space, and nothing is
    conditioned on."""

    fingerprint = "formula"

    def decode(self, x: Tensor) -> Tensor:
        return x

    def condition(self, seeds: list[int]) -> Condition:
        return Condition()


class GoldenMixture(Problem):
    """The three isotropic Gaussians of ``solvers_ve.npz``, whose denoiser is exact; see
    shared/golden/README.md."""

    name, schedule, shape, native = "golden", EDM(), (3,), Form.NOISE

    def __init__(self) -> None:
        with np.load(DATA / "solvers_ve.npz") as file:
            self.golden = {key: torch.from_numpy(file[key]) for key in file.files}
        self.means, self.weights, self.spread = (self.golden[key] for key in ("mu", "w", "sd"))

    @property
    def noise(self) -> Tensor:
        return self.golden["z"]

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        t, means, own = t.to(x.dtype), self.means.to(x.dtype), self.spread.to(x.dtype) ** 2
        variance = own + t[:, None] ** 2
        offset = x[:, None] - means
        log_share = (
            self.weights.to(x.dtype).log()
            - 1.5 * variance.log()
            - (offset**2).sum(-1) / (2 * variance)
        )
        data = (
            log_share.softmax(1)[..., None] * (means + (own / variance)[..., None] * offset)
        ).sum(1)
        return (x - data) / t[:, None]


class Gaussian(Problem):
    """Data from N(mean, diag(variance)) under any schedule and in any native form, with its ODE
    solved exactly.

    Along the ODE (x_t - alpha_t mean) / sqrt(alpha_t^2 variance + sigma_t^2) does not change.
    """

    name = "gaussian"

    def __init__(
        self,
        schedule: NoiseSchedule,
        native: Form,
        mean: tuple[float, ...] = (0.7, -0.4, 0.1),
        variance: tuple[float, ...] = (0.25, 0.5, 0.04),
    ) -> None:
        self.schedule, self.native, self.shape = schedule, native, (len(mean),)
        self.mean, self.variance = (torch.tensor(v, dtype=TIME_DTYPE) for v in (mean, variance))

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = broadcast(self.schedule.alpha(t), x), broadcast(self.schedule.sigma(t), x)
        mean, variance = self.mean.to(x.dtype), self.variance.to(x.dtype)
        slope = (x - alpha * mean) / (alpha**2 * variance + sigma**2)
        data, noise = mean + alpha * variance * slope, sigma * slope
        return {Form.DATA: data, Form.NOISE: noise, Form.VELOCITY: noise - data}[self.native]

    def start(self, batch: int, seed: int = 0) -> Tensor:
        """Draws from the true marginal at t_max."""
        unit = torch.randn(
            batch, *self.shape, generator=torch.Generator().manual_seed(seed), dtype=TIME_DTYPE
        )
        centre, spread = self._marginal(torch.tensor(self.schedule.t_max, dtype=TIME_DTYPE))
        return centre + spread * unit

    def exact(self, x: Tensor, start: Tensor, stop: Tensor) -> Tensor:
        """Where the ODE takes ``x`` from time ``start`` to time ``stop``."""
        (centre, spread), (target, width) = self._marginal(start), self._marginal(stop)
        return target + width / spread * (x - centre)

    def _marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.alpha(t)[..., None], self.schedule.sigma(t)[..., None]
        return alpha * self.mean, (alpha**2 * self.variance + sigma**2).sqrt()


class Bumpy(Problem):
    """Smooth and nonlinear in x and t, but nobody's posterior mean."""

    name, shape = "bumpy", (2,)

    def __init__(self, schedule: NoiseSchedule | None = None, native: Form = Form.VELOCITY) -> None:
        self.schedule, self.native = schedule or RectifiedFlow(0.02, 0.95), native

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return torch.sin(1.3 * x + broadcast(torch.cos(2 * t), x)) + 0.3 * x.flip(-1)


@dataclass(frozen=True)
class Call:
    dtype: torch.dtype
    times: Tensor
    x: Tensor


class Recording(Problem):
    """A denoiser that remembers how it was asked."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.name, self.schedule = inner, inner.name, inner.schedule
        self.shape, self.native = inner.shape, inner.native
        self.calls: list[Call] = []

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls.append(Call(x.dtype, t.detach().clone(), x.detach().clone()))
        return self.inner(x, t, condition)


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = TIME_DTYPE) -> Tensor:
    """Unit normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

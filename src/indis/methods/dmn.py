r"""DMN (arXiv 2402.17376): the grid that minimises an error bound of the solver itself; no network
is asked.

An exponential integrator of the data prediction puts a Lagrange polynomial through its last
predictions, so step s weighs the prediction at node n by

.. math:: J_{sn} = \int_{\lambda_s}^{\lambda_{s+1}} e^\lambda \ell_n(\lambda) \, d\lambda .

If the prediction at node n is wrong by at most :math:`w_n = \sigma_n^p / \alpha_n`, the sample is
wrong by at most

.. math:: \sum_n \Big| \sum_s w_n J_{sn} \Big| ,

Orders are 1, 2, 3, ..., 3, 2, 1 along the steps. The first and the last step, and all of the first
``apart`` ones, do not share in the cancellation of the inner sum: they add the Euclidean norm of
their own terms instead, which keeps grids of few steps stable.

The bound depends on log-SNR alone: :math:`\alpha` and :math:`\sigma` are those of the variance
preserving process with the same log-SNR, which is what the paper considers. States of another
schedule (EDM, a flow) are its states up to scale, and :math:`w = (\sigma / \alpha) \sigma^{p-1}` is
the same for p = 1; for p = 2 its last factor, which only says how errors are weighed, stays that of
the variance preserving process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from indis import grids
from indis.denoise import Denoiser
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.methods.method import GridMethod
from indis.noise import NoiseSchedule, end_levels
from indis.numerics import integrate_lagrange, quadrature_points

FLOOR = 1e-3  # of an even step in log-SNR; ours, so that times decrease strictly


@dataclass(frozen=True)
class DMN(GridMethod):
    """Needs scipy, and neither the network nor the endpoints. The bound is that of order 3 whatever
    solver then runs.

    Raises:
        ValueError: for a power, an initial grid or a number of separate steps that is not accepted.
    """

    name: ClassVar[str] = "dmn"

    solver: str = "unipc:3"
    """Solver; paper: UniPC and DPM-Solver++."""
    power: int = 1
    """Power p of the bound; published code: 1 for pixels, 2 for latents."""
    init: str = "log_snr"
    """Grid that the search starts from; published code: log_snr, or uniform for latents."""
    apart: int | None = None
    """First steps that do not share in the cancellation; None: 3 up to 7 steps, else 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        grids.named(self.init)
        if self.power not in (1, 2):
            raise ValueError(f"power must be 1 or 2, got {self.power}")
        if self.apart is not None and self.apart < 0:
            raise ValueError(f"apart must be at least 0, got {self.apart}")

    def best(self, denoiser: Denoiser, train: Endpoints, loss: Loss) -> Tensor:
        """Return the grid with the least bound that is found, at most that of the initial grid.

        Raises:
            ValueError: if log-SNR is infinite at an end of the schedule.
            ImportError: if scipy is not installed.
        """
        require_finite(denoiser.schedule)
        tau = grids.named(self.init)(denoiser.schedule, self.steps)
        apart = (3 if self.steps <= 7 else 0) if self.apart is None else self.apart
        log_snr = minimal(denoiser.schedule.log_snr(tau[0]), self.power, apart)
        return torch.cat(
            [tau[:, :1], denoiser.schedule.time(log_snr[None, 1:-1]), tau[:, -1:]], dim=1
        )


def require_finite(schedule: NoiseSchedule) -> None:
    """Pass if both ends have signal and noise.

    Raises:
        ValueError: if alpha(t_max) or sigma(t_min) is 0.
    """
    signal, noise = end_levels(schedule)
    if not (signal > 0 and noise > 0):
        raise ValueError(
            "DMN needs a schedule with alpha(t_max) > 0 and sigma(t_min) > 0, "
            f"got {signal:g} at t_max = {schedule.t_max:g} and {noise:g} at t_min = "
            f"{schedule.t_min:g}"
        )


def error_bound(log_snr: Tensor, power: int, apart: int) -> Tensor:
    """Return the bound of nodes ``(steps + 1,)``, increasing, differentiable in them."""
    steps = len(log_snr) - 1
    weight = torch.sigmoid(-2 * log_snr) ** (power / 2) / torch.sigmoid(2 * log_snr).sqrt()
    shared, total = torch.zeros_like(log_snr), log_snr.new_zeros(())
    for order in (1, 2, 3):
        s = torch.tensor(
            [k for k in range(steps) if min(k + 1, steps - k, 3) == order], dtype=torch.long
        )
        used = s[:, None] - torch.arange(order)  # newest first
        errors = weight[used] * step_weights(log_snr, s, used)
        own = (s < apart) | (order == 1)
        total = total + errors[own].norm(dim=1).sum()
        shared = shared.index_add(0, used[~own].flatten(), errors[~own].flatten())
    return total + shared.abs().sum()


def step_weights(log_snr: Tensor, s: Tensor, used: Tensor) -> Tensor:
    """Return J of steps ``s`` ``(rows,)`` for the nodes ``used`` ``(rows, order)``."""
    start, stop = log_snr[s], log_snr[s + 1]
    at, _ = quadrature_points(start, stop)
    return torch.stack(
        integrate_lagrange(list(log_snr[used].unbind(1)), start, stop, at.exp()), dim=1
    )


def minimal(init: Tensor, power: int, apart: int) -> Tensor:
    """Return nodes ``(steps + 1,)`` with the ends of ``init`` and the least bound that is found.

    Raises:
        ImportError: if scipy is not installed.
    """
    try:
        from scipy.optimize import LinearConstraint, minimize
    except ImportError:
        raise ImportError(
            "method 'dmn' needs scipy: pip install indis-diffusion[metrics]"
        ) from None
    if len(init) == 2:
        return init
    rows, least = spacing(init)
    start, options = init[1:-1].numpy(), {"args": (init, power, apart), "jac": True}
    ordered = LinearConstraint(rows, least, np.inf, keep_feasible=True)
    found = minimize(
        bound_and_slope, start, method="trust-constr", constraints=[ordered], **options
    )
    better = found.fun < bound_and_slope(start, init, power, apart)[0] and bool(
        (rows @ found.x >= least).all()
    )
    return torch.cat([init[:1], torch.from_numpy(found.x), init[-1:]]) if better else init


def bound_and_slope(
    inner: np.ndarray, ends: Tensor, power: int, apart: int
) -> tuple[float, np.ndarray]:
    """Return the bound of ``inner`` nodes between the first and last of ``ends``, and its
    gradient.
    """
    free = torch.from_numpy(inner).requires_grad_()
    with torch.enable_grad():
        bound = error_bound(torch.cat([ends[:1], free, ends[-1:]]), power, apart)
    return bound.item(), torch.autograd.grad(bound, free)[0].numpy()


def spacing(init: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and least values of ``rows @ inner >= least``, which keeps nodes between the ends
    of ``init`` in order.
    """
    steps, first, last = len(init) - 1, float(init[0]), float(init[-1])
    rows = np.eye(steps, steps - 1) - np.eye(steps, steps - 1, k=-1)
    least = np.full(steps, FLOOR * (last - first) / steps)
    # The ends are not free, so the first and the last difference have them on the right-hand side.
    least[[0, -1]] += first, -last
    return rows, least

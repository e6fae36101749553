r"""From logits to a discretization: how far a plan may move from its base grid (paper, Eq. 6-7).

Three choices that the paper leaves open are made here:

* There are N logits, not N + 1, because a logit at the boundary cancels in the normalisation.
* The softmax is relative to a *base grid*: zero logits give that grid bit for bit, so an untrained
  network is its base solver.
* Interval fractions have a floor, so times stay strictly decreasing for any logits and multistep
  weights stay finite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from indis.checks import require_choice
from indis.noise import Domain, NoiseSchedule, limit_shift, shifted
from indis.numerics import TIME_DTYPE, restored
from indis.plan import Discretization, Keep

Shift = Literal["relative", "gap", "additive"]
LOGIT_ROWS = 3  # tau, dtau, gamma


@dataclass(frozen=True)
class Bounds:
    """How far logits may move a discretization from its base grid.

    Sizes seen in peers' learned values: relative shifts up to 0.25, scales 0.6 ... 1.3 (DyWeight's
    released weights).

    Args:
        dtau: b in b tanh(o / 2) for time shifts; zero removes them exactly.
        gamma: The same for scales, around 1.
        weights: The same for corrections of the multistep weights.
        shift: The unit of ``dtau``. "relative" moves log-SNR by up to b (for EDM sigma is
            multiplied by up to e^b), "gap" moves by up to b of the interval that follows,
            "additive" is the paper's form in units of time.
        domain: The coordinate in which the softmax divides the range.
        keep: What a time shift preserves (:class:`Plan`). With "data", ``gamma`` is the change
            beyond that.
        floor: The least interval: each keeps ``floor * steps`` of its share of the base grid.

    Raises:
        ValueError: If a bound is negative, gamma could reach zero, a gap shift could pass the next
            node, or shift, domain or keep is unknown.
    """

    dtau: float = 0.5
    gamma: float = 0.5
    weights: float = 0.0
    shift: Shift = "relative"
    domain: Domain = "log_snr"
    keep: Keep = "answer"
    floor: float = 1e-4  # 0.1 % of sigma on EDM's range

    def __post_init__(self) -> None:
        limits = {"dtau": float("inf"), "gamma": 1, "weights": float("inf"), "floor": 0.01}
        for name, high in limits.items():
            if not 0 <= getattr(self, name) < high:
                raise ValueError(f"{name} must be in [0, {high}), got {getattr(self, name)}")
        if self.shift == "gap" and self.dtau >= 1:
            raise ValueError(f"dtau must be below 1 for shift 'gap', got {self.dtau}")
        require_choice("shift", self.shift, Shift)
        require_choice("domain", self.domain, Domain)
        require_choice("keep", self.keep, Keep)

    @classmethod
    def natural(cls, schedule: NoiseSchedule, **fields: Any) -> Bounds:
        """Return bounds in the terms of a schedule, changed by ``fields``.

        Shifts are relative where sigma spans decades, and a share of the interval for flows.
        """
        shift: Shift = "relative" if schedule.domain == "log_snr" else "gap"
        return replace(cls(shift=shift, domain=schedule.domain), **fields)


def coordinate(
    schedule: NoiseSchedule, domain: Domain
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return the maps from time into a domain and back."""
    if domain == "log_snr":
        return schedule.log_snr, schedule.time
    return (lambda t: t), (lambda t: t)


def from_logits(
    logits: Tensor, base: Tensor, schedule: NoiseSchedule, bounds: Bounds, *, to_zero: bool = False
) -> Discretization:
    """Turn logits into a discretization around a base grid (paper, Eq. 6-7).

    Args:
        logits: ``(grid, 3 + order, steps)``. Row 0 moves tau, row 1 Dtau, row 2 gamma; further
            rows are corrections of the multistep weights, newest first.
        base: The base grid ``(1, steps + 1)``.
        schedule: The noise schedule.
        bounds: How far each logit may move its number.
        to_zero: Whether the last step of ``base`` goes to sigma = 0; that step stays.

    Returns:
        The plan, float64 whatever the dtype of the logits.
    """
    logits, base = logits.to("cpu", TIME_DTYPE), base.to("cpu", TIME_DTYPE)
    inner = base.shape[1] - 1 - to_zero  # intervals that end at positive noise
    if inner:
        tau = _nodes(logits[:, 0, :inner], base[:, : inner + 1], schedule, bounds)
    else:  # nothing is left but the step to sigma = 0
        tau = base[:, :1].expand(len(logits), 1)
    if to_zero:
        tau = torch.cat([tau, base[:, -1:].expand(len(tau), 1)], dim=1)
    extra = logits[:, LOGIT_ROWS:]
    weights = _bounded(extra, bounds.weights).movedim(1, 2) if extra.shape[1] else None
    dtau = _shifts(_bounded(logits[:, 1], bounds.dtau), tau, schedule, bounds)
    gamma = 1 + _bounded(logits[:, 2], bounds.gamma)
    return Discretization(tau, dtau, gamma, weights, keep=bounds.keep, to_zero=to_zero)


def restart(
    base: Tensor,
    k: int,
    tau: Tensor,
    schedule: NoiseSchedule,
    bounds: Bounds,
    *,
    to_zero: bool = False,
) -> Tensor:
    """Return the rest of a base grid from node k on, when that node came to lie elsewhere.

    Intervals keep their proportions in the bounds' domain, and the end stays.

    Args:
        base: The base grid ``(1, steps + 1)``.
        k: The node.
        tau: Where it lies now, ``(grid,)``.
        schedule: The noise schedule.
        bounds: The bounds, for their domain.
        to_zero: Whether the last step of ``base`` goes to sigma = 0.

    Returns:
        The nodes ``(grid, steps + 1 - k)``.
    """
    base, tau = base.to("cpu", TIME_DTYPE), tau.to("cpu", TIME_DTYPE)
    first, tail = tau[:, None], base[:, -1:].expand(len(tau), 1)
    last = base.shape[1] - 1 - to_zero
    if k >= last:  # nothing is left but the step to sigma = 0
        return torch.cat([first, tail], dim=1)
    to, back = coordinate(schedule, bounds.domain)
    planned, level = to(base[:, k : last + 1]), to(tau)[:, None]
    passed = (planned - planned[:, :1]) / (planned[:, -1:] - planned[:, :1])
    inside = back(level + passed[:, 1:-1] * (planned[:, -1:] - level))
    # As in _nodes: where nothing has moved the last bit is restored, gradient kept.
    inside = restored(inside, base[:, k + 1 : last], first == base[:, k : k + 1])
    end = base[:, last : last + 1].expand(len(inside), 1)
    return torch.cat([first, inside, end] + [tail] * to_zero, dim=1)


def _bounded(logits: Tensor, bound: float) -> Tensor:
    """b tanh(o / 2)."""
    return bound * torch.tanh(logits / 2)


def _nodes(logits: Tensor, base: Tensor, schedule: NoiseSchedule, bounds: Bounds) -> Tensor:
    """Reweigh the interval fractions of the base grid. Zero logits give the base grid itself."""
    to, back = coordinate(schedule, bounds.domain)
    level = to(base)
    start, span = level[:, :1], level[:, -1:] - level[:, :1]
    fractions = level.diff(dim=1) / span
    kept = bounds.floor * fractions.shape[1]
    share = (1 - kept) * torch.softmax(fractions.log() + logits, dim=1) + kept * fractions
    inside = back(start + span * share.cumsum(1)[:, :-1])
    # The way into the domain and back rounds. Where nothing has moved, the last bit is restored.
    still = (logits == 0).all(dim=1, keepdim=True)
    inside = restored(inside, base[:, 1:-1], still)
    rows = len(inside)
    return torch.cat([base[:, :1].expand(rows, 1), inside, base[:, -1:].expand(rows, 1)], dim=1)


def _shifts(amount: Tensor, tau: Tensor, schedule: NoiseSchedule, bounds: Bounds) -> Tensor:
    """Dtau in units of time; positive asks at a noisier time."""
    asked = tau[:, :-1]
    if bounds.shift == "relative":
        shift = shifted(schedule, asked, amount) - asked
    else:
        shift = amount * (asked - tau[:, 1:]) if bounds.shift == "gap" else amount
    return limit_shift(schedule, asked, shift)

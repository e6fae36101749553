r"""Grids: the heuristic choices of the nodes tau, shared by all samples.

A grid is a function ``(schedule, steps) -> tau`` with ``tau`` of shape ``(1, steps + 1)``, float64,
strictly decreasing from ``t_max`` to ``t_min`` with both ends exact, but for a list, which ends
where it says. Formulas use the noise-to-signal ratio :math:`s = \sigma / \alpha`, which is the time
itself for EDM.

=================  =========================================================  =============================
name               evenly spaced                                              source
=================  =========================================================  =============================
natural            what suits the schedule: polynomial, or uniform for flows  this library's default
uniform            t                                                          paper, sec. 3.1
log_snr            log(alpha / sigma)                                         Lu et al., 2022 (DPM-Solver)
polynomial[:rho]   s^(1/rho), rho = 7                                         Karras et al., 2022, eq. 5
quadratic          sqrt(t)                                                    Song et al., 2020 (DDIM)
vp_time[:rho]      the time of a linear VP process with the same s, ^(1/rho)  Zhang & Chen, 2023 (DEIS)
flow_shift[:k]     t, then k t / (1 + (k - 1) t), k = 3                       Esser et al., 2024 (SD3), eq. 23
resolution[:n]     flow_shift with the shift of n image tokens, n = 4096      FLUX; "RDS"
list:t0,...,tN     nothing: these times, from t_max to where sampling stops   you
=================  =========================================================  =============================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from indis.noise import NoiseSchedule, end_levels, is_start_time
from indis.numerics import TIME_DTYPE

Grid = Callable[[NoiseSchedule, int], Tensor]


def ramp(
    schedule: NoiseSchedule,
    steps: int,
    to: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
) -> Tensor:
    """Nodes that are evenly spaced in the coordinate ``to(t)``, with both ends exact."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=TIME_DTYPE)
    first, last = to(ends)
    even = first + (last - first) * torch.linspace(0, 1, steps + 1, dtype=TIME_DTYPE)
    return torch.cat([ends[:1], back(even[1:-1]), ends[1:]])[None]


def ratio(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """Noise-to-signal ratio sigma / alpha."""
    return (-schedule.log_snr(t)).exp()


def natural(schedule: NoiseSchedule, steps: int) -> Tensor:
    """The grid that :func:`resolve_grid` names."""
    return named(resolve_grid("natural", schedule))(schedule, steps)


def uniform(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Even in time."""
    return ramp(schedule, steps, lambda t: t, lambda t: t)


def log_snr(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Even in log-SNR, which is cut at about 18 where a flow begins at pure noise or ends at pure
    data.
    """
    return ramp(schedule, steps, schedule.log_snr, schedule.time)


def polynomial(schedule: NoiseSchedule, steps: int, rho: float = 7.0) -> Tensor:
    """Even in (sigma / alpha)^(1 / rho); rho = 7 is EDM's.

    Raises:
        ValueError: if the schedule begins at pure noise or ends at pure data, where the ratio has
            no end.
    """
    _require_ends(schedule, "polynomial")
    return ramp(
        schedule,
        steps,
        lambda t: ratio(schedule, t) ** (1 / rho),
        lambda v: schedule.time(-rho * v.log()),
    )


def quadratic(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Even in the square root of time."""
    return ramp(schedule, steps, torch.sqrt, torch.square)


def vp_time(schedule: NoiseSchedule, steps: int, rho: float = 1.0) -> Tensor:
    """Even in u^(1 / rho), u the time of the linear VP process fitted to the schedule's ends
    ("time_uniform").

    Raises:
        ValueError: if the schedule begins at pure noise or ends at pure data, where there is
            nothing to fit to.
    """
    _require_ends(schedule, "vp_time")
    clock = VPClock.fit(schedule)
    return ramp(
        schedule,
        steps,
        lambda t: clock.time(ratio(schedule, t)) ** (1 / rho),
        lambda v: schedule.time(-clock.ratio(v**rho).log()),
    )


def flow_shift(schedule: NoiseSchedule, steps: int, shift: float = 3.0) -> Tensor:
    """Even in time, then moved towards noise: t -> shift t / (1 + (shift - 1) t).

    Raises:
        ValueError: if the schedule has times beyond 1, where the formula has a pole.
    """
    if schedule.t_max > 1:
        raise ValueError(f"a shifted grid needs times in [0, 1], got t_max = {schedule.t_max:g}")
    return ramp(
        schedule,
        steps,
        lambda t: t / (shift - (shift - 1) * t),
        lambda u: shift * u / (1 + (shift - 1) * u),
    )


def resolution(schedule: NoiseSchedule, steps: int, tokens: float = 4096) -> Tensor:
    """FLUX's resolution-dependent shift exp(mu), mu linear from 0.5 at 256 image tokens to 1.15 at
    4096.
    """
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    return flow_shift(schedule, steps, math.exp(mu))


def listed(schedule: NoiseSchedule, times: Sequence[float]) -> Tensor:
    """A grid from explicit times, first to last.

    Raises:
        ValueError: if they do not decrease strictly or leave the schedule's range.
    """
    tau = torch.tensor(list(times), dtype=TIME_DTYPE)
    if len(tau) < 2 or not bool((tau.diff() < 0).all()):
        raise ValueError(
            f"times must be at least two strictly decreasing numbers, got {list(times)}"
        )
    if tau[0] > schedule.t_max or tau[-1] < schedule.t_min:
        raise ValueError(
            f"times must lie in [{schedule.t_min:g}, {schedule.t_max:g}], got {list(times)}"
        )
    return tau[None]


GRIDS: dict[str, Callable[..., Tensor]] = {
    "natural": natural,
    "uniform": uniform,
    "log_snr": log_snr,
    "polynomial": polynomial,
    "quadratic": quadratic,
    "vp_time": vp_time,
    "flow_shift": flow_shift,
    "resolution": resolution,
}


LIST = "list"  # of times, so a grid of one number of steps alone
NAMES = (*GRIDS, LIST)


def named(spec: str) -> Grid:
    """The grid that ``name`` or ``name:parameter`` means, for example ``polynomial:3`` or
    ``list:80,10,1,0.002``.

    Raises:
        ValueError: if the name is unknown, or the parameter no positive number or list of numbers.
    """
    name, _, parameter = spec.partition(":")
    if name not in NAMES:
        raise ValueError(f"grid must be one of {', '.join(NAMES)}, got {name!r}")
    if name == LIST:
        return partial(_given, times=_times(parameter, spec))
    if not parameter:
        return GRIDS[name]
    keywords = {
        "polynomial": "rho",
        "vp_time": "rho",
        "flow_shift": "shift",
        "resolution": "tokens",
    }
    if name not in keywords:
        raise ValueError(f"grid {name} takes no parameter, got {spec!r}")
    return partial(GRIDS[name], **{keywords[name]: _positive(parameter, spec)})


def resolve_grid(spec: str, schedule: NoiseSchedule) -> str:
    """What "natural" means for a schedule; any other grid is what it is called.

    EDM's polynomial where sigma spans decades; uniform for flows, and where sigma / alpha has no
    end.
    """
    if spec != "natural":
        return spec
    return (
        "polynomial:7" if schedule.domain == "log_snr" and all(end_levels(schedule)) else "uniform"
    )


def _given(schedule: NoiseSchedule, steps: int, times: Sequence[float]) -> Tensor:
    """:func:`listed`, if it begins where the noise is and has so many steps."""
    tau = listed(schedule, times)
    if len(times) != steps + 1:
        raise ValueError(
            f"steps must be {len(times) - 1} for a grid of {len(times)} listed times, got {steps}"
        )
    if not is_start_time(schedule, times[0]):
        raise ValueError(
            f"a listed grid must begin at t_max = {schedule.t_max:g}, got {times[0]:g}"
        )
    return tau


def _require_ends(schedule: NoiseSchedule, name: str) -> None:
    """A grid in sigma / alpha would put nearly all nodes at an end where that is infinite or
    zero.
    """
    alpha, sigma = end_levels(schedule)
    if not (alpha > 0 and sigma > 0):
        raise ValueError(
            f"grid {name} needs alpha(t_max) > 0 and sigma(t_min) > 0, got {alpha:g} and {sigma:g}; take "
            "uniform or flow_shift for such a schedule"
        )


def _times(text: str, spec: str) -> list[float]:
    try:
        times = [float(part) for part in text.split(",")]
    except ValueError:
        times = []
    if len(times) < 2 or not all(map(math.isfinite, times)):
        raise ValueError(f"grid list needs at least two numbers with commas between, got {spec!r}")
    return times


def _positive(text: str, spec: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"grid parameter must be a positive number, got {spec!r}")
    return value


@dataclass(frozen=True)
class VPClock:
    """The linear VP process whose sigma / alpha meets a schedule's ends at u = 1 and u = 0.001.

    sigma / alpha = sqrt(exp(beta_d u^2 / 2 + beta_min u) - 1).
    """

    beta_d: float
    beta_min: float

    @classmethod
    def fit(cls, schedule: NoiseSchedule, start: float = 1e-3) -> VPClock:
        """Solve the two end conditions for the two betas."""
        ends = ratio(schedule, torch.tensor([schedule.t_max, schedule.t_min], dtype=TIME_DTYPE))
        high, low = torch.log1p(ends**2).tolist()
        beta_d = 2 * (low / start - high) / (start - 1)
        return cls(beta_d, high - beta_d / 2)

    def ratio(self, u: Tensor) -> Tensor:
        """Sigma / alpha at VP time u."""
        return torch.expm1(self.beta_d * u**2 / 2 + self.beta_min * u).sqrt()

    def time(self, ratio: Tensor) -> Tensor:
        """The inverse of :meth:`ratio`, in the form that does not cancel for small ratios."""
        integral = torch.log1p(ratio**2)
        return (
            2 * integral / (self.beta_min + (self.beta_min**2 + 2 * self.beta_d * integral).sqrt())
        )

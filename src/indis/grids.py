r"""Grids: heuristic choices of the nodes tau, shared by all samples.

A grid is a function ``(schedule, steps) -> tau`` with ``tau`` of shape ``(1, steps + 1)``, float64,
strictly decreasing from ``t_max`` to ``t_min`` with both ends exact. Formulas use the
noise-to-signal ratio :math:`s = \sigma / \alpha`, which is the time itself for EDM.

=====================  ====================================================  ======================
name                   evenly spaced                                         source
=====================  ====================================================  ======================
natural                what suits the schedule, see :func:`resolve_grid`     this library's default
uniform                t                                                     paper, sec. 3.1
log_snr                log(alpha / sigma)                                    Lu et al., 2022
polynomial[:rho[,k]]   s^(1/rho), rho = 7; log(s), sparsely, above k         Karras et al., 2022
quadratic              sqrt(t)                                               Song et al., 2020
vp_time[:rho]          time^(1/rho) of a linear VP process with the same s   Zhang & Chen, 2023
flow_shift[:k]         t, then k t / (1 + (k - 1) t), k = 3                  Esser et al., 2024
resolution[:n]         flow_shift with the shift of n image tokens, 4096     FLUX
list:t0,...,tN         nothing: these times, from t_max to the last node     you
NAME+zero              what NAME says, in one step less; the last step goes  EDM, DDIM
                       from t_min to sigma = 0
=====================  ====================================================  ======================

A list may be typed with three decimals: its ends are moved to t_max and t_min where they are these
times, rounded. A list that ends in 0 goes to sigma = 0. For a table, whose times are step indices
and may end at index 0, that end is the index -1 (:func:`~indis.noise.zero_time`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from indis.checks import number_text
from indis.noise import (
    DiscreteVP,
    NoiseSchedule,
    TableVP,
    VPClock,
    end_levels,
    is_start_time,
    ratio,
    zero_time,
)
from indis.numerics import TIME_DTYPE

Grid = Callable[[NoiseSchedule, int], Tensor]


def ramp(
    schedule: NoiseSchedule,
    steps: int,
    to: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return nodes evenly spaced in the coordinate ``to(t)``, with both ends exact.

    Args:
        schedule: where t_max and t_min come from.
        steps: the number N of intervals.
        to: the coordinate of times of any shape.
        back: its inverse.

    Returns:
        Nodes ``(1, steps + 1)``, float64.

    Raises:
        ValueError: if there is less than one step.
    """
    _require_steps(steps)
    ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=TIME_DTYPE)
    first, last = to(ends)
    even = first + (last - first) * torch.linspace(0, 1, steps + 1, dtype=TIME_DTYPE)
    return torch.cat([ends[:1], back(even[1:-1]), ends[1:]])[None]


def natural(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Return the grid that :func:`resolve_grid` chooses for the schedule."""
    return named(resolve_grid("natural", schedule))(schedule, steps)


def uniform(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Return nodes evenly spaced in time."""
    return ramp(schedule, steps, lambda t: t, lambda t: t)


def log_snr(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Return nodes evenly spaced in log-SNR.

    It is cut at about 18 where a flow begins at pure noise or ends at pure data.
    """
    return ramp(schedule, steps, schedule.log_snr, schedule.time)


def polynomial(
    schedule: NoiseSchedule, steps: int, rho: float = 7.0, knee: float = math.inf
) -> Tensor:
    """Return nodes evenly spaced in s^(1 / rho), s = sigma / alpha (Karras et al., 2022, eq. 5).

    Args:
        schedule: any noise schedule.
        steps: the number N of intervals.
        rho: the exponent; 7 is EDM's.
        knee: the s above which nodes are spaced in log(s) instead, a quarter as densely as they
            would be there. If s has no end, no node but the first lies above the knee.

    Returns:
        Nodes ``(1, steps + 1)``, float64.

    Raises:
        ValueError: if the schedule ends at pure data, or begins at pure noise without a knee, or if
            the knee lies below s at t_min.
    """
    _require_ends(schedule, "polynomial", begin=knee == math.inf)
    least = float(ratio(schedule, torch.tensor(schedule.t_min, dtype=TIME_DTYPE)))
    if not knee > least:
        raise ValueError(
            f"the knee of grid polynomial must exceed sigma / alpha at t_min, "
            f"{number_text(least)}, got {number_text(knee)}"
        )
    top = knee ** (1 / rho)
    slope = top / rho / 4  # of the coordinate in log(s) above the knee

    def to(t: Tensor) -> Tensor:
        s = ratio(schedule, t)
        sparse = knee < math.inf and end_levels(schedule)[0] > 0
        above = slope * (s / knee).clamp_min(1).log() if sparse else 0
        return s.clamp_max(knee) ** (1 / rho) + above

    def back(v: Tensor) -> Tensor:
        above = (v - top).clamp_min(0) / slope if knee < math.inf else 0
        return schedule.time(-rho * v.clamp_max(top).log() - above)

    return ramp(schedule, steps, to, back)


def quadratic(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Return nodes evenly spaced in the square root of time."""
    return ramp(schedule, steps, torch.sqrt, torch.square)


def vp_time(schedule: NoiseSchedule, steps: int, rho: float = 1.0) -> Tensor:
    """Return nodes evenly spaced in u^(1 / rho), u the time of a linear VP process.

    That process is fitted to the schedule's ends ("time_uniform" of Zhang & Chen, 2023).

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
    """Return nodes evenly spaced in time and then moved: t -> shift t / (1 + (shift - 1) t).

    A shift above 1 moves them towards noise (Esser et al., 2024, eq. 23).

    Raises:
        ValueError: if the schedule has times beyond 1, where the formula has a pole.
    """
    if schedule.t_max > 1:
        raise ValueError(
            f"a shifted grid needs times in [0, 1], got t_max = {number_text(schedule.t_max)}"
        )
    return ramp(
        schedule,
        steps,
        lambda t: t / (shift - (shift - 1) * t),
        lambda u: shift * u / (1 + (shift - 1) * u),
    )


def resolution(schedule: NoiseSchedule, steps: int, tokens: float = 4096) -> Tensor:
    """Return FLUX's :func:`flow_shift` by exp(mu), mu 0.5 at 256 image tokens, 1.15 at 4096."""
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    return flow_shift(schedule, steps, math.exp(mu))


def listed(schedule: NoiseSchedule, times: Sequence[float]) -> Tensor:
    """Return a grid of explicit times.

    Ends that are the schedule's, rounded to three decimals or more, are moved to these. A last time
    of 0 below t_min, or of :func:`~indis.noise.zero_time`, means a last step to sigma = 0.

    Args:
        schedule: the schedule whose times these are.
        times: at least two times, first to last.

    Returns:
        Nodes ``(1, len(times))``, float64.

    Raises:
        ValueError: if they do not decrease strictly or leave the schedule's range.
    """
    inside, zero = [float(t) for t in times], zero_time(schedule)
    to_zero = len(inside) > 1 and inside[-1] in (zero, 0) and inside[-1] < schedule.t_min
    if to_zero:
        inside.pop()
    if inside:
        inside[-1] = _unrounded(inside[-1], schedule.t_min)
        inside[0] = _unrounded(inside[0], schedule.t_max)
    tau = torch.tensor([*inside, zero] if to_zero else inside, dtype=TIME_DTYPE)
    if len(tau) < 2 or not bool((tau.diff() < 0).all()):
        raise ValueError(
            f"times must be at least two strictly decreasing numbers, got {list(times)}"
        )
    if inside[0] > schedule.t_max or inside[-1] < schedule.t_min:
        low, high = number_text(schedule.t_min), number_text(schedule.t_max)
        raise ValueError(f"times must lie in [{low}, {high}], got {list(times)}")
    return tau[None]


def append_zero(schedule: NoiseSchedule, tau: Tensor) -> Tensor:
    """Return nodes with one more step, from their end to sigma = 0.

    That step needs no further evaluation: it returns the data prediction of the node before. So N
    evaluations are a grid of N - 1 intervals down to t_min and the step to zero. EDM's published
    setting of 18 Heun steps and 35 evaluations is ``polynomial+zero`` with 18 steps.

    Returns:
        Nodes ``(grid, steps + 2)``, one more than ``tau``, down to
        :func:`~indis.noise.zero_time`.

    Raises:
        ValueError: if the nodes end at sigma = 0 already.
    """
    zero = zero_time(schedule)
    if not bool((tau[:, -1] > zero).all()):
        raise ValueError("tau must end before sigma = 0 to have a step to it, but it ends there")
    return torch.cat([tau, torch.full_like(tau[:, :1], zero)], dim=1)


def ends_at_zero(schedule: NoiseSchedule, tau: Tensor) -> bool:
    """Return whether the last step of ``tau`` ``(grid, steps + 1)`` goes from t_min to sigma = 0.

    It is false for a flow with t_min = 0: its grids end there like any other at t_min.
    """
    zero = zero_time(schedule)
    return zero < schedule.t_min and bool((tau[:, -1] == zero).all())


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
LIST = "list"  # of times
NAMES = (*GRIDS, LIST)
ZERO = "zero"  # after a plus: a last step to sigma = 0
PARAMETERS = {
    "polynomial": ("rho", "knee"),
    "vp_time": ("rho",),
    "flow_shift": ("shift",),
    "resolution": ("tokens",),
}
NOISE_RATIO = 20.0  # sigma / alpha above which a state is noise


def named(spec: str) -> Grid:
    """Return the grid of a name, such as "uniform", "polynomial:3" or "list:80,10,1,0.002".

    Args:
        spec: a name of the table above, with its parameters after a colon. "+zero" at its end adds
            a last step to sigma = 0.

    Raises:
        ValueError: if the name is unknown, or the parameter is no positive number or list of
            numbers.
    """
    text, plus, end = spec.partition("+")
    if plus and end != ZERO:
        raise ValueError(f"grid may end in +{ZERO} and in nothing else after a plus, got {spec!r}")
    name, _, parameter = text.partition(":")
    if name not in NAMES:
        raise ValueError(f"grid must be one of {', '.join(NAMES)}, got {name!r}")
    if name == LIST:
        return partial(_given, times=_times(parameter, spec), to_zero=bool(plus))
    grid: Grid = GRIDS[name]
    if parameter:
        grid = partial(GRIDS[name], **_parameters(name, parameter, spec))
    return partial(_with_zero, grid=grid) if plus else grid


def resolve_grid(spec: str, schedule: NoiseSchedule, *, to_zero: bool = True) -> str:
    """Return the name of the grid that "natural" means for a schedule, or ``spec`` itself.

    A table's last index still holds noise (3 % for Stable Diffusion), so its natural grid goes on
    to sigma = 0, unless ``to_zero`` is false.

    Natural is EDM's polynomial where sigma spans decades, and uniform for flows and where sigma /
    alpha has no end. For a table it is the polynomial with a knee at sigma / alpha = 20. That is
    the same grid for Stable Diffusion (14.6 at most). A cosine table goes on to 20 000, where 15 of
    21 nodes of EDM's grid would lie in noise. One step out of it would not do either: it would
    multiply the error of a noise prediction by the ratio of its ends.
    """
    if spec.partition("+")[0] != "natural":
        return spec
    name = "uniform"
    if schedule.domain == "log_snr" and all(end_levels(schedule)):
        name = "polynomial:7"
    if isinstance(schedule, DiscreteVP | TableVP) and schedule.domain == "log_snr":
        most = float(ratio(schedule, torch.tensor(schedule.t_max, dtype=TIME_DTYPE)))
        name = "polynomial:7" if most <= NOISE_RATIO else f"polynomial:7,{NOISE_RATIO:g}"
        if to_zero and spec == "natural":
            return f"{name}+{ZERO}"
    return name + spec.removeprefix("natural")


def _given(schedule: NoiseSchedule, steps: int, times: Sequence[float], to_zero: bool) -> Tensor:
    """:func:`listed`, if it begins at t_max and has so many steps."""
    times = [*times, zero_time(schedule)] if to_zero else times
    tau = listed(schedule, times)
    if len(times) != steps + 1:
        raise ValueError(
            f"steps must be {len(times) - 1} for a grid of {len(times)} listed times, got {steps}"
        )
    if not is_start_time(schedule, float(tau[0, 0])):
        raise ValueError(
            f"a listed grid must begin at t_max = {number_text(schedule.t_max)}, "
            f"got {number_text(times[0])}"
        )
    return tau


def _with_zero(schedule: NoiseSchedule, steps: int, grid: Grid) -> Tensor:
    """The grid in one step less, and a step to sigma = 0, unless t_min is there already."""
    _require_steps(steps)
    if grid is natural:  # which goes to zero by itself for a table
        grid = named(resolve_grid("natural", schedule, to_zero=False))
    if schedule.t_min == zero_time(schedule):
        return grid(schedule, steps)
    if steps == 1:
        return torch.tensor([[schedule.t_max, zero_time(schedule)]], dtype=TIME_DTYPE)
    return append_zero(schedule, grid(schedule, steps - 1))


def _unrounded(time: float, exact: float) -> float:
    """``exact`` if ``time`` is that number rounded to three decimals or more, else ``time``."""
    rounded = any(time == round(exact, digits) for digits in range(3, 10))
    return exact if rounded or math.isclose(time, exact, rel_tol=1e-6) else time


def _require_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")


def _require_ends(schedule: NoiseSchedule, name: str, begin: bool = True) -> None:
    """Refuse ends where sigma / alpha is infinite or zero: nearly all nodes would lie there."""
    alpha, sigma = end_levels(schedule)
    if not ((alpha > 0 or not begin) and sigma > 0):
        raise ValueError(
            f"grid {name} needs alpha(t_max) > 0 and sigma(t_min) > 0, got {alpha:g} and "
            f"{sigma:g}; take uniform or flow_shift for such a schedule"
        )


def _times(text: str, spec: str) -> list[float]:
    times = _numbers(text)
    if len(times) < 2 or not all(map(math.isfinite, times)):
        raise ValueError(f"grid list needs at least two numbers with commas between, got {spec!r}")
    return times


def _parameters(name: str, text: str, spec: str) -> dict[str, float]:
    keywords = PARAMETERS.get(name, ())
    if not keywords:
        raise ValueError(f"grid {name} takes no parameter, got {spec!r}")
    values = _numbers(text)
    if not 0 < len(values) <= len(keywords) or not all(0 < v < math.inf for v in values):
        what = "a positive number" + " or two" * (len(keywords) > 1)
        raise ValueError(f"grid parameter must be {what}, got {spec!r}")
    return dict(zip(keywords, values, strict=False))


def _numbers(text: str) -> list[float]:
    """The numbers of a text with commas between, none if it is something else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []

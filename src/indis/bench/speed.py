"""How long the sampling loop takes, as ratios to diffusers' schedulers.

The network only scales its input, so that what is timed is the loop. Both sides do the same
arithmetic: :func:`compare` first checks that they end at the same samples. A run is a whole call:
diffusers sets its timesteps, as a pipeline does for every call, and takes all steps; INDIS makes
its plan and takes all steps. The two sides alternate, and a ratio is taken within each pair, so a
machine that is busy for a while slows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any, Literal

import torch
from torch import Tensor

from indis import solvers
from indis.denoise import Denoiser, Form, Wrapped
from indis.noise import DiscreteVP, NoiseSchedule, RectifiedFlow, prior
from indis.plan import Discretization
from indis.policies import Fixed
from indis.sampler import Sampler

STEPS = 5
SCALE = 0.3  # what the network multiplies its input by
AGREEMENT = 1e-5  # largest difference of the two sides, relative to the largest value
PlanKind = Literal["shared", "per sample", "phi"]
PLANS: tuple[PlanKind, ...] = ("shared", "per sample", "phi")
# Stable Diffusion's table of noise levels, ended at its last entry.
TABLE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "final_sigmas_type": "sigma_min",
}


@dataclass(frozen=True)
class Case:
    """Samples of one size, a solver, diffusers' scheduler for it, and the ratio that we aim at."""

    shape: tuple[int, ...]
    batch: int
    solver: str
    scheduler: str
    goal: float

    @property
    def flow(self) -> bool:
        """Whether the schedule is a flow, in time from 1 to 0."""
        return self.scheduler.startswith("FlowMatch")


MULTISTEP, FLOW = "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"
UNIPC = "UniPCMultistepScheduler"
CASES = (
    Case((3, 32, 32), 1, "dpmpp:2", MULTISTEP, 1.0),
    Case((3, 32, 32), 1, "euler", FLOW, 1.5),
    Case((3, 32, 32), 64, "dpmpp:2", MULTISTEP, 0.8),
    Case((3, 32, 32), 64, "euler", FLOW, 1.3),
    Case((16, 128, 128), 1, "dpmpp:2", MULTISTEP, 0.8),
    Case((16, 128, 128), 1, "euler", FLOW, 1.2),
    Case((16, 128, 128), 4, "unipc:2", UNIPC, 0.7),
    Case((16, 128, 128), 4, "euler", FLOW, 1.3),
)


@dataclass(frozen=True)
class Timing:
    """Medians and quartiles of runs that alternated; seconds are of the processor."""

    ratio: float
    low: float
    high: float
    ours: float
    theirs: float
    rounds: int


def solver_rows(seconds: float, cases: tuple[Case, ...] = CASES) -> Iterator[dict[str, Any]]:
    """Yield one row for each case and kind of plan.

    Args:
        seconds: How long each row is timed, at least; never fewer than 15 pairs of runs.
        cases: What is timed.

    Raises:
        RuntimeError: if the two sides do not end at the same samples.
    """
    for case in cases:
        for kind in PLANS:
            yield compare(case, kind, seconds)


def compare(case: Case, kind: PlanKind, seconds: float) -> dict[str, Any]:
    """Return the row of a case: its ratio with quartiles, and how far the samples differ.

    Plans of other kinds than "shared" are timed against the same scheduler, which has one grid for
    all samples. "per sample" has nodes of its own for every sample; "phi" also time shifts and
    output scales, as an instance-aware policy makes them.

    Raises:
        RuntimeError: if the two sides do not end at the same samples on the shared grid.
    """
    noise = torch.randn(case.batch, *case.shape, generator=torch.Generator().manual_seed(0))
    scheduler = _scheduler(case)
    tau, denoiser = _grid(case, scheduler), _network(case)
    start = prior(denoiser.schedule, noise)
    theirs = _their_run(case, scheduler, start)
    shared = _our_run(case, "shared", tau, denoiser, noise)
    with torch.no_grad():
        ends = shared(), theirs()
        difference = float((ends[0] - ends[1]).abs().max() / ends[1].abs().max())
        if not difference < AGREEMENT:
            raise RuntimeError(
                f"{case.solver} and {case.scheduler} must end at the same samples, got a "
                f"difference of {difference:.1e}"
            )
        timing = alternate(_our_run(case, kind, tau, denoiser, noise), theirs, seconds)
    row = {
        "shape": list(case.shape),
        "batch": case.batch,
        "solver": case.solver,
        "scheduler": case.scheduler,
        "plan": kind,
        "goal": case.goal,
        "difference": difference,
    }
    return row | asdict(timing)


def network_row(seconds: float, width: int = 128, batch: int = 2) -> dict[str, Any]:
    """Return how long a call of EDM's CIFAR-10 network takes against diffusers' of the same size.

    Both have three levels of twice the width, four blocks a level and attention at 16 x 16, on
    pictures of 32 x 32.

    Args:
        seconds: How long it is timed, at least.
        width: The network's width; the published one is 128.
        batch: Number of pictures in a call.
    """
    from diffusers import UNet2DModel

    from indis.models.edm.networks import SongUNet

    ours = SongUNet(32, 3, 3, augment_dim=9, model_channels=width, channel_mult=[2, 2, 2])
    ours.lay_out()  # as the model family does
    theirs = UNet2DModel(
        sample_size=32,
        block_out_channels=(2 * width,) * 3,
        layers_per_block=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2 * width,
        norm_num_groups=min(32, width // 2),
    )
    for network in (ours, theirs):
        network.eval().requires_grad_(False)
    x, level = torch.randn(batch, 3, 32, 32), torch.linspace(-1, 1, batch)
    with torch.no_grad():
        timing = alternate(lambda: ours(x, level), lambda: theirs(x, level), seconds)
    sizes = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in (("parameters", ours), ("their_parameters", theirs))
    }
    return (
        {"network": "SongUNet", "against": "UNet2DModel", "batch": batch} | sizes | asdict(timing)
    )


def alternate(
    ours: Callable[[], object], theirs: Callable[[], object], seconds: float, least: int = 15
) -> Timing:
    """Time two functions in turn, each going first in every other pair.

    Args:
        ours: The function whose time is the numerator.
        theirs: The function whose time is the denominator.
        seconds: How long to go on, in seconds of the wall.
        least: The number of pairs that are timed at least.
    """
    runs = (ours, theirs)
    for run in runs:  # caches and allocators are warm from here on
        run()
    times: list[list[float]] = []
    until = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < until:
        first = len(times) % 2
        pair = {number: _seconds(runs[number]) for number in (first, 1 - first)}
        times.append([pair[0], pair[1]])
    low, middle, high = quantiles([a / b for a, b in times], n=4, method="inclusive")
    own, other = (median(column) for column in zip(*times, strict=True))
    return Timing(middle, low, high, own, other, len(times))


def _seconds(run: Callable[[], object]) -> float:
    """Processor time, which other programs on the machine do not add to."""
    started = time.process_time()
    run()
    return time.process_time() - started


def _network(case: Case) -> Denoiser:
    schedule: NoiseSchedule = RectifiedFlow() if case.flow else DiscreteVP()
    form = Form.VELOCITY if case.flow else Form.NOISE
    return Wrapped(lambda x, t, condition: SCALE * x, schedule, case.shape, form)


def _scheduler(case: Case) -> Any:
    """Diffusers' scheduler with its timesteps set."""
    import diffusers

    kind = getattr(diffusers, case.scheduler)
    scheduler = kind() if case.flow else kind(**TABLE)
    _set_timesteps(case, scheduler)
    return scheduler


def _set_timesteps(case: Case, scheduler: Any) -> None:
    if case.flow:
        scheduler.set_timesteps(sigmas=[1 - k / STEPS for k in range(STEPS)])
    else:
        scheduler.set_timesteps(STEPS)


def _grid(case: Case, scheduler: Any) -> Tensor:
    """The scheduler's nodes ``(1, STEPS + 1)`` in the times of our schedule."""
    if case.flow:
        return scheduler.sigmas.double()[None]
    return torch.cat([scheduler.timesteps.double(), torch.zeros(1, dtype=torch.float64)])[None]


def _their_run(case: Case, scheduler: Any, start: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        _set_timesteps(case, scheduler)
        x = start
        for t in scheduler.timesteps:
            x = scheduler.step(SCALE * x, t, x, return_dict=False)[0]
        return x

    return run


def _our_run(
    case: Case, kind: PlanKind, tau: Tensor, denoiser: Denoiser, noise: Tensor
) -> Callable[[], Tensor]:
    solver = solvers.named(case.solver)
    if kind == "shared":
        sampler = Sampler(Fixed(tau), solver)
        return lambda: sampler(denoiser, noise)
    plan = _own_plans(tau, case.batch, shifts=kind == "phi")
    return lambda: solvers.solve(denoiser, prior(denoiser.schedule, noise), plan, solver)


def _own_plans(tau: Tensor, batch: int, *, shifts: bool) -> Discretization:
    """A plan for each sample near the grid ``tau``; with shifts and scales unless told not to."""
    generator = torch.Generator().manual_seed(1)

    def spread(columns: int) -> Tensor:
        return torch.rand(batch, columns, generator=generator, dtype=tau.dtype) - 0.5

    inside = tau[:, 1:-1] + 0.2 * tau.diff(dim=1)[:, 1:] * spread(STEPS - 1)
    ends = tau[:, :1].expand(batch, 1), tau[:, -1:].expand(batch, 1)
    nodes = torch.cat([ends[0], inside, ends[1]], dim=1)
    plan = Discretization.plain(nodes)
    if not shifts:
        return plan
    # The first shift leads away from the start of a flow, beyond which there is no network.
    dtau = 0.1 * nodes.diff(dim=1) * (spread(STEPS) + 0.5)
    return Discretization(nodes, dtau, 1 + 0.1 * spread(STEPS), keep="data")

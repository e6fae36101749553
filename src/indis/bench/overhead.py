"""What a policy costs beside the network: sampling with it against sampling with one fixed plan of
the same steps.

The fixed plan is the policy's own for one sample, given to all: the same solver, evaluations and
freedoms, and nothing to decide. Runs alternate, and a ratio is taken within each pair, so that a
machine that is busy for a while slows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import quantiles
from typing import Any

import torch

from indis.denoise import Denoiser, device_of, to_device_of
from indis.endpoints import noise_from_seeds
from indis.policies import Fixed
from indis.sampler import Sampler


def pairs(sampler: Sampler, denoiser: Denoiser, batch: int, repeats: int) -> Iterator[float]:
    """``repeats`` ratios of the time that a batch takes with the policy to the time with a fixed
    plan.

    Processor time on a CPU, time on the wall elsewhere. One run of each goes before and is not
    timed.
    """
    seeds = list(range(batch))
    noise, condition = (
        to_device_of(noise_from_seeds(seeds, denoiser.shape), denoiser),
        to_device_of(denoiser.condition(seeds), denoiser),
    )
    own = to_device_of(sampler, denoiser)
    with torch.inference_mode():
        fixed = Sampler(
            Fixed(own.realized_plan(denoiser, noise, condition)[:1]), own.solver, own.analytic_first
        )
    timed = [
        _timer(partial(s, denoiser, noise, condition), denoiser)
        for s in (own, to_device_of(fixed, denoiser))
    ]
    for run in timed:
        run()
    for number in range(repeats):
        first = number % 2  # which goes first takes turns
        times = {k: timed[k]() for k in (first, 1 - first)}
        yield times[0] / times[1]


def overhead(ratios: list[float]) -> dict[str, Any]:
    """Median and quartiles of the ratios, less one."""
    low, middle, high = (value - 1 for value in quantiles(ratios, n=4, method="inclusive"))
    return {"overhead": middle, "low": low, "high": high, "repeats": len(ratios)}


def _timer(draw: Callable[[], Any], denoiser: Denoiser) -> Callable[[], float]:
    """Runs ``draw`` and returns how long it took, kernels on a device included."""
    device = device_of(denoiser)
    cpu = device.type == "cpu"
    clock = time.process_time if cpu else time.perf_counter

    def run() -> float:
        started = clock()
        with torch.inference_mode():
            draw()
        if not cpu:
            torch.cuda.synchronize(device)
        return clock() - started

    return run

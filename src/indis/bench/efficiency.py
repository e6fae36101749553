"""What else a user waits for: a fit's throughput, its peak memory, and the start of the commands.

The fit is timed against the plainest correct training loop on the same network, policy, solver and
loss. The two alternate, as in :mod:`indis.bench.speed`. Memory and start-up are measured in
processes of their own.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from indis.bench.speed import alternate
from indis.denoise import Denoiser
from indis.endpoints import Endpoints, teach
from indis.losses import Loss, mse
from indis.methods import INDIS, heuristic
from indis.models import fashion
from indis.noise import prior
from indis.plan import Discretization
from indis.policies import Policy
from indis.recipe import Recipe
from indis.tuning import Fit

BATCH, ITERATIONS = 32, 4  # endpoints in an iteration, iterations in a timed run
MANY = 128  # endpoints in the iteration whose memory is measured
AGREEMENT = 1e-4  # largest relative difference of the losses on both sides
MEGABYTE = 2**20


def fit_row(seconds: float, steps: int = 3) -> dict[str, Any]:
    """Return how many samples a second a fit works through, as a ratio to the plainest loop.

    Both fit phi with timesteps and output scales on the shipped Fashion-MNIST model, with Euler
    steps and the mean square error. A fit adds to the plain loop its warm-up and cosine, clipped
    gradients, rates by group, and one check a step that all is finite.

    Args:
        seconds: how long the two are timed, in seconds of the wall.
        steps: number of steps of the sampler.

    Raises:
        RuntimeError: if the two sides do not compute the same loss.
    """
    denoiser = fashion.load()
    data = teach(denoiser, heuristic(denoiser, solver="euler", steps=4), range(4 * BATCH))
    process = _fit(denoiser, data, steps, ITERATIONS * 10_000)
    policy = process.sampler.policy
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-4)
    index = process.batch(0)
    with torch.no_grad():
        ours = process.losses(process.sampler, data[index]).mean()
        plain = _plain_loss(policy, denoiser, data[index], mse)
    if not abs(ours - plain) < AGREEMENT * plain:
        raise RuntimeError(
            f"the fit and the plain loop must compute the same loss, got {ours} and {plain}"
        )
    descent = process.descent()

    def fit() -> None:
        for _ in range(ITERATIONS):
            next(descent)

    def train() -> None:
        for step in range(ITERATIONS):
            optimizer.zero_grad()
            _plain_loss(policy, denoiser, data[process.batch(step)], mse).backward()
            optimizer.step()

    timing = alternate(fit, train, seconds, least=10)
    count = ITERATIONS * BATCH
    return {
        "model": "fashion",
        "steps": steps,
        "batch": BATCH,
        "ratio": 1 / timing.ratio,
        "low": 1 / timing.high,
        "high": 1 / timing.low,
        "ours": count / timing.ours,
        "theirs": count / timing.theirs,
        "rounds": timing.rounds,
        "goal": 1.0,
    }


def _plain_loss(policy: Policy, denoiser: Denoiser, part: Endpoints, loss: Loss) -> Tensor:
    """Euler's method with output scales, written out (paper, Eq. 2 and 5)."""
    plan = policy(part.noise, part.condition.features)
    assert isinstance(plan, Discretization)
    x = prior(denoiser.schedule, part.noise)
    tau, gamma = plan.tau.to(x.dtype), plan.gamma.to(x.dtype)
    for k in range(tau.shape[1] - 1):
        answer = denoiser(x, tau[:, k].expand(len(x)), part.condition)
        step = (tau[:, k + 1] - tau[:, k]) * gamma[:, k]
        x = x + step.reshape(-1, *[1] * (x.ndim - 1)) * answer
    return loss(x, part.target).mean()


def _fit(denoiser: Denoiser, data: Endpoints, steps: int, iterations: int, **settings: Any) -> Fit:
    settings = {"batch": BATCH} | settings
    recipe = Recipe(iterations=iterations, holdout=0, probes=0, settle=0, **settings)
    method = INDIS(steps=steps, solver="euler", dtau=0.0, recipe=recipe)
    process = method.tuning(denoiser, data, mse)
    assert isinstance(process, Fit)
    return process


def memory_rows(steps: tuple[int, int] = (3, 7)) -> list[dict[str, Any]]:
    """Return the peak memory of a fit for two numbers of steps, with and without ``recompute``.

    Each is measured in a new process of Linux, as the peak resident set less what was there before
    the fit.
    """
    rows = []
    for recompute in (False, True):
        low, high = (_in_new_process(number, recompute) for number in steps)
        sizes = {"low_mb": low / MEGABYTE, "high_mb": high / MEGABYTE}
        rows.append({"recompute": recompute, "steps": list(steps), **sizes, "ratio": high / low})
    return rows


def _in_new_process(steps: int, recompute: bool) -> float:
    code = f"from indis.bench import efficiency as e; print(e.peak_of_fit({steps}, {recompute}))"
    # Else glibc keeps what was freed, and its fragments grow with the number of calls.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(run.stdout.split()[-1])


def peak_of_fit(steps: int, recompute: bool) -> int:
    """Return the bytes that a fit of two iterations takes above what the process holds before.

    Raises:
        RuntimeError: if loading took more than the fit, whose peak is then unknown.
    """
    torch.set_num_threads(1)
    denoiser = fashion.load()
    data = teach(denoiser, heuristic(denoiser, solver="euler", steps=1), range(MANY), batch=4)
    process = _fit(denoiser, data, steps, 2, batch=MANY, recompute=recompute)
    held, before = _memory("VmRSS"), _memory("VmHWM")
    for _ in process.descent():
        pass
    if _memory("VmHWM") == before:
        raise RuntimeError("the fit must take more memory than what went before it")
    return _memory("VmHWM") - held


def _memory(name: str) -> int:
    """A line of Linux's account of this process, in bytes.

    ``getrusage`` would not do: its peak is inherited from the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def startup_rows(repeats: int = 5) -> list[dict[str, Any]]:
    """Return the processor time of imports and commands, the median of runs that take turns."""
    with tempfile.TemporaryDirectory() as folder:
        sample = ["-m", "indis", "sample", "--artifact", "fashion-nfe3", "--count", "4"]
        runs = {
            "import torch": ["-c", "import torch"],
            "import indis, and a name of it": ["-c", "import indis; indis.Sampler"],
            "indis --help": ["-m", "indis", "--help"],
            "indis sample, 4 pictures": [*sample, "--out", str(Path(folder) / "sample.png")],
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, arguments in runs.items():
                times[name].append(_processor_seconds(arguments))
    return [{"what": name, "seconds": median(values)} for name, values in times.items()]


def _processor_seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

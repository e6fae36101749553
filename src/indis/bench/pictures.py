"""What a report shows besides numbers: samples of several samplers from the same noise, and the
plans phi makes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from indis.denoise import Denoiser, to_device_of
from indis.endpoints import Endpoints, noise_from_seeds
from indis.pixels import to_bytes
from indis.policies import Fixed, LearnedPolicy
from indis.sampler import Sampler
from indis.storage import save_tensors


@dataclass(frozen=True)
class Picture:
    """A row of samples; without a sampler it is the teacher, whose end points are stored."""

    label: str
    nfe: int
    sampler: Sampler | None

    @property
    def title(self) -> str:
        """What stands beside the row."""
        return f"{self.label}, {self.nfe} NFE"


def write_samples(
    denoiser: Denoiser, data: Endpoints, pictures: list[Picture], folder: Path, count: int = 20
) -> None:
    """``samples.safetensors``: one uint8 tensor ``(count, *shape)`` for each row, all from the same
    noise.
    """
    part = to_device_of(data[:count], denoiser)
    rows = {}
    for picture in pictures:
        sampler = to_device_of(picture.sampler, denoiser)
        with torch.inference_mode():
            end = part.target if sampler is None else sampler(denoiser, part.noise, part.condition)
            rows[picture.title] = to_bytes(denoiser.decode(end))
    save_tensors(folder / "samples.safetensors", rows, {"order": list(rows)})


def write_plans(
    denoiser: Denoiser, data: Endpoints, pictures: list[Picture], folder: Path, count: int = 1000
) -> None:
    """``plans.safetensors``: the plans of instances, and for comparison the shared ones of the same
    NFE.
    """
    part, tensors, shared = to_device_of(data[:count], denoiser), {}, {}
    if "label" in part.condition.inputs:
        tensors["label"] = part.condition.inputs["label"]
    for picture in pictures:
        sampler = picture.sampler
        # Of a closed loop nothing is shown, and its plans would take whole runs.
        reads = getattr(sampler and sampler.policy, "reads", "nothing")
        if sampler is None or reads == "answers":
            continue
        if not isinstance(sampler.policy, Fixed | LearnedPolicy):
            continue
        with torch.inference_mode():
            plan = to_device_of(sampler, denoiser).realized_plan(
                denoiser, part.noise, part.condition
            )
        columns = {name: getattr(plan, name) for name in ("tau", "dtau", "gamma")}
        if reads == "noise":
            tensors |= {f"{name} N={picture.nfe}": value for name, value in columns.items()}
        else:
            kind = "base" if isinstance(sampler.policy, Fixed) else "global"
            shared[f"{kind} N={picture.nfe}"] = {
                name: value[0].tolist() for name, value in columns.items()
            }
    save_tensors(folder / "plans.safetensors", tensors, shared)


def seconds_a_sample(denoiser: Denoiser, batch: int = 64, runs: int = 3) -> float:
    """Return the seconds that one evaluation of one sample takes in a batch: the best of some."""
    seeds = list(range(batch))
    noise = to_device_of(noise_from_seeds(seeds, denoiser.shape), denoiser)
    condition = to_device_of(denoiser.condition(seeds), denoiser)
    t = torch.full((batch,), denoiser.schedule.t_max, dtype=torch.float64, device=noise.device)
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        with torch.inference_mode():
            denoiser(noise, t, condition)[:1].cpu()  # waits for the device
        taken.append(time.perf_counter() - started)
    return min(taken) / batch

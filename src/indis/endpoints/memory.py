"""Endpoints in memory: seeds, their noise, and where a teacher takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indis.denoise import Condition, Denoiser, to_device_of
from indis.sampler import Sampler

# torch's CPU generator distinguishes no more seeds: 0 and 2^32 give the same noise.
LAST_SEED = 2**32 - 1


def noise_from_seeds(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Return unit normal noise, each row drawn from its own seed.

    Args:
        seeds: whole numbers in 0 ... 2^32 - 1.
        shape: the shape of one sample.

    Returns:
        Noise ``(len(seeds), *shape)``, float32, on the CPU. Row i depends on seeds[i] alone.

    Raises:
        ValueError: if a seed is out of range.
    """
    for seed in seeds:
        if seed != int(seed) or not 0 <= seed <= LAST_SEED:
            raise ValueError(f"seeds must be whole numbers in 0 ... {LAST_SEED}, got {seed}")
    generator = torch.Generator()
    rows = [torch.randn(shape, generator=generator.manual_seed(int(seed))) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def check_seeds(first_seed: int, count: int) -> None:
    """Refuse ``count`` consecutive seeds from ``first_seed`` on if one is out of range.

    Raises:
        ValueError: naming the range.
    """
    if count > LAST_SEED + 1:
        raise ValueError(f"count must be at most {LAST_SEED + 1}, got {count}")
    if not 0 <= first_seed <= LAST_SEED + 1 - count:
        last = LAST_SEED + 1 - count
        raise ValueError(f"first_seed must be in 0 ... {last} for {count} seeds, got {first_seed}")


def noise_checksum(shape: tuple[int, ...]) -> str:
    """Return a hash of seed 0's noise, which differs under a torch that draws differently."""
    return hashlib.sha256(noise_from_seeds([0], shape).numpy().tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Endpoints:
    """Seeds, their noise, and where a teacher took them under their conditions.

    Indexing by a slice or a tensor of rows gives endpoints of these rows.

    Args:
        seeds: ``(count,)``, int64.
        noise: unit noise ``(count, *shape)``, drawn from the seeds.
        target: the teacher's end points ``(count, *shape)``.
        condition: the condition of each seed.
    """

    seeds: Tensor
    noise: Tensor
    target: Tensor
    condition: Condition

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: Tensor | slice) -> Endpoints:
        return Endpoints(
            self.seeds[index], self.noise[index], self.target[index], self.condition[index]
        )

    def to(self, device: torch.device | str) -> Endpoints:
        """Return the same endpoints on another device."""
        seeds, noise, target = (value.to(device) for value in (self.seeds, self.noise, self.target))
        return Endpoints(seeds, noise, target, self.condition.to(device))


def teach(
    denoiser: Denoiser, teacher: Sampler, seeds: Sequence[int], batch: int = 256
) -> Endpoints:
    """Run a teacher on seeds under their default conditions and return where it takes them.

    The teacher runs on the denoiser's device, and is moved there.

    Args:
        denoiser: the model.
        teacher: a many-step sampler.
        seeds: at least one seed.
        batch: how many samples run at once.

    Returns:
        The endpoints, on the CPU.

    Raises:
        ValueError: if there are no seeds, one is out of range, or ``batch`` is less than 1.
        FloatingPointError: if an end point is not finite.
    """
    return gather(endpoint_batches(denoiser, teacher, seeds, batch))


def endpoint_batches(
    denoiser: Denoiser, teacher: Sampler, seeds: Sequence[int], batch: int = 256
) -> Iterator[Endpoints]:
    """Yield what :func:`teach` returns batch by batch, for streams too large for memory.

    Raises:
        ValueError: if ``batch`` is less than 1.
        FloatingPointError: at a batch with an end point that is not finite.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    return _batches(denoiser, teacher, seeds, batch)


def _batches(
    denoiser: Denoiser, teacher: Sampler, seeds: Sequence[int], batch: int
) -> Iterator[Endpoints]:
    teacher = to_device_of(teacher, denoiser)
    for start in range(0, len(seeds), batch):
        part = list(seeds[start : start + batch])
        noise, condition = noise_from_seeds(part, denoiser.shape), denoiser.condition(part)
        with torch.inference_mode():
            target = teacher(
                denoiser, to_device_of(noise, denoiser), to_device_of(condition, denoiser)
            )
        _require_finite(target, part)
        yield Endpoints(torch.tensor(part), noise, target.cpu().clone(), condition.to("cpu"))


def _require_finite(target: Tensor, seeds: list[int]) -> None:
    bad = ~target.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        which = [seed for seed, gone in zip(seeds, bad.tolist(), strict=True) if gone]
        raise FloatingPointError(
            f"the teacher's end points must be finite, those of seeds {which[:5]} are not"
        )


def gather(parts: Iterable[Endpoints]) -> Endpoints:
    """Return one set of endpoints from several, such as those of :func:`endpoint_batches`.

    Raises:
        ValueError: if there are none.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("parts must be at least one set of endpoints, got none")
    conditions = [part.condition for part in parts]
    inputs = {
        name: torch.cat([c.inputs[name] for c in conditions]) for name in conditions[0].inputs
    }
    known = [c.features for c in conditions if c.features is not None]
    seeds, noise, target = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("seeds", "noise", "target")
    )
    return Endpoints(seeds, noise, target, Condition(inputs, torch.cat(known) if known else None))

"""Teacher endpoints: what a many-step sampler makes of each seed, the only data that tuning needs.

A sample is its *seed*: the noise is drawn per sample from a CPU generator, so it depends neither on
batch size nor on device, and a data set stores seeds instead of noise (paper, Algorithm 1: "RNG
state"). End points are kept on the CPU, whatever device the teacher ran on. A folder holds

    meta.json                    what made it, and the checksum of every finished shard
    endpoints-00000.safetensors  seeds, x_0*, condition inputs and features of one shard

Shards are written aside and renamed, so an interrupted run resumes at the first missing one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from indis.checks import require_least
from indis.denoise import UNSAVED, Condition, Denoiser, to_device_of
from indis.sampler import Sampler
from indis.storage import (
    as_json,
    checksum,
    difference,
    load_json,
    load_tensors,
    save_json,
    save_tensors,
    section,
)

FORMAT = 1
SHARD = re.compile(r"endpoints-\d{5,}\.safetensors")
LAST_SEED = (
    2**32 - 1
)  # torch's generator on the CPU tells no more seeds apart: 0 and 2^32 are the same noise


def noise_from_seeds(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Unit noise ``(len(seeds), *shape)`` float32; row i depends on seeds[i] alone.

    Raises:
        ValueError: if a seed is none.
    """
    for seed in seeds:
        if seed != int(seed) or not 0 <= seed <= LAST_SEED:
            raise ValueError(f"seeds must be whole numbers in 0 ... {LAST_SEED}, got {seed}")
    generator = torch.Generator()
    rows = [torch.randn(shape, generator=generator.manual_seed(int(seed))) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def check_seeds(first_seed: int, count: int) -> None:
    """Pass if first_seed ... first_seed + count - 1 are seeds.

    Raises:
        ValueError: if one is not.
    """
    if count > LAST_SEED + 1:
        raise ValueError(f"count must be at most {LAST_SEED + 1}, got {count}")
    if not 0 <= first_seed <= LAST_SEED + 1 - count:
        raise ValueError(
            f"first_seed must be in 0 ... {LAST_SEED + 1 - count} for {count} seeds, got {first_seed}"
        )


def noise_checksum(shape: tuple[int, ...]) -> str:
    """A fingerprint of seed 0's noise: differs under a torch that draws differently."""
    return hashlib.sha256(noise_from_seeds([0], shape).numpy().tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Endpoints:
    """Pairs of a seed and its teacher's end point, with the condition both were made under."""

    seeds: Tensor  # (count,) int64
    noise: Tensor  # (count, *shape), redrawn from the seeds
    target: Tensor  # (count, *shape)
    condition: Condition

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: Tensor | slice) -> Endpoints:
        return Endpoints(
            self.seeds[index], self.noise[index], self.target[index], self.condition[index]
        )

    def to(self, device: torch.device | str) -> Endpoints:
        """The same pairs on another device."""
        seeds, noise, target = (value.to(device) for value in (self.seeds, self.noise, self.target))
        return Endpoints(seeds, noise, target, self.condition.to(device))


def endpoint_batches(
    denoiser: Denoiser, teacher: Sampler, seeds: Sequence[int], batch: int = 256
) -> Iterator[Endpoints]:
    """Run the teacher on consecutive batches of seeds under their default conditions.

    It runs (and is moved to) where the denoiser is; what it makes comes back to the CPU.

    Raises:
        ValueError: if ``batch`` is not at least 1.
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
    """One set from several, such as :func:`endpoints` gives.

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


@dataclass(frozen=True)
class TeachConfig:
    """Which endpoints are made. Seeds are first_seed ... first_seed + count - 1."""

    count: int = 10_000  # how many endpoints; paper, sec. 4.2
    first_seed: int = 0  # seed of the first one; held-out ones need others
    shard: int = 1000  # how many endpoints lie in a file
    batch: int = 250  # how many samples a network call takes; a matter of memory

    def __post_init__(self) -> None:
        require_least(self, count=1, shard=1, batch=1)
        check_seeds(self.first_seed, self.count)


@dataclass(frozen=True)
class TeachProgress:
    """How many endpoints of the whole are on disk, and which shards of an earlier run were not any
    more.
    """

    done: int
    count: int
    mended: tuple[str, ...] = ()  # were missing or damaged, and are made again in this run


def teach_folder(
    config: TeachConfig,
    denoiser: Denoiser,
    teacher: Sampler,
    folder: Path | str,
    *,
    provenance: dict[str, Any],
) -> Iterator[TeachProgress]:
    """Write the endpoints of a teacher into ``folder``, or go on where an earlier run stopped.

    ``provenance`` (JSON) says which model and teacher these are; it must not change between runs. A
    larger ``count`` than the earlier run's adds to what there is. A shard that is missing or
    damaged is made again: it follows from its seeds.

    Raises:
        ValueError: if the folder holds endpoints of another configuration.
    """
    folder = Path(folder)
    meta: dict[str, Any] = {
        "format": FORMAT,
        "config": asdict(config),
        "provenance": as_json(provenance),
        "denoiser": _told(denoiser),
        "noise": noise_checksum(denoiser.shape),
        "shards": {},
    }
    meta["shards"], mended = _resume(folder, meta)
    if 0 < len(meta["shards"]) < -(-config.count // config.shard):
        _require_told(denoiser)
    seeds = range(config.first_seed, config.first_seed + config.count)
    for number, start in enumerate(range(0, config.count, config.shard)):
        part = seeds[start : start + config.shard]
        name = _shard_name(number)
        if name not in meta["shards"]:
            _write_shard(
                folder / name, gather(endpoint_batches(denoiser, teacher, part, config.batch))
            )
            meta["shards"] = dict(
                sorted({**meta["shards"], name: checksum(folder / name)}.items(), key=_place)
            )
            save_json(folder / "meta.json", meta)
        yield TeachProgress(start + len(part), config.count, mended)


def load_endpoints(folder: Path | str) -> tuple[Endpoints, dict[str, Any]]:
    """All endpoints of a folder, with noise redrawn, and its ``meta.json``.

    Raises:
        FileNotFoundError: if the folder or a shard is missing. ValueError: if a shard is damaged,
        the set is unfinished, or this torch draws other noise than the writer's.
    """
    folder = Path(folder)
    meta = _read_meta(folder)
    expected = _shard_count(meta, folder)
    if len(meta["shards"]) != expected:
        raise ValueError(
            f"{folder} has {len(meta['shards'])} of {expected} shards: run `indis teach` again to finish it"
        )
    data = gather([_read_shard(folder / name, digest) for name, digest in meta["shards"].items()])
    if noise_checksum(tuple(data.noise.shape[1:])) != meta["noise"]:
        raise ValueError(
            f"{folder} was made by a torch that draws other noise from a seed; make the endpoints again"
        )
    return data, meta


def _shard_count(meta: dict[str, Any], folder: Path) -> int:
    try:
        config = TeachConfig(**meta["config"])
        return -(-config.count // config.shard)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'meta.json'} is damaged: {error}") from None


def _resume(folder: Path, meta: dict[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The finished shards of an earlier run of the same configuration, and the names of those to
    make again.
    """
    if not (folder / "meta.json").exists():
        return {}, ()
    old = _read_meta(folder)
    old["config"]["batch"] = meta["config"]["batch"]  # a matter of memory, not of what is made
    _enlarge(old, meta["config"])
    for key in ("config", "provenance", "denoiser", "noise"):
        if old.get(key, meta[key]) != meta[key]:  # folders of before did not tell their denoiser
            raise ValueError(
                f"{folder} holds endpoints with another {key}: {difference(old[key], meta[key])}"
            )
    shards: dict[str, str] = old["shards"]
    whole = {
        name: digest for name, digest in shards.items() if _fault(folder / name, digest) is None
    }
    return whole, tuple(name for name in shards if name not in whole)


def _told(denoiser: Denoiser) -> dict[str, str]:
    """Which denoiser it is, beyond what the caller records."""
    native, schedule = denoiser.native.value, repr(denoiser.schedule)
    return {
        "name": denoiser.name,
        "fingerprint": denoiser.fingerprint,
        "schedule": schedule,
        "native": native,
    }


def _require_told(denoiser: Denoiser) -> None:
    """End points of two models must not lie in one folder, and only a fingerprint tells weights
    apart.
    """
    if denoiser.fingerprint == UNSAVED:
        raise ValueError(
            "fingerprint must be given to a wrapped denoiser to add to end points that are on disk"
        )


def _enlarge(old: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Let the earlier run have asked for as many endpoints as are wanted now: a last shard that is
    not full goes.
    """
    count = old["config"].get("count")
    if isinstance(count, int) and count < wanted["count"]:
        old["config"]["count"] = wanted["count"]
        if count % wanted["shard"]:
            old["shards"].pop(_shard_name(count // wanted["shard"]), None)


def _shard_name(number: int) -> str:
    return f"endpoints-{number:05d}.safetensors"


def _place(shard: tuple[str, str]) -> tuple[int, str]:
    """Sorts shards by their number, which may have more digits than are filled up."""
    return len(shard[0]), shard[0]


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no endpoints (meta.json is missing): run `indis teach` first"
        )
    meta = load_json(path)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(f"{path} is not endpoint metadata of format {FORMAT}")
    for name, kind in (("config", dict), ("provenance", dict), ("noise", str), ("shards", dict)):
        if not isinstance(meta.get(name), kind):
            raise ValueError(
                f"{path} is damaged: {name} must be of type {kind.__name__}, got {meta.get(name)!r}"
            )
    for name, digest in meta["shards"].items():
        if not (SHARD.fullmatch(name) and isinstance(digest, str)):
            raise ValueError(
                f"{path} is damaged: shards must be names and checksums, got {name!r}: {digest!r}"
            )
    return meta


def _write_shard(path: Path, part: Endpoints) -> None:
    inputs = {f"input.{name}": value for name, value in part.condition.inputs.items()}
    features = {} if part.condition.features is None else {"features": part.condition.features}
    save_tensors(path, {"seeds": part.seeds, "target": part.target} | inputs | features)


def _fault(path: Path, digest: str) -> Exception | None:
    """What is wrong with a shard, if something is."""
    mend = "run `indis teach` again to mend it"
    if not path.is_file():
        return FileNotFoundError(f"shard {path} is missing: {mend}")
    if checksum(path) != digest:
        return ValueError(
            f"shard {path} is damaged, its checksum is not the one in meta.json: {mend}"
        )
    return None


def _read_shard(path: Path, digest: str) -> Endpoints:
    if (fault := _fault(path, digest)) is not None:
        raise fault
    tensors, _ = load_tensors(path)
    inputs = section(tensors, "input.")
    seeds, target = tensors["seeds"], tensors["target"]
    noise = noise_from_seeds(seeds.tolist(), tuple(target.shape[1:]))
    return Endpoints(seeds, noise, target, Condition(inputs, tensors.get("features")))

"""Endpoints on disk: shards that are written one by one, verified, and resumed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from indis.checks import require_least
from indis.denoise import UNSAVED, Condition, Denoiser
from indis.endpoints.memory import (
    Endpoints,
    check_seeds,
    gather,
    noise_checksum,
    noise_from_seeds,
    teach,
)
from indis.endpoints.streamed import StreamedEndpoints
from indis.sampler import Sampler
from indis.sealed import load_record, save_record
from indis.storage import (
    DamagedFileError,
    as_json,
    checksum,
    difference,
    from_fields,
    load_tensors,
    malformed,
    save_tensors,
    section,
)

FORMAT = 1
FIELDS = {"config": dict, "provenance": dict, "denoiser": dict, "noise": str, "shards": dict}
SHARD = re.compile(r"endpoints-\d{5,}\.safetensors")


@dataclass(frozen=True)
class TeachConfig:
    """Which endpoints are made. Seeds are first_seed ... first_seed + count - 1.

    Raises:
        ValueError: if a number is less than 1 or a seed is out of range.
    """

    count: int = 10_000
    """Number of endpoints; paper, sec. 4.2."""
    first_seed: int = 0
    """Seed of the first one. Held-out endpoints need others."""
    shard: int = 1000
    """Number of endpoints in a file."""
    batch: int = 250
    """Number of samples in a network call, a matter of memory."""

    def __post_init__(self) -> None:
        require_least(self, count=1, shard=1, batch=1)
        check_seeds(self.first_seed, self.count)


@dataclass(frozen=True)
class TeachProgress:
    """The state of a folder after each shard.

    Args:
        done: how many endpoints are on disk.
        count: how many there will be.
        remade: shards of an earlier run that were missing or damaged and are made again.
    """

    done: int
    count: int
    remade: tuple[str, ...] = ()


def teach_folder(
    config: TeachConfig,
    denoiser: Denoiser,
    teacher: Sampler,
    folder: Path | str,
    *,
    provenance: dict[str, Any],
) -> Iterator[TeachProgress]:
    """Write the endpoints of a teacher into a folder, or continue where an earlier run stopped.

    A larger ``count`` than the earlier run's adds to what there is. A shard that is missing or
    damaged is made again from its seeds.

    Args:
        config: which endpoints.
        denoiser: the model.
        teacher: a many-step sampler.
        folder: where they are written.
        provenance: JSON that says which model and teacher these are; it must not change between
            runs.

    Yields:
        The state of the folder after each shard.

    Raises:
        ValueError: if the folder holds endpoints of another configuration, or others would be added
            to endpoints of a denoiser without a fingerprint.
    """
    folder = Path(folder)
    meta: dict[str, Any] = {
        "config": asdict(config),
        "provenance": as_json(provenance),
        "denoiser": _identity(denoiser),
        "noise": noise_checksum(denoiser.shape),
        "shards": {},
    }
    meta["shards"], remade = _resume(folder, meta)
    if 0 < len(meta["shards"]) < -(-config.count // config.shard):
        _require_fingerprint(denoiser)
    seeds = range(config.first_seed, config.first_seed + config.count)
    for number, start in enumerate(range(0, config.count, config.shard)):
        part = seeds[start : start + config.shard]
        name = _shard_name(number)
        if name not in meta["shards"]:
            _write_shard(folder / name, teach(denoiser, teacher, part, config.batch))
            shards = {**meta["shards"], name: checksum(folder / name)}
            meta["shards"] = dict(sorted(shards.items(), key=_by_number))
            save_record(folder / "meta.json", FORMAT, meta)
        yield TeachProgress(start + len(part), config.count, remade)


def load_endpoints(folder: Path | str, *, stream: bool = False) -> tuple[Endpoints, dict[str, Any]]:
    """Return all endpoints of a folder, with noise redrawn, and its ``meta.json``.

    Args:
        folder: The folder.
        stream: Whether rows are read from disk when they are asked for, so that memory does not
            grow with their number.

    Raises:
        FileNotFoundError: if the folder or a shard is missing.
        ValueError: if a shard is damaged, the set is unfinished, or this torch draws other noise
            than the writer's.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    expected = _shard_count(meta, folder)
    if len(meta["shards"]) != expected:
        raise ValueError(
            f"{folder} has {len(meta['shards'])} of {expected} shards: run `indis teach` again to "
            "finish it"
        )
    if stream:
        data: Endpoints = StreamedEndpoints.of(
            _sound(folder / name, digest) for name, digest in meta["shards"].items()
        )
    else:
        data = gather([_read_shard(folder / n, digest) for n, digest in meta["shards"].items()])
    if noise_checksum(tuple(data[:1].noise.shape[1:])) != meta["noise"]:
        raise ValueError(
            f"{folder} was made by a torch that draws other noise from a seed; make the endpoints "
            "again"
        )
    return data, meta


def _shard_count(meta: dict[str, Any], folder: Path) -> int:
    with malformed(folder / "meta.json", "record of endpoints"):
        config = from_fields(TeachConfig, meta["config"])
        return -(-config.count // config.shard)


def _resume(folder: Path, meta: dict[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The finished shards of an earlier run, and the names of those to make again."""
    if not (folder / "meta.json").exists():
        return {}, ()
    old = read_meta(folder)
    old["config"]["batch"] = meta["config"]["batch"]  # a matter of memory, not of what is made
    _enlarge(old, meta["config"])
    for key in ("config", "provenance", "denoiser", "noise"):
        if old[key] != meta[key]:
            raise ValueError(
                f"{folder} holds endpoints with another {key}: {difference(old[key], meta[key])}"
            )
    shards: dict[str, str] = old["shards"]
    whole = {
        name: digest for name, digest in shards.items() if _fault(folder / name, digest) is None
    }
    return whole, tuple(name for name in shards if name not in whole)


def _identity(denoiser: Denoiser) -> dict[str, str]:
    """What meta.json records of the denoiser, beside the caller's provenance."""
    # Folders of before schedules had a prior do not record the one that all of them had.
    schedule = repr(denoiser.schedule).replace(", prior='marginal'", "")
    return {
        "name": denoiser.name,
        "fingerprint": denoiser.fingerprint,
        "schedule": schedule,
        "native": denoiser.native.value,
    }


def _require_fingerprint(denoiser: Denoiser) -> None:
    """Refuse a denoiser without one: endpoints of two models must not lie in one folder."""
    if denoiser.fingerprint == UNSAVED:
        raise ValueError(
            "fingerprint must be given to a wrapped denoiser to add to end points that are on disk"
        )


def _enlarge(old: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Let the earlier run have asked for as many endpoints as now, without a partly full shard."""
    count = old["config"].get("count")
    if isinstance(count, int) and count < wanted["count"]:
        old["config"]["count"] = wanted["count"]
        if count % wanted["shard"]:
            old["shards"].pop(_shard_name(count // wanted["shard"]), None)


def _shard_name(number: int) -> str:
    return f"endpoints-{number:05d}.safetensors"


def _by_number(shard: tuple[str, str]) -> tuple[int, str]:
    """The sort key of shards, whose numbers may have more than five digits."""
    return len(shard[0]), shard[0]


def read_meta(folder: Path) -> dict[str, Any]:
    """Return the ``meta.json`` of a folder of endpoints.

    Raises:
        FileNotFoundError: if it is missing.
        DamagedFileError: if it is damaged.
    """
    path = folder / "meta.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no endpoints (meta.json is missing): run `indis teach` first"
        )
    meta = load_record(path, FORMAT)
    for name, kind in FIELDS.items():
        if not isinstance(meta.get(name), kind):
            raise DamagedFileError(
                path,
                f"is damaged: {name} must be of type {kind.__name__}, got {meta.get(name)!r}",
            )
    for name, digest in meta["shards"].items():
        if not (SHARD.fullmatch(name) and isinstance(digest, str)):
            raise DamagedFileError(
                path, f"is damaged: shards must be names and checksums, got {name!r}: {digest!r}"
            )
    return meta


def _write_shard(path: Path, part: Endpoints) -> None:
    inputs = {f"input.{name}": value for name, value in part.condition.inputs.items()}
    features = {} if part.condition.features is None else {"features": part.condition.features}
    save_tensors(path, {"seeds": part.seeds, "target": part.target} | inputs | features)


def _fault(path: Path, digest: str) -> Exception | None:
    """The error of a missing or damaged shard, None for a sound one."""
    mend = "run `indis teach` again to mend it"
    if not path.is_file():
        return FileNotFoundError(f"shard {path} is missing: {mend}")
    if checksum(path) != digest:
        return DamagedFileError(
            path, f"is damaged: its checksum is not the one in meta.json; {mend}"
        )
    return None


def _sound(path: Path, digest: str) -> Path:
    if (fault := _fault(path, digest)) is not None:
        raise fault
    return path


def _read_shard(path: Path, digest: str) -> Endpoints:
    tensors, _ = load_tensors(_sound(path, digest))
    with malformed(path, "shard"):
        inputs = section(tensors, "input.")
        seeds, target = tensors["seeds"], tensors["target"]
        noise = noise_from_seeds(seeds.tolist(), tuple(target.shape[1:]))
        if len(noise) != len(target) or not bool(target.isfinite().all()):
            raise ValueError(f"{len(seeds)} seeds need as many finite end points")
    return Endpoints(seeds, noise, target, Condition(inputs, tensors.get("features")))

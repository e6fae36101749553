"""Files: safetensors and JSON, written aside and then renamed, so they are never half-written.

Everything the library stores goes through this module: shards, checkpoints, artifacts, results. A
reader sees either the previous file or the new one, and an interrupted run can resume. Nothing that
is read is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

T = TypeVar("T")


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file next to ``path`` and rename it into place.

    Args:
        path: the file to make or replace; its folder is made if there is none.
        write: a function that fills the temporary file whose path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        # mkstemp makes the file private; give it the permissions that a plain open() would have
        # given.
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def as_json(value: Any) -> Any:
    """Return a value as it comes back from a JSON file; a tuple, for one, comes back as a list."""
    return json.loads(json.dumps(value))


def difference(old: Any, new: Any) -> str:
    """Return the fields in which two JSON values differ, at most three: "steps 6 there, 7 given".

    Args:
        old: the stored value.
        new: the given value.
    """
    there, given = _flat(as_json(old)), _flat(as_json(new))
    names = [name for name in {**there, **given} if there.get(name) != given.get(name)]
    parts = [
        f"{name or 'it'} {_short(there.get(name))} there, {_short(given.get(name))} given"
        for name in names[:3]
    ]
    return "; ".join(parts + ["..."] * (len(names) > 3))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested objects by their dotted names."""
    if not (isinstance(value, dict) and value):
        return {prefix: value}
    parts = (
        _flat(inner, f"{prefix}.{name}" if prefix else str(name)) for name, inner in value.items()
    )
    return {name: leaf for part in parts for name, leaf in part.items()}


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


def save_json(path: Path, value: Any) -> None:
    """Write indented JSON; keys keep their order.

    Raises:
        ValueError: if the value holds NaN or infinity.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_aside(path, lambda temporary: temporary.write_text(text))


def load_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Any = None) -> None:
    """Write a safetensors file.

    Args:
        path: the file.
        tensors: the tensors by name, on any device.
        meta: any JSON, stored in the header.
    """
    clean = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {"meta": json.dumps(meta, allow_nan=False)}
    write_aside(path, lambda temporary: save_file(clean, temporary, metadata=header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the ``meta`` of a file that :func:`save_tensors` wrote.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is damaged, or a pickle, which is never executed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            return {name: file.get_tensor(name) for name in list(file.keys())}, json.loads(
                header.get("meta", "null")
            )
    except (SafetensorError, json.JSONDecodeError) as error:
        if _is_pickle(path):
            raise ValueError(
                f"{path} is a pickle, which is never executed; convert it with "
                "torch.load(..., weights_only=True) and safetensors.torch.save_file"
            ) from None
        raise ValueError(f"{path} is damaged: {error}") from None


def _is_pickle(path: Path) -> bool:
    """Return whether a file looks like a pickle, or like the archive of one that torch writes."""
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 1))
        last = file.read(1)
    if head == b"PK\x03\x04":
        return True
    binary = head[:1] == b"\x80" and 2 <= int.from_bytes(head[1:2]) <= 5
    return (binary or head[:1] in (b"(", b"c", b"]", b"}")) and last == b"."


def load_checkpoint(path: Path, *fields: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the ``meta`` of a checkpoint.

    Args:
        path: the file.
        fields: names that ``meta`` must have.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is damaged, or something else wrote it.
    """
    tensors, meta = load_tensors(path)
    absent = [name for name in fields if not isinstance(meta, dict) or name not in meta]
    if absent:
        raise ValueError(
            f"{path} is no checkpoint of this version: {', '.join(absent)} missing from its header"
        )
    return tensors, meta


def section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with ``prefix``, named without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe(value: Any) -> dict[str, Any]:
    """Return a dataclass as JSON: its class name as "type", and its fields."""
    return {"type": type(value).__name__, **asdict(value)}


def rebuild(config: Mapping[str, Any], classes: Iterable[type]) -> Any:
    """Return the dataclass that :func:`describe` described.

    Args:
        config: its class name as "type", and all its fields.
        classes: those that the name may mean.

    Raises:
        TypeError: if it is no object, or has a field that the class has not.
        KeyError: if a field is missing; none is defaulted.
        ValueError: if the name means none of the classes.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"an object with a type was expected, got {config!r}")
    known = {c.__name__: c for c in classes}
    values = dict(config)
    name = values.pop("type")
    if name not in known:
        raise ValueError(f"type must be one of {', '.join(known)}, got {name!r}")
    return from_fields(known[name], values)


def exactly(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return values of these names.

    Raises:
        TypeError: if there is a value of another name.
        KeyError: if one is missing; none is defaulted.
    """
    wanted = list(names)
    if unknown := set(values) - set(wanted):
        raise TypeError(f"unexpected field {min(unknown)!r}, known are {', '.join(wanted)}")
    return {name: values[name] for name in wanted}


def from_fields(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return a dataclass from the values of all its fields.

    Raises:
        TypeError: if there is a value that is no field.
        KeyError: if a field is missing; none is defaulted.
    """
    for own in fields(kind):  # type: ignore[arg-type]  # a dataclass
        if own.init and own.name not in values:
            raise KeyError(f"{own.name} of {kind.__name__}")
    return kind(**values)


def digest(value: Any) -> str:
    """Return a short stable hash of any JSON value, for caches keyed by a configuration."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state tensors of an optimizer, flat, for a safetensors file."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{name}": value
        for i, slots in state.items()
        for name, value in slots.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what :func:`pack_optimizer` stored; learning rates stay those of the optimizer."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, slot = key.split(".", 2)
            state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )

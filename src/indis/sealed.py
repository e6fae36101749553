"""Sealed files: a version and a checksum of every byte in the file itself.

Records (JSON) and checkpoints (safetensors) that the library writes and reads again are sealed:
``format`` says how to read the content, ``sha256`` is the checksum of the file in which these 64
digits are zeros. A changed bit anywhere is noticed. A missing field is refused, never defaulted.
Weights and shards have no seal; the sealed record beside them has their checksums.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from indis.storage import (
    DamagedFileError,
    load_json,
    load_tensors,
    save_tensors,
    section,
    write_aside,
)

CHECKPOINT_FORMAT = 1
BLANK = "0" * 64
# In safetensors, JSON lies in a text of the header, so its quotes have a backslash.
_SEAL = re.compile(rb'sha256\\?": \\?"([0-9a-f]{64})')
_HEAD = 1024  # the seal is near the beginning
_BLOCK = 1 << 20


def save_record(path: Path, version: int, content: Mapping[str, Any]) -> None:
    """Write sealed JSON.

    Args:
        path: the file.
        version: the format of the content.
        content: its fields.

    Raises:
        ValueError: if the content holds NaN or infinity.
    """
    record = {"format": version, "sha256": BLANK, **content}
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")
        seal(temporary)

    write_aside(path, write)


def load_record(path: Path, version: int) -> dict[str, Any]:
    """Return the fields of sealed JSON, ``format`` included.

    Raises:
        FileNotFoundError: if the file is missing.
        DamagedFileError: if it is damaged, of another format, or not sealed.
    """
    record = load_json(path)
    found = record.get("format") if isinstance(record, dict) else None
    if type(found) is not int or found != version:
        raise DamagedFileError(path, f"must have format {version}, got {found!r}")
    require_seal(path)
    del record["sha256"]
    return record


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a sealed safetensors file.

    Args:
        path: the file.
        tensors: the tensors by name, on any device.
        meta: JSON fields that stand in the header.
    """
    header = {"format": CHECKPOINT_FORMAT, "sha256": BLANK, **meta}
    save_tensors(path, tensors, header, finish=seal)


def load_checkpoint(path: Path, *fields: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the ``meta`` of a checkpoint.

    Args:
        path: the file.
        fields: names that ``meta`` must have.

    Raises:
        FileNotFoundError: if it is missing.
        DamagedFileError: if it is damaged, or something else wrote it.
    """
    tensors, meta = load_tensors(path)
    known = meta if isinstance(meta, dict) else {}
    absent = [name for name in ("format", "sha256", *fields) if name not in known]
    if absent or known["format"] != CHECKPOINT_FORMAT:
        why = f"{', '.join(absent)} missing from its header" if absent else "it has another format"
        raise DamagedFileError(path, f"is no checkpoint of this version: {why}")
    require_seal(path)
    return tensors, known


class SizedBy(TorchDispatchMode):
    """A context in which no more numbers are allocated than some tensors explain.

    A file of a few bytes may name a network of any size. Its weights, whose sizes are those of
    their file, say how large that network can be; what is larger is refused before it is allocated.

    Args:
        tensors: the weights.
    """

    SLACK = 1 << 22  # numbers for tables of noise schedules and the like

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.left = self.SLACK + 4 * sum(value.numel() for value in tensors.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if args and isinstance(args[0], list | tuple) and all(type(n) is int for n in args[0]):
            self.left -= math.prod(args[0])
            if self.left < 0:
                raise ValueError(f"a size of {list(args[0])} is not one of its weights")
        return func(*args, **(kwargs or {}))


def seal(path: Path) -> None:
    """Put the checksum of a file in place of its blank one."""
    with path.open("r+b") as file:
        found = _SEAL.search(file.read(_HEAD))
        assert found is not None, f"{path} has no place for a checksum"
        digest = _digest(path, found.start(1))
        file.seek(found.start(1))
        file.write(digest.encode())


def require_seal(path: Path) -> None:
    """Pass if not a bit of a sealed file has changed.

    Raises:
        DamagedFileError: if one has, or the file is not sealed.
    """
    with path.open("rb") as file:
        found = _SEAL.search(file.read(_HEAD))
    if found is None:
        raise DamagedFileError(path, "has no checksum: an older version wrote it, make it again")
    if _digest(path, found.start(1)) != found[1].decode():
        raise DamagedFileError(path, "is damaged: its content does not match its checksum")


def _digest(path: Path, place: int) -> str:
    """Return the SHA-256 of a file with zeros at the place of the checksum."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(place) + BLANK.encode())
        file.seek(place + len(BLANK))
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


# The state that each kind of optimizer has of a parameter once it has moved.
_SLOTS = {
    "Adam": {"step", "exp_avg", "exp_avg_sq"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "RMSprop": {"step", "square_avg", "momentum_buffer"},
}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state tensors of an optimizer, flat, for a safetensors file."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{name}": value
        for i, slots in state.items()
        for name, value in slots.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what :func:`pack_optimizer` stored; learning rates stay those of the optimizer.

    Raises:
        ValueError: if a state is missing or of another shape; the optimizer is then as it was.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in section(tensors, "optimizer.").items():
        index, slot = key.split(".", 1)
        state.setdefault(int(index), {})[slot] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    wanted = _SLOTS[type(optimizer).__name__]
    for i, slots in state.items():
        if set(slots) != wanted:
            raise ValueError(f"optimizer.{i} must have {sorted(wanted)}, got {sorted(slots)}")
        for name, value in slots.items():
            shape = torch.Size() if name == "step" else parameters[i].shape
            if value.shape != shape:
                raise ValueError(
                    f"optimizer.{i}.{name} must have shape {tuple(shape)}, got {tuple(value.shape)}"
                )
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )

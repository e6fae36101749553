"""Files: safetensors and JSON, written aside and then renamed, so they are never half-written.

Everything the library stores goes through this module: shards, checkpoints, artifacts, results. A
reader sees either the previous file or the new one, after a loss of power too, and an interrupted
run can resume. Nothing that is read is executed, and sizes are bounded before anything is parsed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

T = TypeVar("T")


MOST_JSON = 64 << 20  # bytes of a JSON file
MOST_NESTING = 64
MOST_FAULT = 200  # characters of a reason, such as a library may give at length
MOST_DIGITS = 20  # of a whole number
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_OS_ERROR = re.compile(r"os error (\d+)")
# What goes wrong where fields of a file are missing, or of another kind or size.
MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class DamagedFileError(ValueError):
    """A file is damaged, incomplete, or not what it should be.

    Args:
        path: the file, or its folder.
        fault: what is wrong with it, the sentence whose subject is the path.
    """

    def __init__(self, path: Path, fault: str) -> None:
        fault = fault if len(fault) <= MOST_FAULT else f"{fault[:MOST_FAULT]}..."
        super().__init__(f"{path} {fault}")
        self.path, self.fault = path, fault


@contextmanager
def malformed(path: Path, kind: str) -> Iterator[None]:
    """Read fields of a file; what goes wrong is the file's fault.

    Args:
        path: the file or its folder.
        kind: what it should be, such as "artifact".

    Raises:
        DamagedFileError: with one sentence.
    """
    try:
        yield
    except DamagedFileError:
        raise
    except MALFORMED as error:
        missing = isinstance(error, KeyError)
        text = " ".join(str(error).split())
        reason = f"{text} is missing" if missing else text
        raise DamagedFileError(path, f"is not a complete {kind}: {reason}") from None


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file next to ``path`` and rename it into place, durably.

    Args:
        path: the file to make or replace; its folder is made if there is none.
        write: a function that fills the temporary file whose path it is given.

    Raises:
        OSError: naming the file, if the disk is full for one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    try:
        write(Path(name))
        # mkstemp makes the file private; give it the permissions that a plain open() would have
        # given.
        os.chmod(name, 0o666 & ~_umask())
        _flush(name)
        os.replace(name, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        if (code := _errno(error)) is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from None
    finally:
        Path(name).unlink(missing_ok=True)


TEMPORARY = ".aside"  # ends the names of temporary files


def _errno(error: OSError | SafetensorError) -> int | None:
    """Return the system's error number, which safetensors puts into its text."""
    if isinstance(error, OSError):
        return error.errno
    found = _OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def _flush(path: Path | str) -> None:
    """Wait until a file, or the names in a folder, would survive a loss of power."""
    if os.name == "nt" and Path(path).is_dir():  # a folder cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        DamagedFileError: if it is not JSON, or larger or deeper than anything that is written.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DamagedFileError(path, "is not valid JSON: it is no plain file")
    if path.is_file() and path.stat().st_size > MOST_JSON:
        raise DamagedFileError(path, f"is not valid JSON: it is larger than {MOST_JSON >> 20} MiB")
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise DamagedFileError(path, f"is not valid JSON: {error}") from None


def parse_json(raw: bytes) -> Any:
    """Return the value of JSON text, with nesting and numbers bounded before they are built.

    Raises:
        ValueError: if it is no JSON, too deep, or holds a number that is not finite or too long.
    """
    marks = np.frombuffer(_TEXT.sub(b"", raw), np.uint8)
    opened = np.isin(marks, (91, 123)).astype(np.int32)  # [ and {
    closed = np.isin(marks, (93, 125)).astype(np.int32)
    if len(marks) and int((opened - closed).cumsum(dtype=np.int32).max()) > MOST_NESTING:
        raise ValueError(f"it is nested deeper than {MOST_NESTING}")
    return json.loads(
        raw.decode("utf-8"), parse_int=_whole, parse_float=_finite, parse_constant=_finite
    )


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a whole number has more than {MOST_DIGITS} digits: {text[:12]}...")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number is not finite: {text[:12]}")
    return value


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    meta: Any = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write a safetensors file.

    Args:
        path: the file.
        tensors: the tensors by name, on any device.
        meta: any JSON, stored in the header.
        finish: what is done to the file before it takes its name.
    """
    clean = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {"meta": json.dumps(meta, allow_nan=False)}

    def write(temporary: Path) -> None:
        save_file(clean, temporary, metadata=header)
        if finish is not None:
            finish(temporary)

    write_aside(path, write)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the ``meta`` of a file that :func:`save_tensors` wrote.

    Raises:
        FileNotFoundError: if it is missing.
        DamagedFileError: if it is damaged, or a pickle, which is never executed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            meta = parse_json((file.metadata() or {}).get("meta", "null").encode())
            return {name: file.get_tensor(name) for name in list(file.keys())}, meta
    except (SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        if _is_pickle(path):
            raise DamagedFileError(
                path,
                "is a pickle, which is never executed; convert it with "
                "torch.load(..., weights_only=True) and safetensors.torch.save_file",
            ) from None
        raise DamagedFileError(path, f"is damaged: {error}") from None


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


def section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with ``prefix``, named without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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

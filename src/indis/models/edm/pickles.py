"""Read a pickled EDM checkpoint without running anything that stands in it.

NVIDIA's files hold the text of a Python module and the instruction to execute it. Here that text
is never compiled. A first pass looks at every instruction of the pickle. A second one builds inert
records of what was pickled, from the few names that such a file needs; any other name is refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from indis.storage import DamagedFileError

# A checkpoint of ImageNet has some 60 000 instructions; 3 400 make tuples. Python's hash of
# tuples within tuples has no end of its own but that of the stack.
MOST_INSTRUCTIONS, MOST_TUPLES, LONGEST_TEXT = 500_000, 20_000, 2**24
# A tuple that holds one tuple twice, and so on, is hashed anew along every way down: n times, 2^n.
MOST_SHARED = 24
# Python's hash of a number is its remainder by this, so larger ones may all fall on one place.
HASH_MODULUS = 2**61 - 1
MOST_DIMENSIONS = 8
# They call a hook, a registry or buffers of the reading program, or make what may be changed.
# No writer makes DUP, which takes a thing twice, and no such file needs a frozen set.
FORBIDDEN = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ"} | {
    "DUP",
    "FROZENSET",
    "NEXT_BUFFER",
    "READONLY_BUFFER",
    "BYTEARRAY8",
}
PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
GETS = {"GET", "BINGET", "LONG_BINGET"}
# After these the thing on top, which a memo would keep, need not be what was just made.
UNCLEAR = GETS | {
    "POP",
    "POP_MARK",
    "BUILD",
    "APPEND",
    "APPENDS",
    "SETITEM",
    "SETITEMS",
    "ADDITEMS",
}
TORCH_MARK = 0x1950A86A20F9469CFC6C
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
NUMBERS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "?"}
Report = Callable[[int], None]


@dataclass
class Record:
    """An object of the file: the name of its class and what was in it."""

    kind: str
    state: Any = field(default_factory=dict)

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read(path: Path, report: Report = lambda done: None) -> Any:
    """Return what a checkpoint holds, with a :class:`Record` for each module.

    Args:
        path: the pickle.
        report: is called with the number of bytes of the tensors that were read so far.

    Raises:
        DamagedFileError: if it is no pickle.
        Exception: of any kind, as pickles raise them, if it is damaged or asks for more than EDM
            checkpoints do.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        _require_pickle(path, file)
        _survey(file, size)
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about memory that is only read
            return _Reader(file, _Storages(size, report)).load()


def _require_pickle(path: Path, file: BinaryIO) -> None:
    head = file.read(2)
    file.seek(0)
    if head == b"PK":
        raise DamagedFileError(
            path,
            "is a PyTorch archive of bare tensors, such as the consistency models' LSUN "
            "checkpoints: it does not record its network, which is not one of EDM's",
        )
    if head[:1] != b"\x80":
        raise DamagedFileError(path, "is no pickle of protocol 3 or later")


class _Bounded:
    """A file that never allocates more than it holds, whatever size is asked for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size - self.file.tell()))


def _survey(file: BinaryIO, size: int, allowed: Collection[str] = ()) -> None:
    """Pass if the instructions are few, harmless and of this file's size."""
    stored = tuples = shared = 0
    places, before = set(), ""  # of the memo that hold tuples, and the last instruction
    bounded = cast(BinaryIO, _Bounded(file, size))
    for number, (code, argument, _) in enumerate(pickletools.genops(bounded)):
        if number > MOST_INSTRUCTIONS:
            raise ValueError(f"it has more than {MOST_INSTRUCTIONS} instructions")
        if code.name in FORBIDDEN and code.name not in allowed:
            raise ValueError(f"it has the instruction {code.name}")
        if code.name == "FRAME" and cast(int, argument) > size:
            raise ValueError("it declares more bytes than the file holds")
        tuples += code.name.startswith("TUPLE")
        if tuples > MOST_TUPLES:
            raise ValueError(f"it has more than {MOST_TUPLES} tuples")
        puts = code.name in PUTS or code.name == "MEMOIZE"
        place = stored if code.name == "MEMOIZE" else argument
        if puts and before in UNCLEAR:
            raise ValueError("it keeps in its memo what was not just made")
        if puts and before.startswith("TUPLE"):
            places.add(place)
        shared += code.name in GETS and place in places
        if shared > MOST_SHARED:
            raise ValueError(f"it uses tuples again more than {MOST_SHARED} times")
        # The reader's table grows to the largest place at once.
        if code.name in PUTS and cast(int, argument) > stored:
            raise ValueError(f"it skips places of its memo, up to {argument}")
        stored += puts
        before = before if puts else code.name
        large = isinstance(argument, int) and abs(argument) >= HASH_MODULUS
        if large and argument != TORCH_MARK:
            raise ValueError("it has a number of more than 61 bits")
        if isinstance(argument, str) and len(argument) > LONGEST_TEXT:
            raise ValueError(f"it has a text of more than {LONGEST_TEXT} characters")


class _Reader(pickle.Unpickler):
    """An unpickler that knows the names of an EDM checkpoint, and no others."""

    def __init__(self, file: BinaryIO, storages: _Storages) -> None:
        super().__init__(file)
        # Made anew for each file, since a pickle may set attributes of what it finds.
        self._known = _names(storages)

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name."""
        try:
            return self._known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no such file needs; nothing was run"
            ) from None


class _StorageReader(pickle.Unpickler):
    """Reads what torch's older format says of a storage, before the numbers themselves."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the dtype of a kind of storage."""
        if module != "torch" or name not in STORAGES:
            raise pickle.UnpicklingError(f"a tensor of it asks for {module}.{name}")
        return STORAGES[name]

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, int]:
        """Return dtype and count of a storage."""
        word, dtype, _, _, count, *_ = pid
        if word != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(count, int):
            raise ValueError("a tensor of it is no storage")
        return dtype, count


@dataclass
class _Storages:
    """Makes tensors of the storages in a file, which are torch files of their own."""

    size: int
    report: Report
    loaded: int = 0

    def load(self, data: bytes) -> Tensor:
        """Return the numbers of a storage, on the memory of ``data`` itself."""
        self.loaded += len(data)
        if self.loaded > self.size:
            raise ValueError("it reads the same tensors again and again")
        file = io.BytesIO(data)
        parts = []
        for _ in range(5):  # a mark, a version, the machine, the storage, its key
            start = file.tell()
            _survey(file, len(data), allowed={"BINPERSID"})
            file.seek(start)
            parts.append(_StorageReader(file).load())
        if parts[0] != TORCH_MARK or not isinstance(parts[3], tuple):
            raise ValueError("a tensor of it is no file of torch's older format")
        (dtype, count), start = parts[3], file.tell() + 8  # the count stands there once more
        if count < 0 or len(data) - start != count * dtype.itemsize:
            raise ValueError("a tensor of it is not the bytes that it declares")
        self.report(self.loaded)
        if count == 0:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype, count=count, offset=start)


def _names(storages: _Storages) -> dict[tuple[str, str], Any]:
    class ModuleDict(Record):
        kind = "ModuleDict"

    class EasyDict(dict[str, Any]):
        pass

    def record(meta: dict[str, Any]) -> Record:
        kind, name = meta["type"], meta["class_name"]
        if not isinstance(kind, str) or not isinstance(name, str):
            raise ValueError("it holds a persistent object whose class has no name")
        if kind != "class":
            raise ValueError(f"it holds a persistent {kind!r} in place of a class")
        return Record(name, meta["state"])

    def parameter(tensor: Any, *_: Any) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise ValueError("a parameter of it is no tensor")
        return tensor

    def view(*arguments: Any) -> Tensor:
        return _view(*arguments)

    def number_type(code: str, *_: Any) -> _NumberType:
        return _NumberType(code)

    def number(kind: _NumberType, data: bytes) -> Any:
        return struct.unpack(NUMBERS[kind.code], data)[0]

    return {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): record,
        ("torch.nn.modules.container", "ModuleDict"): ModuleDict,
        ("dnnlib.util", "EasyDict"): EasyDict,
        ("dnnlib", "EasyDict"): EasyDict,
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("torch.storage", "_load_from_bytes"): storages.load,
        ("torch._utils", "_rebuild_tensor"): view,
        ("torch._utils", "_rebuild_tensor_v2"): view,
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): parameter,
        ("numpy", "dtype"): number_type,
        # numpy 2 renamed the module.
        ("numpy.core.multiarray", "scalar"): number,
        ("numpy._core.multiarray", "scalar"): number,
    }


def _view(
    flat: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """A tensor on a storage, within it and not larger."""
    if not isinstance(flat, Tensor):
        raise ValueError("a tensor of it has no storage")
    numbers = (offset, *size, *stride)
    # Tensors in place of numbers would be multiplied, into any size.
    if len(size) > MOST_DIMENSIONS or not all(type(number) is int for number in numbers):
        raise ValueError("the shape of a tensor of it is not one of up to 8 whole numbers")
    count, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        count, last = count * length, last + max(length - 1, 0) * step
    if min(numbers) < 0 or max(count, last + 1 if count else 0) > flat.numel():
        raise ValueError(f"a tensor of it of shape {tuple(size)} does not lie in its storage")
    return flat.as_strided(size, stride, offset)


class _NumberType:
    """The type of a numpy number, by its code."""

    def __init__(self, code: str) -> None:
        if not isinstance(code, str) or code not in NUMBERS:
            known = ", ".join(NUMBERS)
            raise ValueError(f"a number of it is of a type that is not one of {known}")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            raise ValueError("a number of it has the bytes of another kind of machine")

"""From NVIDIA's pickle to a folder of ``model.safetensors`` and ``config.json``.

Tensors keep their published names without the leading ``model.``. The file records the arguments
that its networks were made with, and these become the config.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from indis.models.edm import CONFIG, TENSORS, build, require_shapes
from indis.models.edm.networks import NETWORKS
from indis.models.edm.pickles import Record, Report, read
from indis.models.edm.preconditioning import PRECONDITIONINGS
from indis.storage import MALFORMED, DamagedFileError, checksum, save_json, save_tensors

FORMAT = 1
# The published classes, and their arguments in order, up to the name of the network's class.
COMMON = ("img_resolution", "img_channels", "label_dim", "use_fp16")
PRECONDS = {
    "EDMPrecond": ("edm", (*COMMON, "sigma_min", "sigma_max", "sigma_data")),
    "VPPrecond": ("vp", (*COMMON, "beta_d", "beta_min", "M", "epsilon_t")),
    "VEPrecond": ("ve", (*COMMON, "sigma_min", "sigma_max")),
    "iDDPMPrecond": ("iddpm", (*COMMON, "C_1", "C_2", "M")),
}
DEEPEST, MOST_MODULES = 16, 10_000  # published networks have 5 levels and about 200 modules


def convert(path: Path, out: Path, net: str = "ema", report: Report = lambda done: None) -> int:
    """Convert a checkpoint, and return the number of its parameters.

    Args:
        path: NVIDIA's pickle.
        out: the folder that is written.
        net: which network of the file: "ema", the averaged one, or "raw".
        report: is called with the number of bytes of the tensors that were read so far.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is no EDM checkpoint, or lacks that network.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        config, tensors = _recovered(read(path, report), net)
        _check(config, tensors)
    except DamagedFileError:
        raise
    except (*MALFORMED, EOFError, MemoryError, UnpicklingError) as error:
        raise DamagedFileError(path, f"is no EDM checkpoint: {_reason(error)}") from None
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(out / TENSORS, {name: value.contiguous() for name, value in tensors.items()})
    source = {"file": path.name, "sha256": checksum(path)}
    sums = {"source": source, "tensors_sha256": checksum(out / TENSORS)}
    save_json(out / CONFIG, {"format": FORMAT, **config, "net": net, **sums})
    return sum(t.numel() for t in tensors.values())


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error) or type(error).__name__
    return f"it lacks {text}" if isinstance(error, KeyError) else text  # of a key alone


def _recovered(content: Any, net: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of one network of the file."""
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"it holds a {type(content).__name__}, not named networks")
    names = {"ema": ("ema",), "raw": ("raw", "net")}[net]
    whole = next((content[name] for name in names if name in content), None)
    if whole is None:
        raise ValueError(f"it has no network {net!r}, but {', '.join(sorted(content))}")
    kind, ordered = PRECONDS.get(getattr(whole, "kind", ""), (None, ()))
    if kind is None:
        found = getattr(whole, "kind", type(whole).__name__)
        raise ValueError(f"its network {net!r} is a {found}, not one of {', '.join(PRECONDS)}")
    network = whole.state["_modules"]["model"]
    if network.kind not in NETWORKS:
        raise ValueError(f"its network is a {network.kind}, not one of {', '.join(NETWORKS)}")
    own = list(inspect.signature(NETWORKS[network.kind]).parameters)
    config = {
        "precond": kind,
        "precond_args": _defaults(kind) | _picked(_arguments(whole, ordered), ordered),
        "network": network.kind,
        "network_args": _picked(_arguments(network, own), own),
    }
    return config, dict(_tensors(network, "", 0, set()))


def _defaults(kind: str) -> dict[str, Any]:
    known = fields(PRECONDITIONINGS[kind])  # type: ignore[arg-type]  # dataclasses
    values = {f.name: f.default for f in known if f.init and f.default is not MISSING}
    return {"label_dim": 0, "use_fp16": False, **{k: _plain(v) for k, v in values.items()}}


def _arguments(record: Record, ordered: Any) -> dict[str, Any]:
    """What an object was made with; older files have arguments without names."""
    given = record.state.get("_init_args", ())
    return dict(zip(ordered, given, strict=False)) | dict(record.state["_init_kwargs"])


def _picked(arguments: Mapping[str, Any], names: Any) -> dict[str, Any]:
    return {name: _plain(value) for name, value in arguments.items() if name in names}


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, list | tuple):
        if any(isinstance(one, list | tuple) for one in value):
            raise ValueError("an argument of its networks has lists within lists")
        return [_plain(one) for one in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"an argument of its networks is a {type(value).__name__}")


def _tensors(
    record: Record, prefix: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a module and of those below it."""
    if depth > DEEPEST or len(seen) > MOST_MODULES or id(record) in seen:
        raise ValueError("its modules lie in each other without end")
    seen.add(id(record))
    for group in ("_parameters", "_buffers"):
        for name, value in record.state[group].items():
            if value is not None:
                yield prefix + name, _tensor(prefix + name, value)
    for name, below in record.state["_modules"].items():
        if below is not None:
            yield from _tensors(below, f"{prefix}{name}.", depth + 1, seen)


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(f"{name} is no tensor of real numbers")
    return value.detach()


def _check(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Pass if the tensors are those of the network that the config describes."""
    network, _, _ = build(config)
    require_shapes(network, tensors)
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} has numbers that are not finite")
    if len({t.data_ptr() for t in tensors.values()}) < len(tensors):
        raise ValueError("two of its tensors are the same one")

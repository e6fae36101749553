"""A device that is not there: it computes on the CPU, and refuses what a real one refuses.

Its tensors call themselves ``meta``, hold the numbers on the CPU, and meet other tensors only as
CUDA's do: all of one operation must be here, but for scalars, indices and copies. So a run on it
gives the same bits as on the CPU, or fails where something was not brought over. ``asked`` counts
the operations, to tell that it was used at all.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

AWAY = torch.device("meta")
aten = torch.ops.aten
# What may cross devices: copies, and indices into a tensor (a condition that PyTorch documents for
# both).
CROSSING = {aten.copy_.default, aten._to_copy.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
}


class Away(torch.Tensor):
    """A tensor of the device; ``held`` are its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held):
        size, stride, offset = held.size(), held.stride(), held.storage_offset()
        return torch.Tensor._make_wrapper_subclass(
            cls, size, stride, offset, dtype=held.dtype, device=AWAY
        )

    def __init__(self, held):
        self.held = held.detach()

    def __repr__(self):
        return f"Away({self.held!r})"

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return dispatch(function, args, kwargs or {})


@contextmanager
def elsewhere():
    """While it is on, ``meta`` is the device above; the value counts what was done there."""
    with ExitStack() as stack:
        # Dispatch modes see other operations under inference mode; without gradient is all that it
        # is used for.
        plain = mock.patch.object(
            torch, "inference_mode", lambda on=True: torch.no_grad() if on else nullcontext()
        )
        stack.enter_context(plain)
        stack.enter_context(_Fresh())
        yield stack.enter_context(_Elsewhere())


class _Fresh(TorchFunctionMode):
    """Numbers from Python become true meta tensors, without values, before dispatch; here they are
    made and moved."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") is not None:
            return function(*args, **{k: v for k, v in kwargs.items() if k != "device"}).to(
                kwargs["device"]
            )
        if function is torch.Tensor.__getitem__ and isinstance(args[1], tuple | list):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return args[0][tuple(torch.tensor(i) if isinstance(i, list) else i for i in index)]
        return function(*args, **kwargs)


class _Elsewhere(TorchDispatchMode):
    asked = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.asked += any(isinstance(a, Away) for a in tree_flatten((args, kwargs))[0])
        return dispatch(function, args, kwargs or {})


def dispatch(function, args, kwargs):
    flat = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)]
    here, there = (
        [a for a in flat if not isinstance(a, Away)],
        [a for a in flat if isinstance(a, Away)],
    )
    if any(a.is_meta for a in here):
        raise RuntimeError(
            f"a meta tensor without numbers came to {function}, which this device cannot imitate"
        )
    if there and function not in CROSSING:
        strangers = [a for a in (here if function not in INDEXED else []) if a.ndim]
        if strangers:
            raise RuntimeError(
                f"all tensors must be on one device, {function} got CPU's "
                f"{tuple(strangers[0].shape)}"
            )
    target = kwargs.get("device")
    inside = {
        k: torch.device("cpu") if k == "device" and v is not None else v for k, v in kwargs.items()
    }
    result = function(*tree_map(opened, args), **tree_map(opened, inside))
    away = bool(there) if target is None else torch.device(target) == AWAY
    if function in (aten.copy_.default, *INDEXED):  # the first decides
        away = isinstance(args[0], Away)
    if not away:
        return result
    known = {id(a.held): a for a in there}
    return tree_map(lambda v: known.get(id(v), Away(v)) if type(v) is torch.Tensor else v, result)


def opened(value):
    return value.held if isinstance(value, Away) else value

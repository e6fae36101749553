"""NVIDIA's EDM checkpoints (Karras et al., 2022): CIFAR-10, FFHQ, AFHQv2 and ImageNet 64.

``indis convert edm FILE.pkl --out DIR`` turns a published pickle, without executing it, into a
folder of ``model.safetensors`` and ``config.json``. This family loads such a folder:

    edm:DIR                 float32
    edm:DIR,bf16            or fp16: convolutions and norms in half precision
    edm:DIR,compile         through torch.compile
    edm:DIR,even            classes in turn, where the model has classes

**Labels.** The label of a seed is by default the one that EDM's ``generate.py`` draws: each seed
starts a generator, which yields first the noise and then the class. Classes are then only roughly
equally frequent. With ``even`` the label is seed mod number of classes, and every class is equally
frequent. Published FIDs use the former; the difference is part of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from indis.denoise import UNCONDITIONAL, UNSAVED, Condition, Form
from indis.models.classes import class_condition, one_hot
from indis.models.edm.networks import NETWORKS
from indis.models.edm.preconditioning import (
    PRECONDITIONINGS,
    Preconditioning,
    noise_prediction,
    schedule,
)
from indis.models.edm.unet import UNet
from indis.storage import checksum, load_json, load_tensors

DESCRIPTION = "NVIDIA's EDM checkpoints: edm:DIR of `indis convert edm`"
NAME = "edm"
TENSORS, CONFIG = "model.safetensors", "config.json"
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
OPTIONS = (*HALVES, "compile", "even")
# Bounds of what a network is built from; published ones have at most 4 blocks and 4 levels.
LARGEST = {"num_blocks": 32, "channel_mult": 8, "img_resolution": 4096, "model_channels": 4096}


class EDMModel:
    """The frozen denoiser: noise form, times that are sigma.

    Args:
        network: its network, whose parameters are frozen.
        precond: the preconditioning around it.
        resolution: height and width of the pictures.
        channels: their channels; further ones of the network's answer, iDDPM's variances, are
            left out.
        compile: whether the network runs through torch.compile.
        even_labels: whether seeds take the classes in turn, and not at random.
        fingerprint: a text that changes with the weights.
    """

    name = NAME
    native = Form.NOISE

    def __init__(
        self,
        network: UNet,
        precond: Preconditioning,
        resolution: int,
        channels: int = 3,
        *,
        compile: bool = False,
        even_labels: bool = False,
        fingerprint: str = UNSAVED,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.precond, self.schedule = precond, schedule(precond)
        self.shape = (channels, resolution, resolution)
        self.classes, self.even_labels = network.label_dim, even_labels
        self.fingerprint = fingerprint
        self._ask = torch.compile(network.with_features) if compile else network.with_features
        # A runtime protocol takes an attribute that is None for an absent method.
        self.class_condition = self._class_condition if self.classes else None

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the noise prediction (x - D) / sigma.

        Args:
            x: states ``(batch, *shape)``.
            t: times ``(batch,)``, sigma.
            condition: with the input "label" ``(batch,)``, if there are classes.

        Returns:
            ``(batch, *shape)``, in the dtype of ``x``. It is computed in float32, or in the
            network's dtype if that is float64.
        """
        return self._answer(x, t, condition)[0]

    def with_features(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return the answer and features of its network, those of AMED.

        Args:
            x: states ``(batch, *shape)``.
            t: times ``(batch,)``, sigma.
            condition: as in a call.

        Returns:
            The answer, and the output of the encoder's last block averaged over its channels:
            ``(batch, 64)`` of the published networks, float32, without gradient.
        """
        answer, bottleneck = self._answer(x, t, condition)
        return answer, bottleneck.detach().float().mean(1).flatten(1)

    def _answer(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        work = torch.promote_types(self.network.dtype, torch.float32)
        labels = None
        if self.classes and "label" in condition.inputs:
            labels = one_hot(condition.inputs["label"], self.classes)
        bottleneck: list[Tensor] = []

        def network(scaled: Tensor, level: Tensor) -> Tensor:
            answer, features = self._ask(scaled, level, labels)
            bottleneck.append(features)
            return answer[:, : self.shape[0]].to(work)

        answer = noise_prediction(network, x.to(work), t.to(work), self.precond)
        return answer.to(x.dtype), bottleneck[0]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Return itself, with its network moved."""
        self.network.to(device)
        return self

    def decode(self, x: Tensor) -> Tensor:
        """Return ``x``: the model works on pixels."""
        return x

    def condition(self, seeds: list[int]) -> Condition:
        """Return each seed's class, or nothing for a model without classes."""
        if not self.classes:
            return UNCONDITIONAL
        if self.even_labels:
            return self._class_condition([seed % self.classes for seed in seeds])
        return self._class_condition(
            [drawn_label(seed, self.shape, self.classes) for seed in seeds]
        )

    def _class_condition(self, labels: list[int]) -> Condition:
        """The condition of labels 0 ... classes - 1, or ``classes`` for no label."""
        return class_condition(torch.tensor(labels, dtype=torch.int64), self.classes)


def drawn_label(seed: int, shape: tuple[int, ...], classes: int) -> int:
    """Return the class that EDM's ``generate.py`` draws for a seed, after the seed's noise.

    Args:
        seed: a whole number in 0 ... 2^32 - 1.
        shape: of a sample.
        classes: number of classes.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.randn(shape, generator=generator)  # the noise comes first
    return int(torch.randint(classes, (), generator=generator))


def load(detail: str = "") -> EDMModel:
    """Return the denoiser of a converted checkpoint.

    Args:
        detail: its folder, and options behind commas: bf16 or fp16, compile, even.

    Raises:
        FileNotFoundError: if a file of the folder is missing.
        ValueError: if no folder is named, it is a pickle, an option is unknown, or a file is
            damaged.
    """
    place, *options = detail.split(",")
    folder = Path(place)
    if unknown := set(options) - set(OPTIONS):
        raise ValueError(
            f"options of model edm must be among {', '.join(OPTIONS)}, got {min(unknown)!r}"
        )
    halves = [option for option in options if option in HALVES]
    if len(halves) > 1:
        raise ValueError("model edm takes one of bf16 and fp16, got both")
    _require_folder(place)
    config = load_json(folder / CONFIG)
    network, precond, shape = build(config)
    fingerprint = _fill(network, folder / TENSORS, config)
    for half in halves:
        network.cast_pictures(HALVES[half])
    marks = "".join(f"+{option}" for option in sorted({*halves, *{"even"} & {*options}}))
    return EDMModel(
        network,
        precond,
        *shape,
        compile="compile" in options,
        even_labels="even" in options,
        fingerprint=fingerprint[:16] + marks,
    )


def name_of(detail: str) -> str:
    """Return the name of the denoiser that :func:`load` returns, the same for all checkpoints."""
    return NAME


def build(config: Mapping[str, Any]) -> tuple[UNet, Preconditioning, tuple[int, int]]:
    """Return a network without weights (on the meta device), its preconditioning and pictures.

    Args:
        config: of a converted checkpoint.

    Returns:
        The network, the preconditioning, and resolution and channels of the pictures.

    Raises:
        ValueError: if the config describes no EDM model.
    """
    try:
        arguments = config["precond_args"]
        kind = PRECONDITIONINGS[config["precond"]]
        known = {f.name for f in fields(kind) if f.init}  # type: ignore[arg-type]  # dataclasses
        numbers = {
            name: float(value) if isinstance(value, str) else value  # "inf" has no number in JSON
            for name, value in arguments.items()
            if name in known and value is not None
        }
        _require_buildable(config["network_args"])
        with torch.device("meta"):
            network = NETWORKS[config["network"]](**config["network_args"])
        shape = (int(arguments["img_resolution"]), int(arguments["img_channels"]))
        return network, kind(**numbers), shape
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{CONFIG} does not describe an EDM model: {error}") from None


def _require_buildable(arguments: Mapping[str, Any]) -> None:
    """Pass if a network of these arguments is built in no time, whatever a file says."""
    sizes = {name: arguments.get(name, 1) for name in LARGEST}
    sizes["channel_mult"] = len(arguments.get("channel_mult", (1,)))
    for name, most in LARGEST.items():
        if not 0 < sizes[name] <= most:
            raise ValueError(f"{name} of its network must be in 1 ... {most}, got {sizes[name]}")


def require_shapes(network: UNet, tensors: Mapping[str, Tensor]) -> None:
    """Pass if tensors are those of a network, by their names and shapes.

    Raises:
        ValueError: if one is missing, too many, or of another shape.
    """
    wanted = network.state_dict()
    for name in sorted({*wanted, *tensors}):
        need, have = (tuple(d[name].shape) if name in d else None for d in (wanted, tensors))
        if need != have:
            raise ValueError(f"{name} must be {need}, got {have}")


def _require_folder(place: str) -> None:
    """Refuse what is not a converted checkpoint, and say how to make one."""
    convert = "indis convert edm FILE.pkl --out DIR"
    if not place:
        raise ValueError(f"model edm needs the folder that `{convert}` writes: edm:DIR")
    path = Path(place)
    if path.suffix == ".pkl":
        command = convert.replace("FILE.pkl", place)
        raise ValueError(
            f"{place} is a pickle, which could run any code; convert it first: "
            f"`{command}`, then name edm:DIR"
        )
    for name in (CONFIG, TENSORS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path / name} does not exist; `{convert}` writes it")


def _fill(network: UNet, path: Path, config: Mapping[str, Any]) -> str:
    """Load weights in float32 and return their checksum, which must be that of the config."""
    digest = checksum(path)
    if config.get("tensors_sha256") != digest:
        raise ValueError(f"{path} is not the file that its {CONFIG} was written with")
    tensors, _ = load_tensors(path)
    # Kept beside the tensors by iDDPM's preconditioning, which here computes it.
    tensors.pop("u", None)
    try:
        require_shapes(network, tensors)
    except ValueError as error:
        raise ValueError(f"{path} does not fit its {CONFIG}: {error}") from None
    network.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
    network.lay_out()
    return digest

r"""Galaxies: the score networks of the package galaxygrad 0.2.1, which nobody here made.

They were trained on pictures of the HSC, ZTF, LSST and Roman surveys (Sampson et al., 2024, arXiv
2401.07313). The package states no licence. So nothing of it is part of this project: its files are
read where they are installed, and nothing is imported or executed.

    galaxies                    hsc_ScoreNet32: galaxies of 32 x 32, 0.6 million parameters
    galaxies:hsc_ScoreNet64     another network of the package, by its name
    galaxies:FILE.eqx           a file of the same kind

The networks are MLP-Mixers that answer with the score of a variance-preserving process with
:math:`\int\beta = t`. Here it is EDM's process, whose time is the noise level:

.. math:: t = \log(1 + \sigma^2), \quad \alpha = (1 + \sigma^2)^{-1/2}, \quad
          \epsilon(x, \sigma) = -\alpha \sigma \, s(\alpha x, t)

**Units.** A sample is log brightness, 10 log(1 + flux). Pixels are one fixed map of it, black at
-0.25 and white at 7.25. Of the default network's teacher fewer than one pixel in ten thousand lies
outside, where pictures are clipped. The loss "log-brightness" is the mean square difference in the
samples' own unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from indis.denoise import UNCONDITIONAL, UNSAVED, Condition, Form
from indis.losses import Loss, mse
from indis.noise import EDM
from indis.numerics import broadcast
from indis.storage import checksum

DESCRIPTION = "pictures of galaxies, read from the installed package galaxygrad; galaxies:NET"
NAME, DEFAULT = "galaxies", "hsc_ScoreNet32"
PACKAGE, INSTALL = "galaxygrad", "pip install --no-deps galaxygrad==0.2.1"
PREFIX, SUFFIX = "eqx_", ".eqx"  # of its files
BLACK, WHITE = -0.25, 7.25  # log brightness of pixels -1 and 1
FIRST_T = 1e-3  # the least t at which a network is asked; the package samples down to 0
A_BLOCK, AROUND = 12, 7  # arrays of a block, and of the rest with the largest time


class MixerBlock(nn.Module):
    """Mixes places, then channels.

    Args:
        places: number of patches.
        channels: numbers at each of them.
        inner: widths of the two hidden layers.
    """

    def __init__(self, places: int, channels: int, inner: tuple[int, int]) -> None:
        super().__init__()
        self.of_places = _perceptron(places, inner[0])
        self.of_channels = _perceptron(channels, inner[1])
        self.norms = nn.ModuleList(
            [nn.LayerNorm((channels, places)), nn.LayerNorm((places, channels))]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, places)`` to the same shape."""
        first, second = self.norms
        x = x + self.of_places(first(x))
        turned = x.transpose(1, 2)
        return (turned + self.of_channels(second(turned))).transpose(1, 2)


class Mixer(nn.Module):
    """The score network; its parameters come in the order of the package's files.

    Args:
        arrays: the numbers of a file, from which it takes its sizes.

    Raises:
        ValueError: if they are not those of such a network.
    """

    def __init__(self, arrays: list[Tensor]) -> None:
        super().__init__()
        count, left = divmod(len(arrays) - AROUND, A_BLOCK)
        if count < 1 or left:
            raise ValueError(f"a network has {AROUND} + {A_BLOCK} n arrays, got {len(arrays)}")
        channels, patch = arrays[0].shape[0], arrays[0].shape[-1]
        places, inner = arrays[4].shape[1], (arrays[4].shape[0], arrays[8].shape[0])
        self.side, self.last_t = patch * math.isqrt(places), float(arrays[-1])
        self.enter = nn.Conv2d(2, channels, patch, stride=patch)
        self.leave = nn.ConvTranspose2d(channels, 1, patch, stride=patch)
        self.blocks = nn.ModuleList(MixerBlock(places, channels, inner) for _ in range(count))
        self.norm = nn.LayerNorm((channels, places))
        with torch.no_grad():
            for parameter, array in zip(self.parameters(), arrays[:-1], strict=True):
                parameter.copy_(array.reshape(parameter.shape))
            # The package's transposed convolution is a convolution of the spread-out input.
            self.leave.weight.copy_(arrays[2].transpose(0, 1).flip(-1, -2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score ``(batch, 1, side, side)``.

        Args:
            x: states ``(batch, 1, side, side)`` of the variance-preserving process.
            t: its times ``(batch,)``, in (0, last_t].
        """
        plane = broadcast(t / self.last_t, x).expand_as(x)
        patches = self.enter(torch.cat([x, plane], 1))
        mixed = patches.flatten(2)
        for block in self.blocks:
            mixed = block(mixed)
        return self.leave(self.norm(mixed).unflatten(2, patches.shape[2:]))


def _perceptron(size: int, inner: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, inner), nn.ReLU(), nn.Linear(inner, size))


class Galaxies:
    """The frozen denoiser: noise form, times that are sigma, no condition.

    Args:
        network: its network, whose parameters are frozen.
        name: its name.
        fingerprint: a text that changes with the weights.
    """

    native = Form.NOISE

    def __init__(self, network: Mixer, name: str = NAME, fingerprint: str = UNSAVED) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name, self.fingerprint = name, fingerprint
        self.shape = (1, network.side, network.side)
        low, high = (math.sqrt(math.expm1(t)) for t in (FIRST_T, network.last_t))
        self.schedule = EDM(t_min=low, t_max=high)

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the noise prediction ``(batch, *shape)``, in the dtype of ``x``.

        Args:
            x: states ``(batch, *shape)``.
            t: times ``(batch,)``, sigma.
            condition: not read.
        """
        variance = t.double().square()
        alpha = (1 + variance).rsqrt()
        score = self.network(broadcast(alpha, x).float() * x.float(), variance.log1p().float())
        return (-broadcast(alpha * t, x).float() * score).to(x.dtype)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.norm.weight.device

    def to(self, device: torch.device | str) -> Galaxies:
        """Return itself, with its network moved."""
        self.network.to(device)
        return self

    def decode(self, x: Tensor) -> Tensor:
        """Return log brightness ``x`` as pixels, which are in [-1, 1] but for rare extremes."""
        return 2 * (x - BLACK) / (WHITE - BLACK) - 1

    def condition(self, seeds: list[int]) -> Condition:
        """Return no condition: the model has none."""
        return UNCONDITIONAL


def load(detail: str = DEFAULT) -> Galaxies:
    """Return the denoiser of a network of the installed package, or of a file of its kind.

    Raises:
        FileNotFoundError: if the package is not installed, or there is no such file.
        ValueError: if it has no network of this name, or the file holds none.
    """
    path = Path(detail) if detail.endswith(SUFFIX) else _installed(detail)
    try:
        network = Mixer(_arrays(path))
    except (IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a score network of {PACKAGE}: {error}") from None
    return Galaxies(network, name_of(detail), checksum(path)[:16])


def name_of(detail: str) -> str:
    """Return the name of the denoiser that :func:`load` returns."""
    return NAME if detail in ("", DEFAULT) else f"{NAME}-{Path(detail).stem}"


def log_brightness(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean square differences ``(batch,)`` of decoded samples, in log brightness."""
    return ((WHITE - BLACK) / 2) ** 2 * mse(student, teacher)


def _loss(features: Path | None) -> Loss:
    if features is not None:
        raise ValueError("features must be left out for loss 'log-brightness', which has none")
    return log_brightness


LOSSES: dict[str, Callable[[Path | None], Loss]] = {"log-brightness": _loss}


def _installed(name: str) -> Path:
    """The file of a network in the installed package, which is not imported."""
    found = find_spec(PACKAGE)
    if found is None or found.submodule_search_locations is None:
        raise FileNotFoundError(
            f"model {NAME} reads its weights from the package {PACKAGE}, which is not installed: "
            f"{INSTALL}"
        )
    files = sorted(Path(found.submodule_search_locations[0]).glob(f"{PREFIX}*{SUFFIX}"))
    known = {path.stem.removeprefix(PREFIX): path for path in files}
    if name not in known:
        listed = ", ".join(known) or f"none, which version 0.2.1 has: {INSTALL}"
        raise ValueError(f"model {NAME} has the networks {listed}, got {name!r}")
    return known[name]


def _arrays(path: Path) -> list[Tensor]:
    """Read a file of consecutive arrays in numpy's format, as equinox writes them; no pickles."""
    arrays = []
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            arrays.append(torch.from_numpy(np.load(file, allow_pickle=False)))
    return arrays

"""A small class-conditional EDM model of Fashion-MNIST that ships with the package.

The backbone is diffusers' ``UNet2DModel`` on 2x2 space-to-depth blocks (28x28x1 becomes 14x14x4),
which halves the cost of every convolution's grid; EDM preconditioning with sigma_data = 0.7
surrounds it. Class 10 means "no label".
"""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis.denoise import UNSAVED, Condition, Form
from indis.models import edm
from indis.models.fashion_data import CLASSES
from indis.models.fashion_features import LOSSES as LOSSES
from indis.noise import EDM
from indis.storage import checksum, load_tensors

if TYPE_CHECKING:
    from diffusers import UNet2DModel

DESCRIPTION = "class-conditional Fashion-MNIST, ships; fashion:PATH loads other weights"
SIGMA_DATA = 0.7
NO_LABEL = len(CLASSES)
WEIGHTS = Path(__file__).parent / "weights" / "fashion.safetensors"


def backbone() -> UNet2DModel:
    """The untrained U-Net, 2.25 M parameters."""
    # Imported here: it takes seconds, and only this family needs it.
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=14,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96),
        layers_per_block=2,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        num_class_embeds=NO_LABEL + 1,
    )


class FashionNetwork(nn.Module):
    """F(c_in x, c_noise, label): the raw network inside the preconditioning."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = backbone()
        self.unet.mid_block.register_forward_hook(_hand_over)

    def forward(self, x: Tensor, noise_level: Tensor, label: Tensor) -> Tensor:
        """``x`` ``(batch, 1, 28, 28)``, ``noise_level`` and ``label`` ``(batch,)``; the shape of
        ``x``.
        """
        # 250 spreads ln(sigma) / 4 over the range that the sinusoidal embedding resolves.
        blocks = self.unet(F.pixel_unshuffle(x, 2), 250 * noise_level, class_labels=label)
        return F.pixel_shuffle(blocks.sample, 2)


# Where the call in progress wants the middle block's outputs; each thread has its own.
_WANTED: ContextVar[list[Tensor] | None] = ContextVar("wanted", default=None)


def _hand_over(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Append a detached output of the middle block to the list that wants it, if there is one."""
    if (wanted := _WANTED.get()) is not None:
        wanted.append(output.detach())


class Fashion:
    """The frozen denoiser: noise form, EDM schedule, labels as condition."""

    name = "fashion"
    shape = (1, 28, 28)
    native = Form.NOISE
    class_names = CLASSES

    def __init__(
        self,
        network: FashionNetwork,
        schedule: EDM | None = None,
        *,
        bf16: bool = False,
        fingerprint: str = UNSAVED,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.schedule, self.bf16, self.fingerprint = schedule or EDM(), bf16, fingerprint

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(x - D) / sigma at per-sample times."""
        label = condition.inputs["label"]

        def network(scaled: Tensor, noise_level: Tensor) -> Tensor:
            with torch.autocast(scaled.device.type, torch.bfloat16, enabled=self.bf16):
                return self.network(scaled, noise_level, label).float()

        return edm.noise_prediction(network, x.float(), t.float(), SIGMA_DATA).to(x.dtype)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Fashion:
        """Itself, with its network moved."""
        self.network.to(device)
        return self

    def with_features(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return the answer and features of its network.

        Args:
            x: states ``(batch, 1, 28, 28)``.
            t: times ``(batch,)``.
            condition: the batch's labels.

        Returns:
            The answer, and the output of the U-Net's middle block averaged over its channels: a
            7 x 7 map ``(batch, 49)``, float32, without gradient.
        """
        outputs: list[Tensor] = []
        token = _WANTED.set(outputs)
        try:
            answer = self(x, t, condition)
        finally:
            _WANTED.reset(token)
        return answer, outputs[0].float().mean(1).flatten(1)

    def in_bf16(self) -> Fashion:
        """The same network under bfloat16 autocast: about twice as fast on CPUs that have it."""
        return Fashion(self.network, self.schedule, bf16=True, fingerprint=self.fingerprint)

    def decode(self, x: Tensor) -> Tensor:
        """The identity: the model works on pixels."""
        return x

    def condition(self, seeds: list[int]) -> Condition:
        """Class ``seed mod 10``: every run of ten consecutive seeds shows every class once."""
        return self.class_condition([seed % NO_LABEL for seed in seeds])

    def class_condition(self, labels: list[int]) -> Condition:
        """Classes 0 ... 9, or 10 for no label.

        Raises:
            ValueError: if a label is out of range.
        """
        return class_condition(torch.tensor(labels))


def class_condition(labels: Tensor) -> Condition:
    """The condition of class labels ``(batch,)`` in 0 ... 9, or 10 for no label (an all-zero
    feature).

    Raises:
        ValueError: if a label is out of range.
    """
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) <= NO_LABEL):
        raise ValueError(
            f"label must be 0 ... 9 or 10 for no label, got {sorted(set(labels.tolist()))}"
        )
    one_hot = F.one_hot(labels, NO_LABEL + 1)[:, :NO_LABEL].float()
    return Condition({"label": labels}, one_hot / NO_LABEL**0.5)


def load(weights: Path | str = WEIGHTS) -> Fashion:
    """Return the denoiser with weights of float16 or float32, by default those that ship.

    Args:
        weights: a safetensors file, or the folder that ``indis train-model`` wrote.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged or holds another network.
    """
    network = FashionNetwork()
    fill(network, Path(weights))
    return Fashion(network, fingerprint=checksum(_file(Path(weights)))[:16])


def name_of(detail: str) -> str:
    """Return the name of the denoiser that :func:`load` returns, the same for all weights."""
    return Fashion.name


def fill(network: FashionNetwork, weights: Path) -> None:
    """Read a file of weights, or that of a trained model's folder, into a network.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged or holds another network.
    """
    tensors, _ = load_tensors(_file(weights))
    try:
        network.load_state_dict({k: v.float() for k, v in tensors.items()})
    except RuntimeError:
        raise ValueError(
            f"{weights} does not hold the weights of the Fashion-MNIST model"
        ) from None


def _file(weights: Path) -> Path:
    """A folder means the weights that training exports into it."""
    return weights / WEIGHTS.name if weights.is_dir() else weights

"""A small class-conditional EDM model of Fashion-MNIST that ships with the package.

The backbone is diffusers' ``UNet2DModel`` on blocks of 2 x 2 pixels (28x28x1 becomes 14x14x4), so
that convolutions run at a quarter of the positions. EDM preconditioning with sigma_data = 0.7
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
from indis.models import classes
from indis.models.edm import preconditioning
from indis.models.fashion_data import CLASSES
from indis.models.fashion_features import LOSSES as LOSSES
from indis.noise import EDM
from indis.storage import checksum, load_tensors

if TYPE_CHECKING:
    from diffusers import UNet2DModel

DESCRIPTION = "class-conditional Fashion-MNIST, ships; fashion:PATH loads other weights"
PRECOND = preconditioning.EDMPrecond(sigma_data=0.7)
NO_LABEL = len(CLASSES)
WEIGHTS = Path(__file__).parent / "weights" / "fashion.safetensors"


def backbone() -> UNet2DModel:
    """Return the untrained U-Net, of 2.25 million parameters."""
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
        """Return F.

        Args:
            x: scaled images ``(batch, 1, 28, 28)``.
            noise_level: c_noise ``(batch,)``.
            label: class labels ``(batch,)``, 10 for none.

        Returns:
            ``(batch, 1, 28, 28)``.
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
    """The frozen denoiser: noise form, EDM schedule, class labels as condition.

    Args:
        network: its network, whose parameters are frozen.
        schedule: the EDM schedule, the published one by default.
        bf16: whether the network runs under bfloat16 autocast.
        fingerprint: a text that changes with the weights.
    """

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
        """Return the noise prediction (x - D) / sigma.

        Args:
            x: states ``(batch, 1, 28, 28)``.
            t: times ``(batch,)``, sigma.
            condition: with the input "label" ``(batch,)``.

        Returns:
            ``(batch, 1, 28, 28)``, in the dtype of ``x``.
        """
        label = condition.inputs["label"]

        def network(scaled: Tensor, noise_level: Tensor) -> Tensor:
            with torch.autocast(scaled.device.type, torch.bfloat16, enabled=self.bf16):
                return self.network(scaled, noise_level, label).float()

        return preconditioning.noise_prediction(network, x.float(), t.float(), PRECOND).to(x.dtype)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Fashion:
        """Return itself, with its network moved."""
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
        """Return a denoiser of the same network under bfloat16 autocast.

        It is about twice as fast on CPUs that have bfloat16.
        """
        return Fashion(self.network, self.schedule, bf16=True, fingerprint=self.fingerprint)

    def decode(self, x: Tensor) -> Tensor:
        """Return ``x``: the model works on pixels."""
        return x

    def condition(self, seeds: list[int]) -> Condition:
        """Return class ``seed mod 10`` for each seed, so ten in a row show every class."""
        return self.class_condition([seed % NO_LABEL for seed in seeds])

    def class_condition(self, labels: list[int]) -> Condition:
        """Return the condition of labels 0 ... 9, or 10 for no label.

        Raises:
            ValueError: if a label is out of range.
        """
        return class_condition(torch.tensor(labels))


def class_condition(labels: Tensor) -> Condition:
    """Return the condition of class labels.

    Args:
        labels: ``(batch,)`` in 0 ... 9, or 10 for no label.

    Returns:
        The labels as the network's input, and as features a one-hot vector over the root of 10,
        all zero for no label.

    Raises:
        ValueError: if a label is out of range.
    """
    return classes.class_condition(labels, NO_LABEL)


def load(weights: Path | str = WEIGHTS) -> Fashion:
    """Return the denoiser with weights of float16 or float32, by default those that ship.

    Args:
        weights: a safetensors file, or the folder that ``indis bench train`` wrote.

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
    """Load weights into a network.

    Args:
        network: the network to fill.
        weights: a safetensors file, or the folder of a trained model.

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
    """The file itself, or the one that training exports into a folder."""
    return weights / WEIGHTS.name if weights.is_dir() else weights

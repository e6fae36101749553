"""What EDM's networks share: the walk down to the bottleneck and up again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from indis.models.edm.layers import Block, Conv, Linear


class UNet(nn.Module, ABC):
    """What both networks share: the walk down and up.

    Args:
        in_channels: number of channels of the pictures.
        label_dim: number of classes; 0 for none.
        label_dropout: probability of training without a class.
    """

    map_noise: nn.Module
    map_label: Linear | None
    map_augment: Linear | None
    enc: nn.ModuleDict
    dec: nn.ModuleDict

    def __init__(self, in_channels: int, label_dim: int, label_dropout: float) -> None:
        super().__init__()
        self.in_channels, self.label_dim = in_channels, label_dim
        self.label_dropout = label_dropout

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the convolutions."""
        return next(self.enc.parameters()).dtype

    def cast_pictures(self, dtype: torch.dtype) -> UNet:
        """Cast convolutions and norms, such as to float16 or bfloat16; embeddings stay as they are.

        Returns:
            The network itself.
        """
        for module in self.modules():
            if isinstance(module, Conv | nn.GroupNorm):
                module.to(dtype)
        return self

    def lay_out(self) -> UNet:
        """Lay kernels out with channels last, as convolutions are fastest; return the network."""
        for weight in self.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        return self

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the answer F alone; see :meth:`with_features`."""
        return self.with_features(x, level, labels, augment_labels)[0]

    def with_features(
        self,
        x: Tensor,
        level: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the answer F and the output of the last block of the encoder.

        Args:
            x: scaled pictures ``(batch, in_channels, height, width)``.
            level: c_noise ``(batch,)``.
            labels: one-hot classes ``(batch or 1, label_dim)``; a row of zeros, or None for all,
                is the null class.
            augment_labels: what was done to training pictures ``(batch, augment_dim)``; None for
                nothing.

        Returns:
            ``(batch, out_channels, height, width)`` in the dtype of the convolutions, and the
            bottleneck ``(batch, channels, height, width)``.
        """
        if self.map_label is not None:
            labels = level.new_zeros(1, self.label_dim) if labels is None else labels
            if self.training and self.label_dropout:
                keep = torch.rand(len(x), 1, device=x.device) >= self.label_dropout
                labels = labels * keep
        emb = self._embedded(level, labels, augment_labels)
        x = x.to(self.dtype)
        bottleneck, skips = self._encoded(x, emb)
        x = bottleneck
        for block in self.dec.values():
            if isinstance(block, Block):
                if x.shape[1] != block.cin:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = block(x, emb)
        return self._answer(x), bottleneck

    def _encoded(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The encoder's output, and what the decoder will take of it."""
        skips: list[Tensor] = []
        thumbnail = x
        for name, block in self.enc.items():
            if name.endswith("_aux_residual"):
                # NCSN++ feeds ever smaller versions of the picture in beside the features.
                x = skips[-1] = thumbnail = (x + block(thumbnail)) / sqrt(2)
                continue
            x = block(x, emb) if isinstance(block, Block) else block(x)
            skips.append(x)
        return x, skips

    @abstractmethod
    def _embedded(
        self, level: Tensor, labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """The embedding ``(batch, emb)`` that all blocks read."""

    @abstractmethod
    def _answer(self, x: Tensor) -> Tensor:
        """F of the decoder's last features."""


def encoder(
    block: Callable[..., Block],
    cin: int,
    first: int,
    widths: Sequence[int],
    resolution: int,
    *,
    num_blocks: int,
    attends: Collection[int],
    thumbnails: Sequence[float] | None = None,
) -> tuple[nn.ModuleDict, list[int]]:
    """Return the blocks on the way down by their published names, and the widths of their answers.

    Args:
        block: makes a block of ``(cin, cout)``, ``resample`` and ``attention``.
        cin: channels of the pictures.
        first: width of the first convolution.
        widths: of each level.
        resolution: height and width of the pictures.
        num_blocks: blocks a level.
        attends: resolutions with attention.
        thumbnails: the taps with which NCSN++ shrinks its side branch; None for no such branch.
    """
    enc, skips = nn.ModuleDict(), []
    cout, aside = first, cin
    for level, width in enumerate(widths):
        size = resolution >> level
        if level == 0:
            enc[f"{size}x{size}_conv"] = Conv(cin, first, 3)
            skips.append(first)
        else:
            enc[f"{size}x{size}_down"] = block(cout, cout, resample="down")
            if thumbnails is not None:
                enc[f"{size}x{size}_aux_residual"] = Conv(
                    aside, cout, 3, resample="down", taps=thumbnails, resample_last=True
                )
                aside = cout
            skips.append(cout)
        for i in range(num_blocks):
            enc[f"{size}x{size}_block{i}"] = block(cout, width, attention=size in attends)
            cout = width
            skips.append(cout)
    return enc, skips


def decoder(
    block: Callable[..., Block],
    skips: Sequence[int],
    widths: Sequence[int],
    resolution: int,
    *,
    num_blocks: int,
    attends: Callable[[int, int], bool],
) -> nn.ModuleDict:
    """Return the blocks on the way up by their published names.

    Args:
        block: makes a block of ``(cin, cout)``, ``resample`` and ``attention``.
        skips: widths of the encoder's answers, which the blocks read from the last to the first.
        widths: of each level.
        resolution: height and width of the pictures.
        num_blocks: blocks a level, of which there is one more on this way.
        attends: whether the block of a resolution and index has attention.
    """
    dec, remaining = nn.ModuleDict(), list(skips)
    cout = widths[-1]
    for level, width in reversed(list(enumerate(widths))):
        size = resolution >> level
        if level == len(widths) - 1:
            dec[f"{size}x{size}_in0"] = block(cout, cout, attention=True)
            dec[f"{size}x{size}_in1"] = block(cout, cout)
        else:
            dec[f"{size}x{size}_up"] = block(cout, cout, resample="up")
        for i in range(num_blocks + 1):
            dec[f"{size}x{size}_block{i}"] = block(
                cout + remaining.pop(), width, attention=attends(size, i)
            )
            cout = width
    return dec

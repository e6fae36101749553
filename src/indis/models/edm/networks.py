r"""EDM's two networks (Karras et al., 2022, Table 7), with published parameter names.

=============  ======================================================================
SongUNet       DDPM++ (``encoder_type="standard"``) and NCSN++ ("residual") of
               Song et al. (2021): CIFAR-10, FFHQ, AFHQv2
DhariwalUNet   ADM of Dhariwal & Nichol (2021): ImageNet 64
=============  ======================================================================

Constructor arguments bear the names under which checkpoints record them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from indis.checks import require_choice
from indis.models.edm.layers import (
    Block,
    Conv,
    FourierEmbedding,
    Linear,
    PositionalEmbedding,
    group_norm,
)
from indis.models.edm.unet import UNet, decoder, encoder

HEAD_CHANNELS = 64  # of ADM's attention


class SongUNet(UNet):
    """DDPM++ and NCSN++ (Song et al., 2021), as EDM has them.

    Args:
        img_resolution: height and width of the pictures.
        in_channels: their channels.
        out_channels: channels of the answer.
        label_dim: number of classes; 0 for none.
        augment_dim: size of augmentation labels; 0 for none.
        model_channels: width at the finest level before its factor.
        channel_mult: factor of the width at each level.
        channel_mult_emb: factor of the embedding's size.
        num_blocks: blocks a level.
        attn_resolutions: resolutions with attention.
        dropout: probability in training.
        label_dropout: probability of training without a class.
        embedding_type: "positional" (DDPM++) or "fourier" (NCSN++).
        channel_mult_noise: factor of the noise embedding's size: 1 (DDPM++), 2 (NCSN++).
        encoder_type: "standard" (DDPM++) or "residual" (NCSN++).
        decoder_type: "standard".
        resample_filter: (1, 1) (DDPM++) or (1, 3, 3, 1) (NCSN++).

    Raises:
        ValueError: for a type of embedding, encoder or decoder that no EDM checkpoint has.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__(in_channels, label_dim, label_dropout)
        require_choice("embedding_type", embedding_type, Literal["positional", "fourier"])
        require_choice("encoder_type", encoder_type, Literal["standard", "residual"])
        if decoder_type != "standard":
            raise ValueError(f"decoder_type must be standard, got {decoder_type!r}")
        emb, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        self.map_noise = (
            PositionalEmbedding(noise, endpoint=True)
            if embedding_type == "positional"
            else FourierEmbedding(noise)
        )
        self.map_label = Linear(label_dim, noise) if label_dim else None
        self.map_augment = Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(noise, emb), Linear(emb, emb)

        def block(
            cin: int, cout: int, *, resample: str | None = None, attention: bool = False
        ) -> Block:
            return Block(
                cin,
                cout,
                emb,
                heads=int(attention),
                taps=resample_filter,
                dropout=dropout,
                skip_scale=sqrt(0.5),
                eps=1e-6,
                project=True,
                adaptive_scale=False,
                resample=resample,
            )

        widths = [model_channels * factor for factor in channel_mult]
        self.enc, skips = encoder(
            block,
            in_channels,
            model_channels,
            widths,
            img_resolution,
            num_blocks=num_blocks,
            attends=attn_resolutions,
            thumbnails=resample_filter if encoder_type == "residual" else None,
        )
        self.dec = decoder(
            block,
            skips,
            widths,
            img_resolution,
            num_blocks=num_blocks,
            attends=lambda size, i: i == num_blocks and size in attn_resolutions,
        )
        self._last = f"{img_resolution}x{img_resolution}_aux"
        self.dec[f"{self._last}_norm"] = group_norm(widths[0], 1e-6)
        self.dec[f"{self._last}_conv"] = Conv(widths[0], out_channels, 3)

    def _embedded(
        self, level: Tensor, labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        emb = self.map_noise(level)
        emb = torch.cat(emb.chunk(2, dim=1)[::-1], dim=1)  # sines first
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels.to(emb.dtype) * sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(emb.dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def _answer(self, x: Tensor) -> Tensor:
        return self.dec[f"{self._last}_conv"](F.silu(self.dec[f"{self._last}_norm"](x)))


class DhariwalUNet(UNet):
    """ADM (Dhariwal & Nichol, 2021), as EDM has it.

    Args:
        img_resolution: height and width of the pictures.
        in_channels: their channels.
        out_channels: channels of the answer.
        label_dim: number of classes; 0 for none.
        augment_dim: size of augmentation labels; 0 for none.
        model_channels: width at the finest level before its factor.
        channel_mult: factor of the width at each level.
        channel_mult_emb: factor of the embedding's size.
        num_blocks: blocks a level.
        attn_resolutions: resolutions with attention, of heads of 64 channels.
        dropout: probability in training.
        label_dropout: probability of training without a class.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.1,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, label_dim, label_dropout)
        emb = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(model_channels, emb), Linear(emb, emb)
        self.map_label = Linear(label_dim, emb, bias=False) if label_dim else None

        def block(
            cin: int, cout: int, *, resample: str | None = None, attention: bool = False
        ) -> Block:
            heads = cout // HEAD_CHANNELS if attention else 0
            return Block(cin, cout, emb, resample=resample, heads=heads, dropout=dropout)

        widths = [model_channels * factor for factor in channel_mult]
        self.enc, skips = encoder(
            block,
            in_channels,
            widths[0],
            widths,
            img_resolution,
            num_blocks=num_blocks,
            attends=attn_resolutions,
        )
        self.dec = decoder(
            block,
            skips,
            widths,
            img_resolution,
            num_blocks=num_blocks,
            attends=lambda size, i: size in attn_resolutions,
        )
        self.out_norm = group_norm(widths[0], 1e-5)
        self.out_conv = Conv(widths[0], out_channels, 3)

    def _embedded(
        self, level: Tensor, labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        emb = self.map_noise(level)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(emb.dtype))
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels.to(emb.dtype))
        return F.silu(emb)

    def _answer(self, x: Tensor) -> Tensor:
        return self.out_conv(F.silu(self.out_norm(x)))


NETWORKS: dict[str, type[UNet]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}

"""Qwen-Image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from indis.diffusers.families.base import Family, Given, masked_mean, spread


class QwenImage(Family):
    """Qwen2.5-VL, guidance by a second pass, latents in patches of 2 x 2."""

    pipelines = ("QwenImagePipeline",)
    twice = True
    pooled = "mean of the Qwen2.5-VL tokens that are not padding"
    scale = "true_cfg_scale"
    over = 1000.0

    def features(self, pipe: Any, encoded: Any, given: Given) -> Tensor:
        """Return the mean of the tokens; without a mask none is padding."""
        tokens, mask = encoded
        return masked_mean(tokens, torch.ones(tokens.shape[:2]) if mask is None else mask)

    def unpack(self, pipe: Any, latents: Tensor, given: Given) -> Tensor:
        """Undo the patches."""
        sizes = given["height"], given["width"], pipe.vae_scale_factor
        pictures: Tensor = pipe._unpack_latents(latents, *sizes).squeeze(2)
        return pictures

    def pack(self, pipe: Any, latents: Tensor, given: Given) -> Tensor:
        """Make patches."""
        return pipe._pack_latents(latents, *latents.shape)

    def guided(self, parts: Sequence[Tensor], scale: float) -> Tensor:
        """Keep the length of the answer with the prompt, place by place."""
        mixed, given = super().guided(parts, scale), parts[0]
        return mixed * (given.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """A picture is a video of one frame."""
        moved = spread(pipe.vae, latents.unsqueeze(2))
        pictures: Tensor = pipe.vae.decode(moved, return_dict=False)[0][:, :, 0]
        return pictures

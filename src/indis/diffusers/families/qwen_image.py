"""Qwen-Image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from indis.diffusers.families.base import Family, Given, masked_mean


class QwenImage(Family):
    """Qwen2.5-VL, guidance by a second pass, latents in patches of 2 x 2."""

    pipelines = ("QwenImagePipeline",)
    twice = True
    pooled = "mean of the Qwen2.5-VL tokens that are not padding"

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

"""FLUX.1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from indis.diffusers.families.base import Family, Given, masked_mean, token_mask


class Flux(Family):
    """CLIP and T5, guidance embedded or by a second pass, latents in patches of 2 x 2."""

    pipelines = ("FluxPipeline",)
    twice = True
    pooled = "mean of the T5 tokens that are not padding ++ pooled CLIP"
    scale = "true_cfg_scale"
    over = 1000.0

    def features(self, pipe: Any, encoded: Any, given: Given) -> Tensor:
        """Return the mean of the tokens beside the pooled vector."""
        tokens, vector = encoded[:2]
        prompts = given.get("prompt_2") or given["prompt"]
        prompts = None if given.get("prompt_embeds") is not None else prompts
        mask = token_mask(pipe.tokenizer_2, prompts, tokens)
        return torch.cat([masked_mean(tokens, mask), vector.float()], dim=1)

    def unpack(self, pipe: Any, latents: Tensor, given: Given) -> Tensor:
        """Undo the patches."""
        return pipe._unpack_latents(latents, given["height"], given["width"], pipe.vae_scale_factor)

    def pack(self, pipe: Any, latents: Tensor, given: Given) -> Tensor:
        """Make patches."""
        return pipe._pack_latents(latents, *latents.shape)

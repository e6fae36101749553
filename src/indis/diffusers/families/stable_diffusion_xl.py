"""Stable Diffusion XL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from indis.diffusers.families.base import Family, Given, masked_mean, token_mask


class StableDiffusionXL(Family):
    """Two CLIP encoders, a doubled batch."""

    pipelines = ("StableDiffusionXLPipeline",)
    doubles = True
    pooled = "mean of the tokens of both CLIP encoders that are not padding ++ pooled CLIP"

    def features(self, pipe: Any, encoded: Any, given: Given) -> Tensor:
        """Return the mean of the tokens beside the pooled vector."""
        tokens, _, vector, _ = encoded
        prompts = None if given.get("prompt_embeds") is not None else given["prompt"]
        mask = token_mask(pipe.tokenizer or pipe.tokenizer_2, prompts, tokens)
        return torch.cat([masked_mean(tokens, mask), vector.float()], dim=1)

    def refusal(self, pipe: Any, own_times: bool) -> str | None:
        """An ensemble of experts stops in the middle of the plan."""
        if pipe.denoising_end is not None:
            return "denoising_end must be None, a plan is made for the whole way"
        return None

"""Stable Diffusion 1.x and 2.x, with noise or v predictions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from indis.diffusers.families.base import Family, Given, masked_mean, token_mask


class StableDiffusion(Family):
    """One CLIP encoder, a doubled batch."""

    pipelines = ("StableDiffusionPipeline",)
    doubles = True
    pooled = "mean of the CLIP tokens that are not padding"

    def features(self, pipe: Any, encoded: Any, given: Given) -> Tensor:
        """Return the mean of the tokens."""
        prompts = None if given.get("prompt_embeds") is not None else given["prompt"]
        return masked_mean(encoded[0], token_mask(pipe.tokenizer, prompts, encoded[0]))

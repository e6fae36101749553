"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from indis.diffusers.families.base import Family, Given, masked_mean, token_mask


class StableDiffusion3(Family):
    """Two CLIP encoders and T5, a doubled batch."""

    pipelines = ("StableDiffusion3Pipeline",)
    doubles = True
    pooled = "mean of the T5 tokens that are not padding ++ the two pooled CLIP vectors"

    def features(self, pipe: Any, encoded: Any, given: Given) -> Tensor:
        """Return the mean of the tokens beside the pooled vectors."""
        tokens, _, vector, _ = encoded
        clip = pipe.tokenizer_max_length  # the tokens of CLIP come first
        prompts = given.get("prompt_3") or given["prompt"]
        prompts = None if given.get("prompt_embeds") is not None else prompts
        text = tokens[:, clip:]
        if pipe.text_encoder_3 is None:  # zeros stand for T5 then
            mask = torch.ones(text.shape[:2])
        else:
            mask = token_mask(pipe.tokenizer_3, prompts, text)
        return torch.cat([masked_mean(text, mask), vector.float()], dim=1)

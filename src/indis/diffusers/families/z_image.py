"""Z-Image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from indis.diffusers.families.base import Family, Given


class ZImage(Family):
    """Qwen3, guidance that the pipeline doubles by itself."""

    pipelines = ("ZImagePipeline",)
    pooled = "mean of the Qwen3 tokens"

    def features(self, pipe: Any, encoded: Any, given: Given) -> Tensor:
        """Return the mean of the tokens; there is no padding."""
        return torch.stack([tokens.float().mean(0) for tokens in encoded[0]])

    def refusal(self, pipe: Any, own_times: bool) -> str | None:
        """The truncation of guidance reads all times before the loop."""
        cut = pipe._cfg_truncation if pipe.do_classifier_free_guidance else None
        if cut is not None and (cut < 1 or own_times and cut <= 1):
            return f"cfg_truncation must be None, it reads times before they are known, got {cut}"
        return None

    def network_time(self, t: Tensor) -> Tensor:
        """Time goes from 0, noise, to 1."""
        return (1000 - t) / 1000

    def shown(self, latents: Tensor) -> list[Tensor]:
        """A list of videos of one frame."""
        return list(latents.unsqueeze(2).unbind())

    def answered(self, output: Any) -> Tensor:
        """The velocity points to the data."""
        return -torch.stack(tuple(output)).squeeze(2)

    def guided(self, parts: Sequence[Tensor], scale: float) -> Tensor:
        """A scale of 0 is the answer with the prompt."""
        high, low = parts
        return high + scale * (high - low)

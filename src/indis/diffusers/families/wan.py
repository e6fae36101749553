"""Wan 2.1, and Wan 2.2 one sample at a time."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from indis.diffusers.families.base import Family, Given, masked_mean, spread


class Wan(Family):
    """T5, guidance by a second pass."""

    pipelines = ("WanPipeline",)
    pooled = "mean of the T5 tokens that are not padding"

    def features(self, pipe: Any, encoded: Any, given: Given) -> Tensor:
        """Return the mean of the tokens; padding is zeros."""
        tokens = encoded[0]
        return masked_mean(tokens, (tokens != 0).any(dim=-1))

    def refusal(self, pipe: Any, own_times: bool) -> str | None:
        """Wan 2.2 chooses its network, or masks tokens, by one time for the whole batch."""
        for name in ("boundary_ratio", "expand_timesteps"):
            if own_times and pipe.config.get(name):
                return f"{name} needs one time for the whole batch"
        return None

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """The VAE has moments for each channel."""
        videos: Tensor = pipe.vae.decode(spread(pipe.vae, latents), return_dict=False)[0]
        return videos

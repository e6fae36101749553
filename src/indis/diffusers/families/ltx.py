"""LTX-Video."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from indis.diffusers.families.base import Family, Given, masked_mean


class LTX(Family):
    """T5, a doubled batch, latents as a row of patches."""

    pipelines = ("LTXPipeline",)
    doubles = True
    pooled = "mean of the T5 tokens that are not padding"

    def features(self, pipe: Any, encoded: Any, given: Given) -> Tensor:
        """Return the mean of the tokens."""
        tokens, mask = encoded[:2]
        if given.get("prompt_embeds") is None:
            # diffusers (0.42) repeats prompts one by one but their masks all together.
            mask = mask[: len(mask) // given["num_videos_per_prompt"]]
        return masked_mean(tokens, mask)

    def unpack(self, pipe: Any, latents: Tensor, given: Given) -> Tensor:
        """Undo the patches."""
        frames = (given["num_frames"] - 1) // pipe.vae_temporal_compression_ratio + 1
        place, moment = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
        sizes = (given[name] // pipe.vae_spatial_compression_ratio for name in ("height", "width"))
        height, width = (size // place for size in sizes)
        return pipe._unpack_latents(latents, frames // moment, height, width, place, moment)

    def pack(self, pipe: Any, latents: Tensor, given: Given) -> Tensor:
        """Make patches."""
        place, moment = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
        return pipe._pack_latents(latents, place, moment)

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """A VAE that removes noise too is told, as by default, that there is none."""
        vae = pipe.vae
        moments = vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        moved = pipe._denormalize_latents(latents, *moments).to(vae.dtype)
        level = moved.new_zeros(len(moved)) if vae.config.timestep_conditioning else None
        videos: Tensor = vae.decode(moved, level, return_dict=False)[0]
        return videos

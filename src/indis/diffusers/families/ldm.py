"""Unconditional latent diffusion (LSUN, CelebA-HQ)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from indis.diffusers.families.base import Family


class LDM(Family):
    """Nothing but noise, which the scheduler sees before the first network call."""

    pipelines = ("LDMPipeline",)
    late = True

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """The VAE is quantised: gradients pass the nearest code as if it was not there."""
        vae = pipe.vqvae
        moved = (latents / vae.config.scaling_factor).to(vae.dtype)
        pictures: Tensor = vae.decode(moved, return_dict=False)[0]
        return pictures

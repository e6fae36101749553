"""Unconditional latent diffusion (LSUN, CelebA-HQ)."""

from __future__ import annotations

from indis.diffusers.families.base import Family


class LDM(Family):
    """Nothing but noise, which the scheduler sees before the first network call."""

    pipelines = ("LDMPipeline",)
    late = True

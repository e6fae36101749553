"""Samplers of INDIS in the pipelines of diffusers.

    handle = indis.diffusers.enable(pipe, "my-artifact")
    images = pipe("a cat", num_inference_steps=5).images

The pipeline stays as it is: :class:`IndisScheduler` gives it, for every network call, the times of
all samples, and turns its answers into steps.
"""

try:
    import diffusers as _diffusers  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "indis.diffusers needs diffusers: pip install 'indis-diffusion[diffusers]'"
    ) from error

from indis.diffusers.denoiser import PipelineDenoiser
from indis.diffusers.families import FAMILIES, Family
from indis.diffusers.pipeline import Enabled, disable, enable
from indis.diffusers.scheduler import IndisScheduler

__all__ = [
    "FAMILIES",
    "Enabled",
    "Family",
    "IndisScheduler",
    "PipelineDenoiser",
    "disable",
    "enable",
]

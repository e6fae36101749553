"""Pipelines of diffusers: ``diffusers:PLACE`` is a folder or the name of a repository.

Options follow behind commas. ``indis teach`` writes most of them from its own options:

    prompts=FILE     a text file, a prompt a line, which seeds take in turn
    heldout=N        the last N prompts are for evaluation: seeds take the others in turn
    judge            seeds take the prompts that ``heldout`` leaves out
    bank=FOLDER      where encoded prompts are stored, each once
    guidance=G       the guidance that the pipeline is called with
    true-cfg=G       the scale of a second pass with the negative prompt (FLUX.1, Qwen-Image)
    negative=TEXT    the negative prompt
    size=WxH         width and height of the pictures
    frames=N         number of frames of a video
    length=N         the most tokens of a prompt
    bf16, fp16       weights in half precision
    latents          losses compare latents, not pictures
    offload          parts of the pipeline visit the GPU only while they work
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indis.diffusers.denoiser import PipelineDenoiser

DESCRIPTION = "a pipeline of diffusers: diffusers:FOLDER or diffusers:OWNER/NAME"
NAME = "diffusers"
# Options with a value, each with what the value is made by.
CALL = {
    "guidance": ("guidance_scale", float),
    "true-cfg": ("true_cfg_scale", float),
    "negative": ("negative_prompt", str),
    "frames": ("num_frames", int),
    "length": ("max_sequence_length", int),
}
OTHER = ("prompts", "heldout", "bank", "size")
SWITCHES = ("bf16", "fp16", "latents", "offload", "judge")


def load(detail: str = "") -> PipelineDenoiser:
    """Return the denoiser of a pipeline.

    Args:
        detail: The place, and options behind commas.

    Raises:
        ValueError: If no place is named, an option is unknown or has a bad value, or the pipeline
            is not known.
        FileNotFoundError: If there is no such pipeline or file of prompts.
    """
    import torch
    from diffusers import DiffusionPipeline

    from indis.diffusers.denoiser import PipelineDenoiser

    place, options = _parsed(detail)
    if {"bf16", "fp16"} <= set(options):
        raise ValueError("model diffusers takes one of bf16 and fp16, got both")
    dtype = torch.float32
    if "bf16" in options or "fp16" in options:
        dtype = torch.bfloat16 if "bf16" in options else torch.float16
    prompts, call = _prompts(options), _call(options)
    try:
        pipe = DiffusionPipeline.from_pretrained(place, torch_dtype=dtype)
    except OSError as error:
        raise FileNotFoundError(
            f"model must name a pipeline of diffusers, got {place!r}: {str(error).splitlines()[0]}"
        ) from None
    bank = options.get("bank")
    return PipelineDenoiser(
        pipe,
        prompts,
        call,
        bank=None if bank is None else Path(bank),
        latents="latents" in options,
        offload="offload" in options,
    )


def name_of(detail: str) -> str:
    """Return the name of the denoiser that :func:`load` returns, the same for all pipelines."""
    return NAME


def _parsed(detail: str) -> tuple[str, dict[str, str]]:
    """The place, and options with their values; a switch has an empty one."""
    place, *words = detail.split(",")
    if not place:
        raise ValueError("model diffusers must name a folder or a repository: diffusers:PLACE")
    options: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        known = (*CALL, *OTHER) if equals else SWITCHES
        if name not in known or (equals and not value):
            listed = ", ".join([*(f"{n}=..." for n in (*CALL, *OTHER)), *SWITCHES])
            raise ValueError(f"options of model diffusers must be among {listed}, got {word!r}")
        options[name] = value
    return place, options


def _call(options: dict[str, str]) -> dict[str, Any]:
    """The arguments of the pipeline's call."""
    call: dict[str, Any] = {
        name: _number(option, options[option], kind)
        for option, (name, kind) in CALL.items()
        if option in options
    }
    if "size" in options:
        width, times, height = options["size"].partition("x")
        if not (times and width.isdecimal() and height.isdecimal()):
            raise ValueError(f"size must be WIDTHxHEIGHT such as 512x512, got {options['size']!r}")
        call |= {"width": int(width), "height": int(height)}
    return call


def _number(option: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{option} must be a number, got {value!r}") from None


def _prompts(options: dict[str, str]) -> list[str]:
    if "prompts" not in options:
        return []
    lines = Path(options["prompts"]).read_text(encoding="utf-8").splitlines()
    prompts = [line for line in lines if line.strip()]
    kept = _number("heldout", options.get("heldout", "0"), int)
    if not 0 <= kept < len(prompts):
        raise ValueError(
            f"heldout must be below the number of prompts, got {kept} of {len(prompts)}"
        )
    if "judge" in options and not kept:
        raise ValueError("judge needs held-out prompts, got heldout=0")
    split = len(prompts) - kept
    return prompts[split:] if "judge" in options else prompts[:split]

"""Pipelines, policies and our own loop around a pipeline's network, for the tests of
:mod:`indis.diffusers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

import tiny_language as language
import tiny_pipelines as tiny
from indis import Bounds, Condition, Discretization, Fixed, Form, Sampler, Wrapped, solvers
from indis.diffusers import enable
from indis.diffusers.families import family_of
from indis.diffusers.process import process_of
from learned import closed, phi, shared

PROMPTS = ["a cat", "two big dogs!"]


@dataclass(frozen=True)
class Case:
    """A pipeline and how it is called.

    ``over`` is what the pipeline divides its times by before the network.
    """

    make: Callable[[], Any]
    call: dict[str, Any] = field(default_factory=dict)
    network: str = "transformer"
    over: float = 1.0
    guidance: float = 0.0
    own_guidance: bool = False
    copies_word: str = "num_images_per_prompt"

    def pipe(self):
        return _made(self.make)

    def run(self, pipe, prompt=None, generator=None, **call):
        """Latents or pictures."""
        call = self.call | {"output_type": "latent"} | call
        if prompt is not None:
            call["prompt"] = list(prompt)  # ZImagePipeline writes into it
        if generator is not None:
            call["generator"] = [torch.Generator().manual_seed(s) for s in generator]
        out = pipe(**call)[0]
        return out if isinstance(out, torch.Tensor) else torch.as_tensor(out)


SIZE = {"height": 8, "width": 8, "max_sequence_length": 16}
CASES = {
    "flux": Case(tiny.flux, SIZE | {"guidance_scale": 3.5}, over=1000),
    "ltx": Case(
        tiny.ltx,
        {
            "height": 32,
            "width": 32,
            "num_frames": 9,
            "max_sequence_length": 16,
            "guidance_scale": 3.0,
        },
        guidance=3.0,
        copies_word="num_videos_per_prompt",
    ),
    "sd3": Case(tiny.stable_diffusion_3, SIZE | {"guidance_scale": 5.0}, guidance=5.0),
    "sd": Case(
        tiny.stable_diffusion,
        {"height": 16, "width": 16, "guidance_scale": 6.0},
        "unet",
        guidance=6.0,
    ),
    "sd-v": Case(
        lambda: tiny.stable_diffusion(prediction_type="v_prediction"),
        {"height": 16, "width": 16, "guidance_scale": 6.0},
        "unet",
        guidance=6.0,
    ),
    "sdxl": Case(
        language.stable_diffusion_xl,
        {"height": 16, "width": 16, "guidance_scale": 5.0},
        "unet",
        guidance=5.0,
    ),
    "wan": Case(
        language.wan,
        {
            "height": 64,
            "width": 64,
            "num_frames": 5,
            "max_sequence_length": 16,
            "guidance_scale": 3.0,
        },
        guidance=3.0,
        copies_word="num_videos_per_prompt",
    ),
    "qwen": Case(
        language.qwen_image, {"height": 32, "width": 32, "true_cfg_scale": 1.0}, over=1000
    ),
    "flux2": Case(
        language.flux2,
        {"height": 8, "width": 8, "max_sequence_length": 64, "text_encoder_out_layers": (1, 2)},
        over=1000,
    ),
    "z-image": Case(
        language.z_image,
        {
            "height": 8,
            "width": 8,
            "max_sequence_length": 64,
            "guidance_scale": 2.0,
            "cfg_truncation": None,
        },
        guidance=2.0,
        own_guidance=True,
    ),
}


@cache
def _made(make):
    return make()


def noise_of(case, batch=2):
    """Starting noise as the pipeline packs it, and as a policy reads it."""
    pipe, packed = case.pipe(), []
    with enable(pipe, flat(1)) as handle:
        prepared = pipe.prepare_latents

        def seen(*args, **kwargs):
            out = prepared(*args, **kwargs)
            packed.append((out[0] if isinstance(out, tuple) else out).clone())
            return out

        pipe.prepare_latents = seen
        case.run(pipe, PROMPTS[:batch], range(batch), num_inference_steps=1)
        given = handle._arrangement
    return packed[0], handle.family.unpack(pipe, packed[0], given), given


def process(case):
    return process_of(case.pipe().scheduler.config)


def grid(case, steps):
    """Even times from pure noise to the end."""
    schedule = process(case).schedule
    return torch.linspace(schedule.t_max, schedule.t_min, steps + 1, dtype=torch.float64)[None]


def flat(steps):
    """A sampler of any flow or table."""
    return _Any(steps)


class _Any(Sampler):
    """Even times, whatever the pipeline: only for looking at its noise."""

    def __init__(self, steps):
        super().__init__(Fixed(torch.linspace(1.0, 0.5, steps + 1)[None]), solvers.Euler())


def perturbed(policy, size=1.0):
    """An untrained policy is its base solver; here what begins at zero moves."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if not parameter.any():
                amount = 0.1 if "corrector" in name else size
                parameter += amount * torch.randn(parameter.shape, generator=generator)
    return policy.eval().requires_grad_(False)


def sampler_for(case, kind, solver="ipndm:2", steps=3, condition_dim=0, **options):
    """A perturbed policy: "noise", "answers", "local" or "nothing"."""
    shape = tuple(noise_of(case)[1].shape[1:])
    own = process(case)
    base, bounds = grid(case, steps), Bounds.natural(own.schedule, dtau=0.2, gamma=0.2)
    torch.manual_seed(1)
    size = {"shape": shape, "condition_dim": condition_dim, "width": 8}
    if kind == "nothing":
        policy = shared(base, own.schedule, bounds)
    elif kind == "noise":
        policy = phi(base, own.schedule, bounds, **size)
    else:
        picture = {"picture": "both", "picture_width": 4} if kind == "local" else {}
        policy = closed(base, own.schedule, bounds, native=own.native, **size, **picture)
    return Sampler(perturbed(policy), solvers.named(solver), **options)


def own_rows(case, steps=3, batch=2):
    """A plan with rows of its own for each sample."""
    own = process(case)
    even = grid(case, steps)
    generator = torch.Generator().manual_seed(5)
    rows = even.expand(batch, -1).clone()
    span = (own.schedule.t_max - own.schedule.t_min) / steps
    move = torch.rand(batch, steps - 1, generator=generator, dtype=torch.float64) - 0.5
    rows[:, 1:-1] += 0.8 * span * move
    gamma = 1 + 0.1 * torch.randn(batch, steps, generator=generator, dtype=torch.float64)
    dtau = -0.1 * span * torch.rand(batch, steps, generator=generator, dtype=torch.float64)
    return Discretization(rows, dtau, gamma)


def network_of(case, prompts, schedule, **call):
    """The pipeline's network as a denoiser, with guidance: an independent loop around it."""
    pipe, seen = case.pipe(), []
    module = getattr(pipe, case.network)

    def remember(_, args, kwargs):
        seen.append((args, dict(kwargs)))

    hook = module.register_forward_pre_hook(remember, with_kwargs=True)
    case.run(pipe, prompts, range(len(prompts)), num_inference_steps=1, **call)
    hook.remove()
    own, family = process(case), family_of(pipe)
    _, unpacked, given = noise_of(case)

    def answer(x, t, condition):
        packed, parts = family.pack(pipe, x, given), []
        if case.own_guidance:
            return asked_of_z_image(module, *seen[0], packed, t, case.guidance)
        for args, kwargs in seen:
            copies = 2 if family.doubles and case.guidance else 1
            shown = torch.cat([packed] * copies)
            times = (t * own.unit / case.over).float().repeat(copies)
            if args:
                out = module(shown, times, **kwargs)[0]
            else:
                out = module(**kwargs | {"hidden_states": shown, "timestep": times})[0]
            parts += out.chunk(copies)
        if len(parts) == 2:  # a doubled batch has the negative prompts first
            low, high = parts if family.doubles else parts[::-1]
            scale = case.guidance or call["true_cfg_scale"]
            parts = [low + scale * (high - low)]
        return family.unpack(pipe, parts[0], given)

    made = Wrapped.from_v if own.prediction == "v_prediction" else Wrapped
    rest = () if own.prediction == "v_prediction" else (own.native,)
    return made(answer, schedule, tuple(unpacked.shape[1:]), *rest)


def asked_of_z_image(module, args, kwargs, x, t, scale):
    """Lists of latents, times that go from 0 to 1, and a sign."""
    shown = list(x.repeat(2, 1, 1, 1).unsqueeze(2).unbind())
    out = torch.stack(module(shown, (1 - t).float().repeat(2), *args[2:], **kwargs)[0])
    high, low = out.squeeze(2).chunk(2)
    return -(high + scale * (high - low))


def packed_like(case, samples):
    """Our samples as the pipeline packs its latents."""
    pipe = case.pipe()
    return family_of(pipe).pack(pipe, samples, noise_of(case)[2])


__all__ = ["CASES", "PROMPTS", "Case", "Condition", "Form"]

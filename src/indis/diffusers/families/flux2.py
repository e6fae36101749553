"""FLUX.2."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from indis.diffusers.families.base import Family, Given, masked_mean, token_mask


class Flux2(Family):
    """Mistral, guidance embedded, latents as a row of places."""

    pipelines = ("Flux2Pipeline",)
    pooled = "mean of the Mistral tokens that are not padding, system message included"
    over = 1000.0

    def features(self, pipe: Any, encoded: Any, given: Given) -> Tensor:
        """Return the mean of the tokens."""
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        def ask(texts: list[str], **sizes: Any) -> Any:
            messages = format_input(prompts=texts, system_message=pipe.system_message)
            form = {"add_generation_prompt": False, "tokenize": True, "return_dict": True}
            return pipe.tokenizer.apply_chat_template(messages, **form, **sizes)

        prompts = None if given.get("prompt_embeds") is not None else given["prompt"] or ""
        return masked_mean(encoded[0], token_mask(ask, prompts, encoded[0]))

    def unpack(self, pipe: Any, latents: Tensor, given: Given) -> Tensor:
        """Put places into rows."""
        height = int(given["height"]) // (pipe.vae_scale_factor * 2)
        return latents.transpose(1, 2).unflatten(2, (height, -1))

    def pack(self, pipe: Any, latents: Tensor, given: Given) -> Tensor:
        """Put rows after each other."""
        return latents.flatten(2).transpose(1, 2)

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Undo the batch norm and the patches of the latents."""
        vae, norm = pipe.vae, pipe.vae.bn
        mean, variance = (v.view(1, -1, 1, 1) for v in (norm.running_mean, norm.running_var))
        moved = latents * (variance + vae.config.batch_norm_eps).sqrt() + mean
        moved = pipe._unpatchify_latents(moved)
        pictures: Tensor = vae.decode(moved.to(vae.dtype), return_dict=False)[0]
        return pictures

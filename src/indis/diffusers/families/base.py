"""What INDIS must know about a kind of pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

Given = Mapping[str, Any]  # the arguments of a call, by name


class Family:
    """A kind of pipeline. A subclass says what is different from this one.

    Attributes:
        pipelines: The names of its classes.
        doubles: Whether the network is shown the batch twice for classifier-free guidance.
        twice: Whether prompts and negative prompts are encoded by two calls.
        late: Whether the noise is first seen by ``scheduler.scale_model_input``.
        pooled: What the features of a prompt are, in words.
        over: What the pipeline divides its times by before the network.
        scale: The argument that mixes answers with and without the prompt.
    """

    pipelines: ClassVar[tuple[str, ...]] = ()
    doubles: ClassVar[bool] = False
    twice: ClassVar[bool] = False
    late: ClassVar[bool] = False
    pooled: ClassVar[str] = "nothing"
    over: ClassVar[float] = 1.0
    scale: ClassVar[str] = "guidance_scale"

    def features(self, pipe: Any, encoded: Any, given: Given) -> Tensor | None:
        """Return features of the prompts ``(batch, dim)``, None if there are no prompts.

        Args:
            pipe: The pipeline.
            encoded: What its ``encode_prompt`` returned.
            given: The arguments of that call.
        """
        return None

    def batch(self, encoded: Any) -> int:
        """Return how many samples there are for what ``encode_prompt`` returned."""
        return len(encoded[0])

    def unpack(self, pipe: Any, latents: Tensor, given: Given) -> Tensor:
        """Return latents as ``(batch, channels, ..., height, width)``, of unit variance.

        Args:
            pipe: The pipeline.
            latents: The latents as the pipeline packs them.
            given: The arguments of its ``prepare_latents``.
        """
        return latents

    def pack(self, pipe: Any, latents: Tensor, given: Given) -> Tensor:
        """Return the inverse of :meth:`unpack`."""
        return latents

    def network_time(self, t: Tensor) -> Tensor:
        """Return the pipeline's times ``(batch,)`` as its network is shown them."""
        return t / self.over

    def shown(self, latents: Tensor) -> Any:
        """Return packed latents as the network is shown them."""
        return latents

    def answered(self, output: Any) -> Tensor:
        """Return the network's output as packed latents."""
        latents: Tensor = output
        return latents

    def guided(self, parts: Sequence[Tensor], scale: float) -> Tensor:
        """Return the guided answer (Ho & Salimans, 2022).

        Args:
            parts: Answers in the order in which the network gave them: two.
            scale: The guidance scale.
        """
        low, high = parts if self.doubles else reversed(parts)
        return low + scale * (high - low)

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Return the pictures or videos of unpacked latents, in about [-1, 1], with gradients."""
        vae = pipe.vae
        moved = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)
        pictures: Tensor = vae.decode(moved.to(vae.dtype), return_dict=False)[0]
        return pictures

    def refusal(self, pipe: Any, own_times: bool) -> str | None:
        """Return why a call cannot be made, None if it can.

        Args:
            pipe: The pipeline, in its call.
            own_times: Whether samples are asked about at different times in one network call.
        """
        return None


def spread(vae: Any, latents: Tensor) -> Tensor:
    """Return latents ``(batch, channels, frames, height, width)`` with the moments of a VAE."""
    mean, std = (
        latents.new_tensor(values).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (latents * std + mean).to(vae.dtype)


def masked_mean(embeddings: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the tokens of a mask.

    Args:
        embeddings: Embeddings ``(prompts * images, tokens, dim)``, in the order of the prompts.
        mask: Which tokens count, ``(prompts, tokens)``.

    Returns:
        Means ``(prompts * images, dim)``, float32.
    """
    each = len(embeddings) // len(mask)
    weights = mask.to(embeddings.device, torch.float32).repeat_interleave(each, dim=0)[..., None]
    return (embeddings.float() * weights).sum(1) / weights.sum(1).clamp_min(1)


def token_mask(
    tokenize: Callable[..., Any], prompts: str | Sequence[str] | None, embeddings: Tensor
) -> Tensor:
    """Return which tokens of embeddings ``(batch, tokens, dim)`` are not padding.

    Without prompts nobody can tell, and all count, with a warning.

    Args:
        tokenize: A tokenizer, or a function that is called as one.
        prompts: The prompts.
        embeddings: Their embeddings.

    Returns:
        A mask ``(prompts, tokens)``.
    """
    if prompts is None:
        warnings.warn(
            "prompt_embeds were given without prompts: the sampler reads the mean over all of "
            "their tokens, padding included",
            stacklevel=2,
        )
        return torch.ones(embeddings.shape[:2])
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    length = {"padding": "max_length", "max_length": embeddings.shape[1], "truncation": True}
    mask: Tensor = tokenize(texts, **length, return_tensors="pt")["attention_mask"]
    return mask

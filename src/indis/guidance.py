"""Classifier-free guidance (Ho & Salimans, 2022) as a denoiser.

    answer = without + scale * (with - without)

All forms of a prediction at one state and time are linear in each other, so guided noise, data and
velocity mean the same. Both answers come from one network call of twice the batch. A counter around
the guided denoiser counts that as one evaluation, as papers do; one inside it counts twice the
samples. Teachers, fits and samplers take a guided denoiser like any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from indis.denoise import Condition, Denoiser, DenoiserWrapper, FeatureDenoiser, to_device_of
from indis.numerics import TIME_DTYPE, broadcast
from indis.storage import digest


class Guided(DenoiserWrapper):
    """A denoiser guided away from the answer without condition.

    Policies read the features of the given condition.

    Args:
        denoiser: the denoiser to guide.
        scale: the guidance scale: 1 is the plain conditional answer, 0 the one without condition. A
            tensor ``(batch,)`` gives each sample of a batch a scale of its own.
        without: the condition of no condition, with inputs of the same names. Either a
            :class:`~indis.denoise.Condition` of one row, which is repeated for every sample (the
            empty prompt's embedding; ``model.class_condition([10])`` of the Fashion-MNIST model),
            or a function from a batch's condition to one of as many rows, which runs at every
            evaluation.

    Raises:
        ValueError: if a scale is not finite, or a tensor of scales is not of one axis.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float | Tensor,
        without: Condition | Callable[[Condition], Condition],
    ) -> None:
        scales = torch.as_tensor(scale, dtype=None if isinstance(scale, Tensor) else TIME_DTYPE)
        if not bool(scales.isfinite().all()):
            raise ValueError(f"scale must be finite, got {scale}")
        if scales.ndim > 1:
            raise ValueError(
                f"scale must be a number or a tensor (batch,), got shape {tuple(scales.shape)}"
            )
        super().__init__(denoiser)
        self.scale = float(scales) if scales.ndim == 0 else scales
        self.without = without
        self.name = f"{denoiser.name}, guided"

    @property
    def fingerprint(self) -> str:
        """The inner fingerprint with the scale and a hash of the condition of no condition.

        So end points of another scale, or away from another condition, are of another model.
        """
        none = self.without
        inputs = (none if isinstance(none, Condition) else none(self.condition([0]))).inputs
        away = digest([[name, *_identity(value)] for name, value in sorted(inputs.items())])
        scale = digest(_identity(self.scale)) if isinstance(self.scale, Tensor) else self.scale
        return f"{self.inner.fingerprint}-guided-{scale!r}-{away}"

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the guided answer.

        Args:
            x: states ``(batch, *shape)``.
            t: times ``(batch,)``.
            condition: the batch's condition.

        Returns:
            The answer ``(batch, *shape)`` in the inner denoiser's native form.

        Raises:
            ValueError: if ``without`` has other inputs than the condition, or the scales are not
                one a sample.
        """
        return self._mixed(self.inner(*self._doubled(x, t, condition)))

    def _with_features(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """The guided answer, and the features of the half with condition."""
        assert isinstance(self.inner, FeatureDenoiser)
        answers, features = self.inner.with_features(*self._doubled(x, t, condition))
        return self._mixed(answers), features.chunk(2)[0]

    def _doubled(
        self, x: Tensor, t: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor, Condition]:
        """The batch with condition and the same batch without it, side by side."""
        if isinstance(self.scale, Tensor) and len(self.scale) != len(x):
            raise ValueError(
                f"scale must be one number a sample, got {len(self.scale)} for {len(x)} samples"
            )
        if isinstance(self.without, Condition):
            none = _repeated(self.without, len(x))
        else:
            none = self.without(condition)
        both = _side_by_side(condition, to_device_of(none, self.inner))
        return torch.cat([x, x]), torch.cat([t, t]), both

    def _mixed(self, answers: Tensor) -> Tensor:
        given, none = answers.chunk(2)
        scale = self.scale
        if isinstance(scale, Tensor):
            scale = broadcast(scale.to(none.device), none)
        return none + scale * (given - none)


def _identity(value: Tensor | float) -> list[str | list[int]]:
    """The dtype, the shape and a hash of the bytes of a tensor, as JSON."""
    tensor = torch.as_tensor(value).detach().cpu().contiguous()
    raw = tensor.reshape(-1).view(torch.uint8).numpy()  # bfloat16 has no numpy dtype
    return [str(tensor.dtype), list(tensor.shape), hashlib.sha256(raw.tobytes()).hexdigest()]


def _repeated(condition: Condition, batch: int) -> Condition:
    """The condition of one row for a whole batch; its inputs are views, not copies."""
    for name, value in condition.inputs.items():
        if len(value) != 1:
            raise ValueError(
                f"without must be a condition of one row or a function, got {len(value)} rows of "
                f"{name!r}"
            )
    inputs = {
        name: value.expand(batch, *value.shape[1:]) for name, value in condition.inputs.items()
    }
    return Condition(inputs)


def _side_by_side(given: Condition, none: Condition) -> Condition:
    """One condition of twice the batch, without policy features, which a network does not read."""
    shapes = [{name: tuple(value.shape) for name, value in c.inputs.items()} for c in (given, none)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(
            f"without must give inputs like the condition's, {shapes[0]}, got {shapes[1]}"
        )
    return Condition(
        {name: torch.cat([value, none.inputs[name]]) for name, value in given.inputs.items()}
    )

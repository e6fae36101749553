"""Classifier-free guidance (Ho & Salimans, 2022) as a denoiser: teachers, fits and samplers need
not know of it.

    answer = without + scale * (with - without)

All forms of a prediction at one state and time are linear in each other, so guided noise, data and
velocity mean the same. Both answers come from one network call of twice the batch. A counter
outside counts that as one evaluation, as papers do; one inside sees twice the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from indis.denoise import Condition, Denoiser, DenoiserWrapper, FeatureDenoiser, to_device_of
from indis.storage import digest


class Guided(DenoiserWrapper):
    """``denoiser`` guided by ``scale``: 1 is the plain conditional answer, 0 the one without
    condition.

    ``without`` turns a batch's condition into that of no condition, with inputs of the same names
    and shapes: for the Fashion-MNIST model that ships ``lambda c: model.labelled([10] *
    len(c.features))``, for a text model the empty prompt's embedding, repeated. A policy reads the
    features of the given condition.

    Raises:
        ValueError: if the scale is not finite.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, without: Callable[[Condition], Condition]
    ) -> None:
        if not math.isfinite(scale):
            raise ValueError(f"scale must be finite, got {scale}")
        super().__init__(denoiser)
        self.scale, self.without = scale, without
        self.name = f"{denoiser.name}, guided"

    @property
    def fingerprint(self) -> str:
        """End points of another scale, or away from another condition, are of another model."""
        none = self.without(self.condition([0])).inputs
        away = digest([[name, value.shape, value.tolist()] for name, value in sorted(none.items())])
        return f"{self.inner.fingerprint}-guided-{self.scale!r}-{away}"

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The guided answer ``(batch, *shape)``.

        Raises:
            ValueError: if ``without`` gives other inputs than the condition has.
        """
        both = _side_by_side(condition, to_device_of(self.without(condition), self.inner))
        given, none = self.inner(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return none + self.scale * (given - none)

    def _with_features(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """The guided answer, and the features of the half with condition."""
        assert isinstance(self.inner, FeatureDenoiser)
        both = _side_by_side(condition, to_device_of(self.without(condition), self.inner))
        answers, features = self.inner.with_features(torch.cat([x, x]), torch.cat([t, t]), both)
        given, none = answers.chunk(2)
        return none + self.scale * (given - none), features.chunk(2)[0]


def _side_by_side(given: Condition, none: Condition) -> Condition:
    """One condition of twice the batch; a network has no use for features."""
    shapes = [{name: tuple(value.shape) for name, value in c.inputs.items()} for c in (given, none)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(
            f"without must give inputs like the condition's, {shapes[0]}, got {shapes[1]}"
        )
    return Condition(
        {name: torch.cat([value, none.inputs[name]]) for name, value in given.inputs.items()}
    )

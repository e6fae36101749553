"""Classifier-free guidance (Ho & Salimans, 2022) as a denoiser: teachers, fits and samplers need not know of it.

    answer = without + scale * (with - without)

All forms of a prediction at one state and time are linear in each other, so guided noise, data and velocity mean the
same. Both answers come from one network call of twice the batch. A counter outside counts that as one evaluation, as
papers do; one inside sees twice the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from indis.denoise import Around, Condition, Denoiser, Revealing


class Guided(Around):
    """``denoiser`` guided by ``scale``: 1 is the plain conditional answer, 0 the one without condition.

    ``without`` turns a batch's condition into that of no condition, with inputs of the same names and shapes: for the
    Fashion-MNIST model that ships ``lambda c: model.labelled([10] * len(c.features))``, for a text model the empty
    prompt's embedding, repeated. A policy reads the features of the given condition.

    Raises:
        ValueError: if the scale is not finite.
    """

    def __init__(self, denoiser: Denoiser, scale: float, without: Callable[[Condition], Condition]) -> None:
        if not math.isfinite(scale):
            raise ValueError(f"scale must be finite, got {scale}")
        super().__init__(denoiser)
        self.scale, self.without = scale, without
        # End points of another scale are of another model.
        self.name, self.fingerprint = f"{denoiser.name}, guided", f"{denoiser.fingerprint}-guided-{scale:g}"
        if isinstance(denoiser, Revealing):
            self.bottleneck = self._bottleneck

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The guided answer ``(batch, *shape)``.

        Raises:
            ValueError: if ``without`` gives other inputs than the condition has.
        """
        both = _side_by_side(condition, self.without(condition))
        given, none = self.inner(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return none + self.scale * (given - none)

    def _bottleneck(self) -> Tensor:
        """Of the half with condition."""
        assert isinstance(self.inner, Revealing)
        return self.inner.bottleneck().chunk(2)[0]


def _side_by_side(given: Condition, none: Condition) -> Condition:
    """One condition of twice the batch; a network has no use for features."""
    shapes = [{name: tuple(value.shape) for name, value in c.inputs.items()} for c in (given, none)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(f"without must give inputs like the condition's, {shapes[0]}, got {shapes[1]}")
    return Condition({name: torch.cat([value, none.inputs[name]]) for name, value in given.inputs.items()})

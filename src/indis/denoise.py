r"""Denoisers: what a model answers at (x, t), and in which form.

A model family supplies one object that satisfies :class:`Denoiser`. Whatever it was trained to
predict, a call returns its *native* form, one of the three of :mod:`indis.forms`.

A denoiser may have an attribute ``device``; without one it is on the CPU. Seeds, noise and
conditions are made on the CPU, and :func:`to_device_of` moves them where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from indis.forms import Form as Form
from indis.forms import convert as convert
from indis.forms import velocity_from_v as velocity_from_v
from indis.noise import NoiseSchedule

T = TypeVar("T")
Answer = Tensor | tuple[Tensor, Tensor]
Function = Callable[[Tensor, Tensor, "Condition"], Answer]


@dataclass(frozen=True)
class Condition:
    """The condition of a batch.

    ``inputs`` go to the network; every tensor has the batch as its first axis. ``features``
    ``(batch, dim)`` are what an instance-aware policy may read: the class one-hot over
    sqrt(classes), or pooled text embeddings (paper, Fig. 4).
    """

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None

    def __getitem__(self, index: Tensor | slice) -> Condition:
        """Return some rows. A tensor is ``inputs[name]``."""
        if isinstance(index, str):
            raise TypeError(
                f"condition[...] takes rows; the tensor {index!r} is condition.inputs[{index!r}]"
            )
        features = None if self.features is None else self.features[index]
        return Condition({k: v[index] for k, v in self.inputs.items()}, features)

    def to(self, device: torch.device | str) -> Condition:
        """Return the same condition on another device."""
        features = None if self.features is None else self.features.to(device)
        return Condition({k: v.to(device) for k, v in self.inputs.items()}, features)


UNCONDITIONAL = Condition()
UNSAVED = "unsaved"  # the fingerprint of weights that nobody has named


@runtime_checkable
class Denoiser(Protocol):
    """What a model family supplies.

    Parameters are frozen; gradients flow through a call, never into the model. An attribute
    ``device`` is optional; see :func:`device_of`.
    """

    @property
    def name(self) -> str:
        """The name that artifacts record."""

    @property
    def fingerprint(self) -> str:
        """A text that changes with the weights; results are only reused for the same one."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of its times."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""

    @property
    def native(self) -> Form:
        """The form of its answers, which gamma multiplies."""

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the native prediction ``(batch, *shape)``.

        Args:
            x: States ``(batch, *shape)``.
            t: One time a sample, ``(batch,)``.
            condition: The condition of the batch.
        """

    def decode(self, x: Tensor) -> Tensor:
        """Map samples to pixels in [-1, 1]; the identity for a model of pixels."""

    def condition(self, seeds: list[int]) -> Condition:
        """Return the default condition of each seed, so that a seed names a whole sample."""


@runtime_checkable
class FeatureDenoiser(Protocol):
    """A denoiser that can return features of its network with an answer."""

    def with_features(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return the native prediction and features ``(batch, size)`` without gradient."""


@runtime_checkable
class ClassConditional(Protocol):
    """A denoiser whose samples have classes."""

    def class_condition(self, labels: list[int]) -> Condition:
        """Return the condition of a batch of these labels.

        Raises:
            ValueError: If there is no such label.
        """


def device_of(denoiser: Denoiser) -> torch.device:
    """Return where a denoiser expects its tensors: its ``device``, the CPU if it has none."""
    return torch.device(getattr(denoiser, "device", "cpu"))


def to_device_of(thing: T, denoiser: Denoiser) -> T:
    """Move ``thing`` to the denoiser's device by its own ``to``.

    Args:
        thing: A tensor, a condition, end points, a sampler or a loss. Modules and samplers are
            moved in place, as in torch. A plain function has no ``to`` and is returned as it is.
        denoiser: The denoiser.

    Returns:
        The moved thing.
    """
    to = getattr(thing, "to", None)
    return thing if to is None else to(device_of(denoiser))


@dataclass(frozen=True)
class Wrapped:
    """A denoiser made of a function ``(x, t, condition) -> native prediction``.

    For an unconditional model in pixel space on the CPU the first four fields are enough. The
    function gets the times in the dtype of ``x`` (float32 if ``x`` is of half precision, which
    cannot tell a thousand times apart). Its answer is cast to the dtype of ``x``. A network in the
    function should be in evaluation mode; its weights get no gradients.

    Args:
        function: The function.
        schedule: The noise schedule of its times.
        shape: The shape of one sample; a list will do.
        native: The form of its answers, or the form's text such as "data".
        name: The name that artifacts record.
        fingerprint: Any text that changes with the weights. End points on disk are extended only
            under one.
        decode: Maps samples to pixels in [-1, 1].
        condition: Maps seeds to their default condition.
        device: Where the function expects its tensors.
        features: Whether the function returns ``(answer, features)``, with features
            ``(batch, size)`` of its network. AMED needs them.
        class_condition: Maps labels to their condition, for a model of classes.

    Raises:
        ValueError: If ``native`` is no form, ``shape`` no positive integers, or ``schedule`` no
            noise schedule.
    """

    function: Function
    schedule: NoiseSchedule
    shape: tuple[int, ...]
    native: Form
    name: str = "wrapped"
    fingerprint: str = UNSAVED
    decode: Callable[[Tensor], Tensor] = lambda x: x
    condition: Callable[[list[int]], Condition] = lambda seeds: UNCONDITIONAL
    device: torch.device | str = "cpu"
    features: bool = False
    # A runtime protocol takes an attribute that is None for an absent method.
    class_condition: Callable[[list[int]], Condition] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "native", _form(self.native))
        object.__setattr__(self, "shape", _shape(self.shape))
        if isinstance(self.schedule, type) or not isinstance(self.schedule, NoiseSchedule):
            raise ValueError(
                f"schedule must be a noise schedule such as RectifiedFlow(), got {self.schedule!r}"
            )
        if self.features:  # a method of the class would make every Wrapped a FeatureDenoiser
            object.__setattr__(self, "with_features", self._with_features)

    def __call__(self, x: Tensor, t: Tensor, condition: Condition = UNCONDITIONAL) -> Tensor:
        """Return the function's answer ``(batch, *shape)`` in the dtype of ``x``."""
        answer = self._ask(x, t, condition)
        return answer[0].to(x.dtype) if isinstance(answer, tuple) else answer.to(x.dtype)

    @classmethod
    def from_v(
        cls, function: Function, schedule: NoiseSchedule, shape: tuple[int, ...], **others: Any
    ) -> Wrapped:
        """Make a denoiser of a function that predicts v = alpha eps - sigma x_0.

        That is the v of Salimans & Ho (2022), diffusers' "v_prediction". Answers are turned into
        velocities, which is then the native form.

        Args:
            function: The function.
            schedule: The noise schedule.
            shape: The shape of one sample.
            others: Further fields of the class.

        Returns:
            The denoiser.

        Raises:
            ValueError: As the class does.
        """

        def velocity(x: Tensor, t: Tensor, condition: Condition) -> Answer:
            answer = function(x, t, condition)
            if isinstance(answer, tuple):
                return velocity_from_v(answer[0], x=x, schedule=schedule, t=t), answer[1]
            return velocity_from_v(answer, x=x, schedule=schedule, t=t)

        return cls(velocity, schedule, shape, Form.VELOCITY, **others)

    def _ask(self, x: Tensor, t: Tensor, condition: Condition) -> Answer:
        half = x.dtype in (torch.float16, torch.bfloat16)
        answer = self.function(x, t.to(torch.float32 if half else x.dtype), condition)
        whole = isinstance(answer, tuple) and all(isinstance(part, Tensor) for part in answer)
        if whole and len(answer) == 2 if self.features else isinstance(answer, Tensor):
            return answer
        expected = "a pair of tensors (answer, features)" if self.features else "a tensor"
        raise TypeError(
            f"function must return {expected}, got {type(answer).__name__}; of a diffusers model "
            "take .sample or [0]"
        )

    def _with_features(
        self, x: Tensor, t: Tensor, condition: Condition = UNCONDITIONAL
    ) -> tuple[Tensor, Tensor]:
        answer, features = self._ask(x, t, condition)
        if features.ndim != 2:
            raise ValueError(f"features must be (batch, size), got {tuple(features.shape)}")
        return answer.to(x.dtype), features.detach()


def _form(given: Form | str) -> Form:
    try:
        return Form(given)
    except ValueError:
        known = ", ".join(repr(form.value) for form in Form)
        raise ValueError(
            f"native must be a Form or one of {known} (for v, Wrapped.from_v), got {given!r}"
        ) from None


def _shape(given: Sequence[int]) -> tuple[int, ...]:
    numbers = given if isinstance(given, tuple | list) else [0]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers):
        raise ValueError(
            f"shape must be a tuple of positive integers such as (3, 64, 64), got {given!r}"
        )
    return tuple(numbers)


class DenoiserWrapper:
    """A denoiser around another one. A subclass says what it changes; the rest is forwarded."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.name, self.schedule = inner.name, inner.schedule
        self.shape, self.native = inner.shape, inner.native
        self.decode, self.condition = inner.decode, inner.condition
        if isinstance(inner, FeatureDenoiser):
            self.with_features = self._with_features
        if isinstance(inner, ClassConditional):
            self.class_condition = inner.class_condition

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the inner denoiser."""
        return self.inner.fingerprint

    @property
    def device(self) -> torch.device:
        """Where the inner denoiser is now."""
        return device_of(self.inner)

    def _with_features(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        assert isinstance(self.inner, FeatureDenoiser)
        return self.inner.with_features(x, t, condition)


class Counted(DenoiserWrapper):
    """A denoiser that counts its network calls (``calls``) and evaluated samples (``samples``)."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        self.calls = self.samples = 0

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the inner denoiser's answer."""
        self.calls += 1
        self.samples += len(x)
        return self.inner(x, t, condition)

    def _with_features(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        self.calls += 1
        self.samples += len(x)
        return super()._with_features(x, t, condition)

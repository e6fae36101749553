r"""Denoisers: what a model answers at (x, t), and in which form.

A model family supplies one object that satisfies :class:`Denoiser`. Whatever it was trained to
predict, a call returns its *native* form, one of three linear views of the same posterior mean:

=========  =====================  ===================  ====================  ==========================
form       value f                scale s              clock c               along the ODE
=========  =====================  ===================  ====================  ==========================
noise      eps                    alpha                sigma / alpha         d(x / s) = f dc
data       x_0                    sigma                alpha / sigma         d(x / s) = f dc
velocity   eps - x_0              alpha + sigma        sigma / (alpha+sigma) d(x / s) = f dc
=========  =====================  ===================  ====================  ==========================

The last column is why a solver needs nothing else: in every form a step is "carry x, add weights
times values". All conversions between forms are in this module and in no other.

A denoiser may say where it lives, by an attribute ``device``; without one it is on the CPU. Seeds,
noise and conditions are made on the CPU, and :func:`to_device_of` takes them over where they enter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from indis.noise import NoiseSchedule
from indis.numerics import broadcast

T = TypeVar("T")
Function = Callable[[Tensor, Tensor, "Condition"], Tensor]


class Form(Enum):
    r"""What a number that a denoiser returns means, for a state :math:`x = \alpha x_0 + \sigma
    \epsilon`.

    * ``NOISE``, "noise": :math:`\epsilon`, the noise that was added (diffusers' ``epsilon``).
    * ``DATA``, "data": :math:`x_0`, the clean sample (diffusers' ``sample``).
    * ``VELOCITY``, "velocity": :math:`\epsilon - x_0`, from the data to the noise. Of a flow, where
      :math:`x = (1 - t) x_0 + t \epsilon`, it is :math:`dx / dt`; of a flow from noise at 0 to data at 1, whose
      network predicts :math:`x_0 - \epsilon`, it is minus the answer at 1 - t.

    The :math:`v = \alpha \epsilon - \sigma x_0` of Salimans & Ho (2022), diffusers'
    ``v_prediction``, is none of them, not even the velocity: :meth:`Wrapped.from_v` takes a
    function that predicts it.
    """

    NOISE = "noise"
    DATA = "data"
    VELOCITY = "velocity"

    def scale(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """The factor s that makes x / s move along the clock alone; the shape of ``t``."""
        if self is Form.NOISE:
            return schedule.alpha(t)
        if self is Form.DATA:
            return schedule.sigma(t)
        return schedule.alpha(t) + schedule.sigma(t)

    def clock(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """The variable c with d(x / s) = f dc; the shape of ``t``."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        if self is Form.NOISE:
            return sigma / alpha
        if self is Form.DATA:
            return alpha / sigma
        return sigma / (alpha + sigma)


def convert(
    value: Tensor, source: Form, target: Form, *, x: Tensor, schedule: NoiseSchedule, t: Tensor
) -> Tensor:
    """Turn a prediction at state ``x`` and time ``t`` ``(grid,)`` from one form into another.

    ``value`` and ``x`` are ``(batch, *shape)``. The detour over (x_0, eps) is free of cancellation
    except where the target itself does not exist (noise from data at sigma = 0, data from noise at
    alpha = 0).
    """
    if source is target:
        return value
    alpha, sigma = broadcast(schedule.alpha(t), x), broadcast(schedule.sigma(t), x)
    if source is Form.VELOCITY:
        total = alpha + sigma
        return (x - sigma * value) / total if target is Form.DATA else (x + alpha * value) / total
    data = value if source is Form.DATA else (x - sigma * value) / alpha
    noise = value if source is Form.NOISE else (x - alpha * value) / sigma
    return {Form.DATA: data, Form.NOISE: noise, Form.VELOCITY: noise - data}[target]


def velocity_from_v(value: Tensor, *, x: Tensor, schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """The velocity eps - x_0 of the v = alpha eps - sigma x_0 of Salimans & Ho at ``x`` and time
    ``t`` ``(grid,)``.

    ``value`` and ``x`` are ``(batch, *shape)``. With r^2 = alpha^2 + sigma^2 (1 for a
    variance-preserving schedule) r^2 x_0 = alpha x - sigma v and r^2 eps = sigma x + alpha v, so
    there is no time at which it does not exist.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    square = alpha**2 + sigma**2
    return (
        broadcast((sigma - alpha) / square, x) * x + broadcast((alpha + sigma) / square, x) * value
    )


def told(schedule: NoiseSchedule, native: Form, tau: Tensor, dtau: Tensor) -> Tensor:
    """The factor of a state at ``tau`` that makes it one at ``tau + dtau``: the same x / s, at
    another noise level.

    s is what the native form divides by to have x / s = D + c f: alpha for noise, so that only
    sigma / alpha changes, alpha + sigma for velocity. A data prediction goes with either; here with
    the one that the schedule keeps still. Exactly 1 for EDM, and for flows unless noise is
    predicted.
    """
    flow = native is Form.VELOCITY or (native is Form.DATA and schedule.domain == "time")
    form = Form.VELOCITY if flow else Form.NOISE
    return form.scale(schedule, tau + dtau) / form.scale(schedule, tau)


def held(schedule: NoiseSchedule, native: Form, tau: Tensor, dtau: Tensor) -> Tensor:
    """The factor of an answer to a :func:`told` state at ``tau + dtau`` that keeps its data
    prediction at ``tau``.

    With the clock c and the scale s of noise or velocity, x / s = D + c f; the same x / s and D
    make f c(asked) / c(tau) times as large. A data prediction is kept by the loop's conversion as
    it is.
    """
    if native is Form.DATA:
        return torch.ones_like(tau)
    return native.clock(schedule, tau + dtau) / native.clock(schedule, tau)


@dataclass(frozen=True)
class Condition:
    """What a batch is conditioned on.

    ``inputs`` go to the network (every tensor has the batch as its first axis); ``features``
    ``(batch, dim)`` are what an instance-aware policy may read: the class one-hot over
    sqrt(classes), or pooled text embeddings (paper, Fig. 4).
    """

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None

    def __getitem__(self, index: Tensor | slice) -> Condition:
        """Some rows. A tensor is ``inputs[name]``."""
        if isinstance(index, str):
            raise TypeError(
                f"condition[...] takes rows; the tensor {index!r} is condition.inputs[{index!r}]"
            )
        features = None if self.features is None else self.features[index]
        return Condition({k: v[index] for k, v in self.inputs.items()}, features)

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        features = None if self.features is None else self.features.to(device)
        return Condition({k: v.to(device) for k, v in self.inputs.items()}, features)


UNCONDITIONAL = Condition()
UNSAVED = "unsaved"  # the fingerprint of weights that nobody has told


@runtime_checkable
class Denoiser(Protocol):
    """What a model family supplies. Parameters are frozen; gradients flow through a call, never
    into the model.

    Optional is ``device``, where a call expects its tensors; see :func:`device_of`.
    """

    @property
    def name(self) -> str:
        """What artifacts call it."""

    @property
    def fingerprint(self) -> str:
        """Which weights these are: results are only reused for the same ones."""

    @property
    def schedule(self) -> NoiseSchedule:
        """What its times mean."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""

    @property
    def native(self) -> Form:
        """What a call returns, and what gamma multiplies."""

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The native prediction at ``x`` ``(batch, *shape)`` and per-sample times ``t``
        ``(batch,)``.
        """

    def decode(self, x: Tensor) -> Tensor:
        """From the model's space to pixels in [-1, 1]; the identity for a model of pixels."""

    def condition(self, seeds: list[int]) -> Condition:
        """The default condition of each seed, so that a seed names a whole sample."""


def device_of(denoiser: Denoiser) -> torch.device:
    """Where a denoiser expects its tensors: what its ``device`` says, the CPU if it has none."""
    return torch.device(getattr(denoiser, "device", "cpu"))


def to_device_of(thing: T, denoiser: Denoiser) -> T:
    """``thing`` on the denoiser's device, by its own ``to``: a tensor, a condition, end points, a
    sampler, a loss.

    Modules and samplers are moved themselves, as torch does it. A plain function has no ``to`` and
    nothing to move.
    """
    to = getattr(thing, "to", None)
    return thing if to is None else to(device_of(denoiser))


@runtime_checkable
class Revealing(Protocol):
    """A denoiser that shows what its network thought: features of its latest call, at no further
    call.
    """

    def bottleneck(self) -> Tensor:
        """``(batch, size)``, without gradient.

        Raises:
            ValueError: before the first call.
        """


@runtime_checkable
class Labelled(Protocol):
    """A denoiser of classes, which can be asked for."""

    def labelled(self, labels: list[int]) -> Condition:
        """The condition of a batch of these labels.

        Raises:
            ValueError: if there is no such label.
        """


@dataclass(frozen=True)
class Wrapped:
    """A denoiser from a function ``(x, t, condition) -> native prediction`` and what its numbers
    mean.

    For an unconditional model in pixel space on the CPU that is all; ``decode`` and ``condition``
    are for the others, and ``device`` says where the function expects its tensors. A network in the
    function should be ``.eval()``; its weights get no gradients. Names and fingerprints matter only
    where results are stored: end points on disk are added to only under a ``fingerprint``, any text
    that changes with the weights. ``features`` gives what the network thought in its latest call,
    ``(batch, size)``: with it the denoiser is :class:`Revealing`, which AMED asks for. ``labelled``
    makes the condition of a list of labels: with it the denoiser is :class:`Labelled`.

    ``native`` may be given as the text of its :class:`Form`, such as "data"; ``shape`` as a list.
    The function is given the times in the dtype of ``x``, as a network of that dtype needs them
    (float32 if ``x`` is of half precision, which cannot tell a thousand times apart), and what it
    answers comes back in the dtype of ``x``.

    Raises:
        ValueError: if ``native`` is no form, ``shape`` no positive integers, or ``schedule`` no
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
    features: Callable[[], Tensor] | None = None
    # Protocols take a method that is None for an absent one, so without it this is not Labelled.
    labelled: Callable[[list[int]], Condition] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "native", _form(self.native))
        object.__setattr__(self, "shape", _shape(self.shape))
        if isinstance(self.schedule, type) or not isinstance(self.schedule, NoiseSchedule):
            raise ValueError(
                f"schedule must be a noise schedule such as RectifiedFlow(), got {self.schedule!r}"
            )
        # A method of the class would make every wrapped function Revealing, and AMED would fail in
        # the middle of a run.
        if self.features is not None:
            object.__setattr__(self, "bottleneck", self._shown)

    def __call__(self, x: Tensor, t: Tensor, condition: Condition = UNCONDITIONAL) -> Tensor:
        """The function's answer ``(batch, *shape)``, in the dtype of ``x``."""
        times = torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else t.dtype
        answer = self.function(x, t.to(times), condition)
        if not isinstance(answer, Tensor):
            given = type(answer).__name__
            raise TypeError(
                f"function must return a tensor, got {given}: of a diffusers model take .sample or [0]"
            )
        return answer.to(x.dtype)

    @classmethod
    def from_v(
        cls, function: Function, schedule: NoiseSchedule, shape: tuple[int, ...], **others: Any
    ) -> Wrapped:
        """A denoiser from a function that predicts v = alpha eps - sigma x_0 (Salimans & Ho, 2022;
        "v_prediction").

        Its answers are turned into velocities, which is then its native form; ``others`` are the
        further fields.

        Raises:
            ValueError: as the class does.
        """

        def velocity(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return velocity_from_v(function(x, t, condition), x=x, schedule=schedule, t=t)

        return cls(velocity, schedule, shape, Form.VELOCITY, **others)

    def _shown(self) -> Tensor:
        """The features without gradient.

        Raises:
            ValueError: if they are no rows of numbers.
        """
        assert self.features is not None
        features = self.features().detach()
        if features.ndim != 2:
            raise ValueError(f"features must give (batch, size), got {tuple(features.shape)}")
        return features


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
    """A denoiser around another one, ``inner``: what a subclass does not change is passed on."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.name, self.schedule = inner.name, inner.schedule
        self.shape, self.native = inner.shape, inner.native
        self.decode, self.condition = inner.decode, inner.condition
        if isinstance(inner, Revealing):
            self.bottleneck = inner.bottleneck
        if isinstance(inner, Labelled):
            self.labelled = inner.labelled

    @property
    def fingerprint(self) -> str:
        """That of the inner denoiser."""
        return self.inner.fingerprint

    @property
    def device(self) -> torch.device:
        """Where the inner denoiser is now."""
        return device_of(self.inner)


class Counted(DenoiserWrapper):
    """A denoiser that counts its network calls (``calls``) and evaluated samples (``samples``)."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        self.calls = self.samples = 0

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The wrapped denoiser's answer."""
        self.calls += 1
        self.samples += len(x)
        return self.inner(x, t, condition)

"""Coefficients of many steps at once, and what each step does to samples.

Steps of one kind share a formula, so they are computed together: a plan of N steps costs as many
small tensor operations as it has kinds of steps, not N times as many. Everything that a step does
is then folded into a few numbers a sample: conversion between forms, output scale, carry and
weights.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from indis.forms import Form, conversion, shift_scales
from indis.noise import NoiseSchedule
from indis.numerics import Scalar, scalars_for, to_sample_device
from indis.plan import Keep
from indis.solvers.base import Coefficients, Nodes, Solver

AT_ZERO = "at zero"  # the kind of a last step to sigma = 0


@dataclass(frozen=True)
class Question:
    """Where and how the network is asked at a node."""

    time: Tensor  # (batch,), float64, on the device of the samples
    input_scale: Scalar | None  # factor of the state that the network is shown
    output_scale: Tensor | None  # (grid,), factor of its answer
    shown_scale: Scalar | None  # the same, as a policy sees the answer


@dataclass(frozen=True)
class Step:
    """One step as numbers a sample.

    The value of answer a at state x is x + value a if the solver works in another form than the
    denoiser, else value a; the scale of a value is part of the weights. The step is
    x' = carry x + predict · values, or without this step's value
    x' = direct_x x + direct_answer a + predict[1:] · values. ``correct`` weighs the value at the
    new node first, then this step's and older ones. ``trial`` takes the place of ``value`` for
    Heun's trial answer. Where no value is remembered only the direct numbers are computed.
    """

    direct_x: Scalar
    direct_answer: Scalar
    predict: list[Scalar]
    correct: list[Scalar]
    value: Scalar = 1.0
    carry: Scalar = 1.0
    trial: Scalar | None = None


@dataclass(frozen=True)
class Tableau:
    """What stays the same during a run: it turns nodes and plan columns into :class:`Step` s."""

    schedule: NoiseSchedule
    native: Form
    form: Form
    solver: Solver
    steps: int
    keep: Keep
    to_zero: bool
    like: Tensor  # a sample tensor, for dtype, device and number of axes

    @property
    def converts(self) -> bool:
        """Whether answers are converted into the solver's form."""
        return self.native is not self.form

    def questions(self, tau: Tensor, dtau: Tensor) -> list[Question]:
        """Return the question at each of the nodes ``tau`` ``(grid, n)`` with shifts ``dtau``."""
        asked = to_sample_device(tau + dtau, self.like)
        times = asked.expand(len(self.like), -1).unbind(1)
        if self.keep == "answer":
            return [Question(time, None, None, None) for time in times]
        shown, answered = shift_scales(self.schedule, self.native, tau, dtau)
        inputs, outputs = scalars_for(shown, self.like), scalars_for(answered, self.like)
        parts = zip(times, inputs, answered.unbind(1), outputs, strict=True)
        return [Question(*part) for part in parts]

    def make(
        self,
        nodes: Tensor,
        first: int,
        gamma: Tensor,
        output_scale: Tensor | None,
        weights: Tensor | None,
        stretch: Tensor | None,
    ) -> list[Step]:
        """Compute steps ``first``, ``first + 1``, ... of the plan.

        Args:
            nodes: Nodes ``(grid, first + n + 1)`` from the start of the run to the last step's end.
            first: The number of the first step.
            gamma: Scales of the answers ``(grid, n)``.
            output_scale: Factors ``(grid, n)`` of the answers beside gamma.
            weights: Corrections ``(grid, n, order)`` of the weights.
            stretch: Factors ``(grid, n)`` of the corrected weights.

        Returns:
            n steps.
        """
        levels = Nodes.at(self.schedule, self.form, nodes)
        gain = gamma if output_scale is None else gamma * output_scale
        kinds: dict[Hashable, list[int]] = {}
        for k in range(first, first + gamma.shape[1]):
            kinds.setdefault(self._kind(k, levels), []).append(k)
        made: dict[int, Step] = {}
        for kind, members in kinds.items():
            span = min(self.solver.memory + 1, members[0] + 2)
            windows = levels.columns.unfold(-1, span, 1)[:, :, _picked(members, span - 2)]
            own = _picked(members, first)
            chosen = (v if v is None else v[:, own] for v in (gain, gamma, weights, stretch))
            made.update(
                zip(members, self._group(Nodes(self.schedule, windows), kind, *chosen), strict=True)
            )
        return [made[k] for k in range(first, first + gamma.shape[1])]

    def _kind(self, k: int, nodes: Nodes) -> Hashable:
        last = k == self.steps - 1
        if last and self.to_zero:
            return AT_ZERO
        singular = last and _singular(nodes)
        return self.solver.kind(k, self.steps, singular_end=singular)

    def _group(
        self,
        nodes: Nodes,
        kind: Hashable,
        gain: Tensor | None,
        gamma: Tensor | None,
        weights: Tensor | None,
        stretch: Tensor | None,
    ) -> list[Step]:
        """Steps of one kind, with windows of nodes ``(grid, n, span)``."""
        assert gain is not None and gamma is not None
        step = _adjusted(self._coefficients(nodes, kind), weights, stretch)
        predict, correct = step.predict, step.correct
        ratio = torch.ones_like(nodes.alpha)
        if self.converts:
            scale, ratio = conversion(self.native, self.form, nodes.alpha, nodes.sigma)
            newest_first = scale.flip(-1)
            predict = predict * newest_first[..., 1 : 1 + predict.shape[-1]]
            if correct is not None:
                correct = correct * newest_first[..., : correct.shape[-1]]
        value, newest = gain * ratio[..., -2], predict[..., 0]
        columns = {"direct_answer": newest * value}
        columns["direct_x"] = step.carry + newest if self.converts else step.carry
        parts = predict.unbind(-1)
        if self.solver.memory == 1 and not getattr(self.solver, "corrects", True):
            # No value outlives its step. A solver that does not say so may correct an earlier one.
            parts = ()
        else:
            columns |= {"value": value, "carry": step.carry}
        if step.trial:
            columns["trial"] = gamma * ratio[..., -1]
        single = len(columns)
        ends = () if correct is None else correct.unbind(-1)
        stacked = torch.broadcast_tensors(*columns.values(), *parts, *ends)
        middle = single + len(parts)
        steps = []
        for row in scalars_for(torch.stack(stacked, dim=-1), self.like):
            numbers = dict(zip(columns, row, strict=False))
            steps.append(Step(**numbers, predict=row[single:middle], correct=row[middle:]))
        return steps

    def _coefficients(self, nodes: Nodes, kind: Hashable) -> Coefficients:
        if kind != AT_ZERO:
            return self.solver.coefficients(nodes, kind)
        # At sigma = 0 alpha is 1, so the clock of noise and velocity is 0 and their scale 1.
        scale = nodes.scale[..., -2]
        if self.form is Form.DATA:
            carry, unit = torch.zeros_like(scale), torch.ones_like(scale)
        else:
            carry, unit = 1 / scale, -nodes.clock[..., -2]
        return Coefficients(carry, unit[..., None], unit)


def _picked(members: list[int], offset: int = 0) -> slice | list[int]:
    """The index of steps, as a slice where they follow each other: a view costs no copy."""
    first, last = members[0] - offset, members[-1] - offset
    if last - first == len(members) - 1:
        return slice(first, last + 1)
    return [k - offset for k in members]


def step_coefficients(
    solver: Solver, schedule: NoiseSchedule, form: Form, tau: Tensor, steps: int
) -> Coefficients:
    """Return the coefficients of the last interval of ``tau`` ``(grid, k + 2)``, step k."""
    nodes, k = Nodes.at(schedule, form, tau), tau.shape[-1] - 2
    kind = solver.kind(k, steps, singular_end=k == steps - 1 and _singular(nodes))
    return solver.coefficients(nodes, kind)


def _singular(nodes: Nodes) -> bool:
    """Whether log-SNR is infinite at the last node."""
    return bool((nodes.sigma[..., -1].detach() == 0).any())


def _adjusted(step: Coefficients, weights: Tensor | None, stretch: Tensor | None) -> Coefficients:
    """Apply the plan's corrections of the weights, in units of the step, and its stretch.

    A corrector's newest answer comes after the decision, so its weight is not corrected.
    """
    predict, correct = step.predict, step.correct
    if weights is not None:
        added = step.unit[..., None] * weights
        predict = predict + _aligned(added, 0, predict.shape[-1])
        correct = None if correct is None else correct + _aligned(added, 1, correct.shape[-1])
    if stretch is not None:
        predict = stretch[..., None] * predict
        correct = None if correct is None else stretch[..., None] * correct
    return replace(step, predict=predict, correct=correct)


def _aligned(columns: Tensor, first: int, size: int) -> Tensor:
    """Place ``columns`` from ``first`` on among ``size``; those of absent answers drop out."""
    return F.pad(columns, (first, size - first - columns.shape[-1]))

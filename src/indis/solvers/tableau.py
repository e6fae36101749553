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
from indis.numerics import Scalar, scalars_for
from indis.plan import Keep
from indis.solvers.base import Coefficients, Nodes, Solver

AT_ZERO = "at zero"  # the kind of a last step to sigma = 0


@dataclass(frozen=True)
class Question:
    """Where and how the network is asked at a node."""

    time: Tensor  # (grid,), float64
    input_scale: Scalar | None  # factor of the state that the network is shown
    output_scale: Tensor | None  # (grid,), factor of its answer
    shown_scale: Scalar | None  # the same, as a policy sees the answer


@dataclass(frozen=True)
class Step:
    """One step as numbers a sample: f = value_x x + value_answer a, x' = carry x + predict f + ...

    ``direct_x`` and ``direct_answer`` give the part of x and a in x' without f. ``correct`` weighs
    the value at the new node first, then this step's value and older ones.
    """

    value_x: Scalar
    value_answer: Scalar
    direct_x: Scalar
    direct_answer: Scalar
    carry: Scalar
    predict: list[Scalar]
    correct: list[Scalar]
    trial_x: Scalar | None  # of the trial answer at the new node, if there is one
    trial_answer: Scalar | None


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

    def questions(self, tau: Tensor, dtau: Tensor) -> list[Question]:
        """Return the question at each of the nodes ``tau`` ``(grid, n)`` with shifts ``dtau``."""
        times = (tau + dtau).unbind(1)
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
        count, levels = gamma.shape[1], Nodes.at(self.schedule, nodes)
        gain = gamma if output_scale is None else gamma * output_scale
        kinds: dict[Hashable, list[int]] = {}
        for k in range(first, first + count):
            kinds.setdefault(self._kind(k, levels), []).append(k)
        made: dict[int, Step] = {}
        for kind, members in kinds.items():
            columns = torch.tensor([k - first for k in members])
            span = min(self.solver.memory + 1, members[0] + 2)
            window = torch.tensor([range(k + 2 - span, k + 2) for k in members])
            chosen = (v if v is None else v[:, columns] for v in (gain, gamma, weights, stretch))
            made.update(zip(members, self._group(levels[window], kind, *chosen), strict=True))
        return [made[k] for k in range(first, first + count)]

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
        start, end = nodes[-2], nodes[-1]
        state, answer = conversion(self.native, self.form, start.alpha, start.sigma)
        value = [state, gain * answer]
        newest = step.predict[..., 0]
        direct = [step.carry + newest * value[0], newest * value[1]]
        trial: list[Tensor] = []
        if step.trial:
            trial = list(conversion(self.native, self.form, end.alpha, end.sigma))
            trial[1] = gamma * trial[1]
        predict = list(step.predict.unbind(-1))
        correct = [] if step.correct is None else list(step.correct.unbind(-1))
        columns = [*value, *direct, step.carry, *trial, *predict, *correct]
        rows = scalars_for(torch.stack(torch.broadcast_tensors(*columns), dim=-1), self.like)
        at, stop = 5 + len(trial), 5 + len(trial) + len(predict)
        return [_step(row, at, stop) for row in rows]

    def _coefficients(self, nodes: Nodes, kind: Hashable) -> Coefficients:
        if kind != AT_ZERO:
            return self.solver.coefficients(nodes, self.form, kind)
        # At sigma = 0 alpha is 1, so the clock of noise and velocity is 0 and their scale 1.
        start = nodes[-2]
        scale = self.form.scale_of(start.alpha, start.sigma)
        if self.form is Form.DATA:
            carry, unit = torch.zeros_like(scale), torch.ones_like(scale)
        else:
            carry, unit = 1 / scale, -self.form.clock_of(start.alpha, start.sigma)
        return Coefficients(carry, unit[..., None], unit)


def _step(row: list[Scalar], at: int, end: int) -> Step:
    value_x, value_answer, direct_x, direct_answer, carry = row[:5]
    trial_x, trial_answer = row[5:at] or (None, None)
    return Step(
        value_x,
        value_answer,
        direct_x,
        direct_answer,
        carry,
        row[at:end],
        row[end:],
        trial_x,
        trial_answer,
    )


def step_coefficients(
    solver: Solver, schedule: NoiseSchedule, form: Form, tau: Tensor, steps: int
) -> Coefficients:
    """Return the coefficients of the last interval of ``tau`` ``(grid, k + 2)``, step k."""
    nodes, k = Nodes.at(schedule, tau), tau.shape[-1] - 2
    kind = solver.kind(k, steps, singular_end=k == steps - 1 and _singular(nodes))
    return solver.coefficients(nodes, form, kind)


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
    """Place ``columns`` from ``first`` on among ``size``; answers that do not exist yet drop out."""
    return F.pad(columns, (first, size - first - columns.shape[-1]))

"""The one sampling loop: a stepper says what to ask, a denoiser answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from indis.denoise import UNCONDITIONAL, Condition, Denoiser, FeatureDenoiser
from indis.plan import Plan
from indis.solvers.base import Solver
from indis.solvers.stepper import Stepper


@dataclass(frozen=True)
class State:
    """The sample after a step. UniPC corrects it once more at the start of the next step."""

    node: int
    tau: Tensor  # (grid,)
    x: Tensor  # (batch, *shape)


def solve(
    denoiser: Denoiser,
    x: Tensor,
    plan: Plan,
    solver: Solver,
    condition: Condition = UNCONDITIONAL,
    *,
    analytic_first: bool = False,
    recompute: bool = False,
) -> Tensor:
    """Return the end of :func:`trajectory`: x at t_0, shaped like ``x``."""
    return last(
        trajectory(
            denoiser, x, plan, solver, condition, analytic_first=analytic_first, recompute=recompute
        )
    )


def last(states: Iterable[State]) -> Tensor:
    """Return the sample of the last state; the states before it are not kept."""
    return deque(states, maxlen=1).pop().x


def trajectory(
    denoiser: Denoiser,
    x: Tensor,
    plan: Plan,
    solver: Solver,
    condition: Condition = UNCONDITIONAL,
    *,
    analytic_first: bool = False,
    recompute: bool = False,
) -> Iterator[State]:
    """Run a plan on a solver and yield the state after each step.

    Args:
        denoiser: The denoiser.
        x: x_T ``(batch, *shape)``.
        plan: The plan.
        solver: The solver.
        condition: The condition of the batch.
        analytic_first: Whether the first evaluation is replaced by its closed form (AFS), one call
            less.
        recompute: Whether network calls are recomputed in the backward pass, so that memory does
            not grow with the number of steps.

    Returns:
        An iterator over the states.

    Raises:
        ValueError: If the denoiser answers in another shape, or the run would need a prediction
            that does not exist. Checks that need no answer are made at the call.
    """
    schedule, native = denoiser.schedule, denoiser.native
    stepper = Stepper(schedule, native, solver, plan, x, analytic_first=analytic_first)
    call: Any = denoiser
    if plan.needs_features:
        assert isinstance(denoiser, FeatureDenoiser)
        call = denoiser.with_features
    return _states(stepper, call, condition, recompute)


def _states(stepper: Stepper, call: Any, condition: Condition, recompute: bool) -> Iterator[State]:
    seen = 0
    while True:
        if stepper.node > seen:
            seen = stepper.node
            yield State(seen, stepper.tau, stepper.x)
        if stepper.done:
            return
        x, t = stepper.input(), stepper.time
        if recompute and torch.is_grad_enabled():
            answer = checkpoint(call, x, t, condition, use_reentrant=False)
        else:
            answer = call(x, t, condition)
        stepper.advance(*answer if isinstance(answer, tuple) else (answer,))

"""The one sampling loop: a plan says where and how to ask, a solver says how to combine, a denoiser
answers.

Time shifts, output scales, the analytic first step, gradient checkpointing and conversions between
forms happen here, once, for every solver and every policy. A *plan* is asked step by step: an
open-loop one (:class:`~indis.plan.Discretization`) knows everything in advance, a closed-loop one
may look at the state and at the answer before it decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from indis.denoise import UNCONDITIONAL, Condition, Denoiser, Form, convert, held, told
from indis.noise import NoiseSchedule, end_levels
from indis.numerics import broadcast
from indis.plan import Churn, Decision, Keep, Plan
from indis.solvers.solver import Coefficients, Solver


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
    checkpoint: bool = False,
) -> Tensor:
    """The end of :func:`trajectory`: x at t_0, shape of ``x``."""
    states = trajectory(
        denoiser, x, plan, solver, condition, analytic_first=analytic_first, checkpoint=checkpoint
    )
    return end(states)


def end(states: Iterable[State]) -> Tensor:
    """Where a trajectory ends; what was on the way is not kept."""
    return deque(states, maxlen=1).pop().x


def trajectory(
    denoiser: Denoiser,
    x: Tensor,
    plan: Plan,
    solver: Solver,
    condition: Condition = UNCONDITIONAL,
    *,
    analytic_first: bool = False,
    checkpoint: bool = False,
) -> Iterator[State]:
    """Yield the state after each step, from ``x`` = x_T of shape ``(batch, *shape)``.

    ``analytic_first`` replaces the first evaluation by :func:`analytic_answer` (AFS), one call
    less. ``checkpoint`` recomputes each network call in the backward pass, so memory does not grow
    with the number of steps.

    Raises:
        ValueError: if the denoiser answers in another shape, or the run would need a prediction
            that does not exist:
            of the noise at pure noise, or from a data prediction at pure data.
    """
    schedule, form = denoiser.schedule, solver.form(denoiser.native)
    _check_start(schedule, denoiser.native, form)
    ask = _Asker(denoiser, condition, form, plan.keep, checkpoint)
    tau, dtau = plan.start()
    nodes, history = [tau], deque[Tensor](maxlen=solver.memory)
    finish = None  # corrects the previous step once the answer at its end is known
    for k in range(plan.steps):
        # An analytic answer is one at the node itself, so nothing of it needs to be kept.
        answer = (
            _Answer(analytic_answer(denoiser, x, tau))
            if analytic_first and k == 0
            else ask.shifted(x, tau, dtau)
        )
        decision = plan.decide(k, x, answer.meant)
        value = ask.usable(answer, decision.gamma, x, tau)
        if finish is not None:
            x = finish((value, *history))
        history.appendleft(value)
        tau, dtau = decision.tau, decision.dtau
        nodes.append(tau)
        step = _adjusted(solver.coefficients(schedule, form, _columns(nodes), plan.steps), decision)
        start, lead = x, _lead(decision.extra, nodes, schedule)
        x = combine(step.carry, start, step.predict, history, lead)
        finish = None
        if step.correct is not None:
            finish = _Corrector(step.carry, start, step.correct, lead)
            if step.trial:
                _check_trial(schedule, denoiser.native, form)
                trial = ask.usable(_Answer(ask.native(x, tau)), decision.gamma, x, tau)
                x, finish = finish((trial, *history)), None
        if decision.churn is not None:
            x = inflate(x, tau, decision.churn, schedule)
            tau = nodes[-1] = decision.churn.tau
        yield State(k + 1, tau, x)


def combine(
    carry: Tensor, x: Tensor, weights: Tensor, values: Iterable[Tensor], lead: Tensor | None = None
) -> Tensor:
    """u x + sum_j w_j f_j, plus a lead: only here do coefficients ``(grid,)``, ``(grid, order)``
    meet samples.
    """
    total = broadcast(carry, x) * x
    if lead is not None:
        total = total + lead
    for weight, value in zip(weights.unbind(1), values, strict=False):
        total = total + broadcast(weight, x) * value
    return total


def inflate(x: Tensor, tau: Tensor, churn: Churn, schedule: NoiseSchedule) -> Tensor:
    """``x`` at ``tau`` carried forward to ``churn.tau`` by fresh noise, so that its marginal is
    that of the new time.

    A step of the forward process: scale by alpha' / alpha, add what variance is missing (EDM,
    Algorithm 2).
    """
    alpha, sigma = schedule.alpha(tau), schedule.sigma(tau)
    ratio = schedule.alpha(churn.tau) / alpha
    missing = schedule.sigma(churn.tau) ** 2 - (ratio * sigma) ** 2
    # The root of an exact zero has no finite slope; the floor is far below the rounding of x.
    amount = missing.clamp(min=1e-24).sqrt()
    return broadcast(ratio, x) * x + broadcast(amount, x) * churn.noise


def analytic_answer(denoiser: Denoiser, x: Tensor, tau: Tensor) -> Tensor:
    """The answer for data of unit variance, eps = x / sqrt(alpha^2 + sigma^2), in the denoiser's
    native form.

    Good where x is almost pure noise, so it may replace the first call (AFS; Dockhorn et al.,
    2022).
    """
    alpha, sigma = denoiser.schedule.alpha(tau), denoiser.schedule.sigma(tau)
    norm = (alpha**2 + sigma**2).sqrt()
    # (x - sigma eps) / alpha, without the cancellation and without dividing by an alpha that is 0
    # at a flow's start
    noise, data = 1 / norm, alpha / (norm * (norm + sigma))
    factor = {Form.NOISE: noise, Form.DATA: data, Form.VELOCITY: noise - data}[denoiser.native]
    return broadcast(factor, x) * x


def _check_start(schedule: NoiseSchedule, native: Form, form: Form) -> None:
    """Where alpha is 0 a noise prediction says nothing of the data, and a data prediction does not
    tell the noise.
    """
    if Form.NOISE in (native, form) and not end_levels(schedule)[0]:
        raise ValueError(
            f"t_max = {schedule.t_max:g} is pure noise, where no noise prediction is of use: take {_WAY_OUT[native]}"
        )


def _check_trial(schedule: NoiseSchedule, native: Form, form: Form) -> None:
    """The trial of the last step asks at t_min, where a data prediction must tell the noise too."""
    if native is Form.DATA and form is Form.NOISE and not end_levels(schedule)[1]:
        raise ValueError(
            f"t_min = {schedule.t_min:g} is pure data, where a data prediction does not tell the noise that heun "
            "needs: take a larger t_min, or a solver without a trial evaluation"
        )


_WAY_OUT = {
    Form.NOISE: "a smaller t_max",
    Form.DATA: "a solver of data predictions, dpmpp or unipc",
    Form.VELOCITY: "a solver that uses velocities, such as adams_bashforth",
}


@dataclass(frozen=True)
class _Answer:
    """What the network said, and what makes it mean the same data where it is used, if that is to
    be kept.
    """

    native: Tensor
    factor: Tensor | None = None  # (grid,)

    @property
    def meant(self) -> Tensor:
        """The native answer as it is used, but for gamma."""
        return (
            self.native
            if self.factor is None
            else broadcast(self.factor, self.native) * self.native
        )

    def scaled(self, gamma: Tensor) -> Tensor:
        """gamma times what is meant (Eq. 5). The factors meet in double precision, before they meet
        the answer.
        """
        scale = gamma if self.factor is None else gamma * self.factor
        return broadcast(scale, self.native) * self.native


@dataclass(frozen=True)
class _Asker:
    """Calls the network at per-sample times and turns its answer into what the solver's history
    holds.
    """

    denoiser: Denoiser
    condition: Condition
    form: Form
    keep: Keep
    checkpoint: bool

    def shifted(self, x: Tensor, tau: Tensor, dtau: Tensor) -> _Answer:
        """The answer at node ``tau``, asked for ``dtau`` ``(grid,)`` away."""
        if self.keep == "answer":
            return _Answer(self.native(x, tau + dtau))
        schedule, form = self.denoiser.schedule, self.denoiser.native
        state = broadcast(told(schedule, form, tau, dtau), x) * x
        return _Answer(self.native(state, tau + dtau), held(schedule, form, tau, dtau))

    def native(self, x: Tensor, t: Tensor) -> Tensor:
        """One network evaluation at times ``(grid,)``."""
        times = t.expand(len(x))
        if self.checkpoint and torch.is_grad_enabled():
            answer = recompute(self.denoiser, x, times, self.condition, use_reentrant=False)
        else:
            answer = self.denoiser(x, times, self.condition)
        if answer.shape != x.shape:  # it would be broadcast, to wrong samples
            raise ValueError(
                f"denoiser must answer in the shape of x, {tuple(x.shape)}, got {tuple(answer.shape)}"
            )
        return answer

    def usable(self, answer: _Answer, gamma: Tensor, x: Tensor, tau: Tensor) -> Tensor:
        """gamma times the answer, in the solver's form. The conversion is at tau, where the state
        is.
        """
        native, schedule = self.denoiser.native, self.denoiser.schedule
        return convert(answer.scaled(gamma), native, self.form, x=x, schedule=schedule, t=tau)


@dataclass(frozen=True)
class _Corrector:
    carry: Tensor
    start: Tensor
    weights: Tensor
    lead: Tensor | None

    def __call__(self, values: tuple[Tensor, ...]) -> Tensor:
        return combine(self.carry, self.start, self.weights, values, self.lead)


def _columns(nodes: list[Tensor]) -> Tensor:
    """Nodes side by side, ``(grid, k + 2)``; a shared first node is repeated once later ones differ
    by sample.
    """
    rows = max(len(node) for node in nodes)
    return torch.stack([node.expand(rows) for node in nodes], dim=1)


def _lead(extra: Tensor | None, nodes: list[Tensor], schedule: NoiseSchedule) -> Tensor | None:
    """How much further a step, predicted or corrected, goes with ``extra`` more of denoised sample.

    With the noise as it is, x' = alpha' D + sigma' / sigma (x - alpha D).
    """
    if extra is None:
        return None
    alpha, sigma = schedule.alpha(nodes[-2]), schedule.sigma(nodes[-2])
    share = schedule.alpha(nodes[-1]) - alpha * schedule.sigma(nodes[-1]) / sigma
    return broadcast(share, extra) * extra


def _adjusted(step: Coefficients, decision: Decision) -> Coefficients:
    """A step with the plan's corrections of its weights, which are in units of the step, and its
    stretch.

    A corrector, whose newest answer comes after the decision, keeps to what was decided for the
    older ones.
    """
    predict, correct = step.predict, step.correct
    if decision.weights is not None:
        added = step.unit[:, None] * decision.weights
        predict = predict + _beside(added, 0, predict.shape[1])
        correct = None if correct is None else correct + _beside(added, 1, correct.shape[1])
    if decision.stretch is not None:
        predict = decision.stretch[:, None] * predict
        correct = None if correct is None else decision.stretch[:, None] * correct
    return replace(step, predict=predict, correct=correct)


def _beside(columns: Tensor, first: int, size: int) -> Tensor:
    """``columns`` from ``first`` on among ``size``; those of answers that do not exist yet are left
    out.
    """
    return F.pad(columns, (first, size - first - columns.shape[1]))

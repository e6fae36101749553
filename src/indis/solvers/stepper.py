"""The stepper: one run of a sampler, one network answer at a time.

The library's own loop uses it, and so can a loop that belongs to somebody else:

    stepper = Stepper(schedule, native, solver, plan, x)
    while not stepper.done:
        stepper.advance(network(stepper.input(), stepper.time))
    sample = stepper.x

Time shifts, output scales, corrections, churn, the analytic first step and conversions between
forms happen here, once, for every solver and every policy.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from indis.forms import Form
from indis.noise import NoiseSchedule, end_levels
from indis.numerics import TIME_DTYPE, Scalar, broadcast, scaled, to_sample_device, weighted_sum
from indis.plan import Churn, Decision, Discretization, Plan
from indis.solvers.base import Solver
from indis.solvers.tableau import Question, Step, Tableau

HALF = (torch.float16, torch.bfloat16)


class Stepper:
    """One run of a plan on a solver.

    Args:
        schedule: The noise schedule of the denoiser.
        native: The form of the denoiser's answers.
        solver: The solver.
        plan: The plan.
        x: x_T ``(batch, *shape)``. The state is kept in float32 if this is of half precision.
        analytic_first: Whether the first answer is :func:`analytic_answer` instead of a network
            call (AFS).

    Raises:
        ValueError: If the run would need a prediction that does not exist: noise at pure noise,
            or noise from a data prediction at pure data.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        native: Form,
        solver: Solver,
        plan: Plan,
        x: Tensor,
        *,
        analytic_first: bool = False,
    ) -> None:
        form = solver.form(native, schedule)
        _check_start(schedule, native, form)
        self.plan, self.steps, self.node, self.done = plan, plan.steps, 0, False
        self._dtype = x.dtype
        self._x = x.float() if x.dtype in HALF else x
        self._tableau = Tableau(
            schedule, native, form, solver, plan.steps, plan.keep, plan.to_zero, self._x
        )
        self._memory = solver.memory
        self._history: deque[Tensor] = deque(maxlen=solver.memory)
        self._analytic = analytic_first
        # Corrects the latest step, once the answer at its end is known; trial answers are extra.
        self._pending: tuple[Step, Tensor, Tensor | None] | None = None
        self._on_trial = False
        tau, dtau = (value.cpu() for value in plan.start())
        self.tau = tau  # (grid,), the time of the state
        self._nodes = [tau]
        self._questions: list[Question] = []
        self._planned: list[Step] = []
        if type(plan) is Discretization and not any(plan.churn):
            self._plan_ahead(plan)
        if analytic_first:
            self._question = self._plain_question(tau)
            self._take(analytic_answer(schedule, native, self._x, tau), None)
        else:
            self._question = self._questions[0] if self._questions else self._ask(tau, dtau)

    @property
    def x(self) -> Tensor:
        """The state ``(batch, *shape)``; the sample once :attr:`done`.

        UniPC corrects a state once more at the start of the next step.
        """
        return self._x.to(self._dtype)

    @property
    def time(self) -> Tensor:
        """The times ``(batch,)`` at which the network is asked next, float64."""
        return self._question.time

    def input(self) -> Tensor:
        """Return the state ``(batch, *shape)`` as the network is shown it next."""
        return scaled(self._question.input_scale, self._x).to(self._dtype)

    def advance(self, answer: Tensor, features: Tensor | None = None) -> None:
        """Use the network's answer: finish a trial, or take a step.

        Args:
            answer: The native answer ``(batch, *shape)`` to :meth:`input` at :attr:`time`.
            features: Features ``(batch, size)`` of the network, if the plan needs them.

        Raises:
            ValueError: If the answer has another shape, or the run is finished.
        """
        if self.done:
            raise ValueError(f"advance must be called {self.node} times for this run, not more")
        if answer.shape != self._x.shape:  # it would be broadcast, to wrong samples
            expected, got = tuple(self._x.shape), tuple(answer.shape)
            raise ValueError(f"denoiser must answer in the shape of x, {expected}, got {got}")
        if self._on_trial:
            self._finish_trial(answer)
        else:
            self._take(answer, features)

    def replace_input(self, shown: Tensor) -> None:
        """Go on from another state, as a callback in somebody's loop may want it.

        Args:
            shown: The state as the network is to be shown it, in place of :meth:`input`.

        Raises:
            ValueError: If it has another shape, or the run is finished.
        """
        if self.done or shown.shape != self._x.shape:
            given, state = tuple(shown.shape), "finished" if self.done else tuple(self._x.shape)
            raise ValueError(f"shown must be in the shape of x, {state}, got {given}")
        scale = self._question.input_scale
        x = shown.to(self._x) if scale is None else shown.to(self._x) / scale
        if self._pending is not None:  # the correction of the step leads to the new state too
            step, start, added = self._pending
            change = x - self._x
            self._pending = step, start, change if added is None else added + change
        self._x = x

    def _plan_ahead(self, plan: Discretization) -> None:
        """Compute the questions and the steps of an open-loop plan, all at once.

        Steps of a plan that all samples share are plain numbers. They are kept with the plan, for
        the next run of the same kind.
        """
        run, x = self._tableau, self._x
        kind = (run.schedule, run.native, run.solver, self._analytic)
        # Times of inference mode cannot serve a run that is differentiated.
        key = (*kind, plan.versions(), len(x), x.device, torch.is_inference_mode_enabled())
        kept = vars(plan).get("_kept")
        if kept is not None and kept[0] == key:
            self._questions, self._planned = kept[1:]
            return
        self._questions = run.questions(plan.tau[:, :-1], plan.dtau)
        scales: list[Tensor | None] = [q.output_scale for q in self._questions]
        output_scale = None
        if scales[0] is not None:
            if self._analytic:  # an analytic answer is one at the node itself
                scales[0] = torch.ones_like(scales[0])
            output_scale = torch.stack([s for s in scales if s is not None], dim=1)
        self._planned = run.make(plan.tau, 0, plan.gamma, output_scale, plan.weights, plan.stretch)
        if len(plan.tau) == 1 and not any(v.requires_grad for v in plan.columns().values()):
            object.__setattr__(plan, "_kept", (key, self._questions, self._planned))

    def _plain_question(self, tau: Tensor) -> Question:
        """Ask at a node itself, without a shift."""
        time = to_sample_device(tau, self._x).expand(len(self._x))
        return Question(time, None, None, None)

    def _ask(self, tau: Tensor, dtau: Tensor) -> Question:
        return self._tableau.questions(tau[:, None], dtau.expand_as(tau)[:, None])[0]

    def _decide(self, answer: Tensor, features: Tensor | None) -> tuple[Step, Decision]:
        """Ask the plan for this step, and compute it."""
        asked = self._question
        shown = scaled(asked.shown_scale, answer)
        extra = {"features": features} if self.plan.needs_features else {}
        decision = self.plan.decide(self.node, self._x, shown, **extra)
        self._nodes.append(decision.tau.cpu())
        rows = max(len(node) for node in self._nodes)
        nodes = torch.stack([node.expand(rows) for node in self._nodes], dim=1)
        given = (decision.gamma, asked.output_scale, decision.weights, decision.stretch)
        columns: list[Any] = [v if v is None else v.cpu()[:, None] for v in given]
        (step,) = self._tableau.make(nodes, self.node, *columns)
        return step, decision

    def _take(self, answer: Tensor, features: Tensor | None) -> None:
        """Correct the step before if that is due, and take the next one."""
        if self._planned:
            step, decision = self._planned[self.node], None
            corrections = self.plan.corrections  # type: ignore[attr-defined]
            correction = corrections[self.node] if corrections else None
        else:
            step, decision = self._decide(answer, features)
            correction = decision.correction
        x, value = self._x, None
        remembered = self._memory > 1 and self.node + 1 < self.steps
        if self._pending is not None or step.correct or remembered:
            value = self._value(step.value, x, answer)
        if self._pending is not None:
            assert value is not None
            x = self._corrected(value)
        start = x
        added = self._added(correction, decision)
        if value is None:
            weights = [step.direct_x, step.direct_answer, *step.predict[1:]]
            x = weighted_sum(weights, [x, answer, *self._history], added)
        else:
            self._history.appendleft(value)
            x = weighted_sum([step.carry, *step.predict], [x, *self._history], added)
        self._x = x
        if step.correct:
            self._pending = step, start, added
        if step.trial is not None:
            self._begin_trial(decision)
        else:
            self._arrive(decision)

    def _value(self, factor: Scalar, x: Tensor, answer: Tensor) -> Tensor:
        """The value of an answer in the solver's form, but for its scale (:class:`Step`)."""
        if self._tableau.converts:
            return weighted_sum([1.0, factor], [x, answer])
        return scaled(factor, answer)

    def _corrected(self, value: Tensor) -> Tensor:
        assert self._pending is not None
        step, start, added = self._pending
        self._pending = None
        return weighted_sum([step.carry, *step.correct], [start, value, *self._history], added)

    def _next(self, decision: Decision | None) -> Tensor:
        """The node ``(grid,)`` that the step at hand goes to."""
        if decision is not None:
            return decision.tau.cpu()
        assert isinstance(self.plan, Discretization)
        return self.plan.tau[:, self.node + 1]

    def _added(self, correction: Tensor | None, decision: Decision | None) -> Tensor | None:
        """The displacement of the step caused by ``correction`` of the data that it heads for.

        With the noise as it is, x' = alpha' D + sigma' / sigma (x - alpha D).
        """
        if correction is None:
            return None
        schedule, to_zero = self._tableau.schedule, self._tableau.to_zero
        if to_zero and self.node == self.steps - 1:
            return correction
        tau, after = self.tau, self._next(decision)
        fading = schedule.sigma(after) / schedule.sigma(tau)
        share = schedule.alpha(after) - schedule.alpha(tau) * fading
        return broadcast(share, correction) * correction

    def _begin_trial(self, decision: Decision | None) -> None:
        """Ask once more at the new node, without a shift."""
        _check_trial(self._tableau.schedule, self._tableau.native, self._tableau.form)
        self._on_trial, self._decision = True, decision
        self._question = self._plain_question(self._next(decision))

    def _finish_trial(self, answer: Tensor) -> None:
        assert self._pending is not None
        trial = self._pending[0].trial
        assert trial is not None
        self._x, self._on_trial = self._corrected(self._value(trial, self._x, answer)), False
        self._arrive(self._decision)

    def _arrive(self, decision: Decision | None) -> None:
        """Go to the next node and prepare its question."""
        self.tau = self._next(decision)
        self.node += 1
        if decision is not None and decision.churn is not None:
            churn = Churn(decision.churn.tau.cpu(), decision.churn.noise)
            self._x = inflate(self._x, self.tau, churn, self._tableau.schedule)
            self.tau = self._nodes[-1] = churn.tau
        if self.node == self.steps:
            self.done = True
        elif self._questions:
            self._question = self._questions[self.node]
        else:
            assert decision is not None
            self._question = self._ask(self.tau, decision.dtau.cpu())


def inflate(x: Tensor, tau: Tensor, churn: Churn, schedule: NoiseSchedule) -> Tensor:
    """Return ``x`` at ``tau`` carried to the noisier ``churn.tau`` by fresh noise.

    A step of the forward process: scale by alpha' / alpha and add the missing variance (EDM,
    Algorithm 2), so that the marginal is that of the new time.
    """
    ratio = schedule.alpha(churn.tau) / schedule.alpha(tau)
    missing = schedule.sigma(churn.tau) ** 2 - (ratio * schedule.sigma(tau)) ** 2
    # The root of an exact zero has no finite slope; the floor is far below the rounding of x.
    amount = missing.clamp(min=1e-24).sqrt()
    return broadcast(ratio, x) * x + broadcast(amount, x) * churn.noise


def analytic_answer(schedule: NoiseSchedule, native: Form, x: Tensor, tau: Tensor) -> Tensor:
    """Return the answer for data of unit variance, eps = x / sqrt(alpha^2 + sigma^2).

    It is good where x is almost pure noise, so it may replace the first call (AFS; Dockhorn et
    al., 2022).

    Args:
        schedule: The noise schedule.
        native: The form to return.
        x: States ``(batch, *shape)``.
        tau: Their times ``(grid,)``.

    Returns:
        The answer ``(batch, *shape)``.
    """
    alpha, sigma = schedule.alpha(tau), schedule.sigma(tau)
    norm = (alpha**2 + sigma**2).sqrt()
    # (x - sigma eps) / alpha, without cancellation and without dividing by alpha = 0.
    noise, data = 1 / norm, alpha / (norm * (norm + sigma))
    factor = {Form.NOISE: noise, Form.DATA: data, Form.VELOCITY: noise - data}[native]
    return broadcast(factor, x) * x


def _check_start(schedule: NoiseSchedule, native: Form, form: Form) -> None:
    """At alpha = 0 noise says nothing of the data, and data do not determine the noise."""
    if Form.NOISE not in (native, form):
        return
    if not float(schedule.alpha(torch.tensor(schedule.t_max, dtype=TIME_DTYPE))):
        raise ValueError(
            f"t_max = {schedule.t_max:g} is pure noise, where no noise prediction is of use: take "
            f"{_WAY_OUT[native]}"
        )


def _check_trial(schedule: NoiseSchedule, native: Form, form: Form) -> None:
    """The trial of the last step asks at t_min, where data must determine the noise too."""
    if native is Form.DATA and form is not Form.DATA and not end_levels(schedule)[1]:
        raise ValueError(
            f"t_min = {schedule.t_min:g} is pure data, where a data prediction does not tell the "
            "noise that heun needs: take a larger t_min, or a solver without a trial evaluation"
        )


_WAY_OUT = {
    Form.NOISE: "a smaller t_max",
    Form.DATA: "a solver of data predictions, dpmpp or unipc",
    Form.VELOCITY: "a solver that uses velocities, such as adams_bashforth",
}

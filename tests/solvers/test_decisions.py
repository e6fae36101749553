"""The loop under plans that decide as they go: closed loops, and steps that are stretched."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from indis import (
    EDM,
    IPNDM,
    UNCONDITIONAL,
    Condition,
    Decision,
    Discretization,
    Form,
    Heun,
    LinearVP,
    RectifiedFlow,
    UniPC,
    Wrapped,
    convert,
    grids,
    solve,
)
from indis.solvers import step_coefficients
from indis.solvers.base import Nodes, first_order
from problems import Bumpy, seeded
from solvers.cases import PROBLEMS, SOLVERS, each_solver, plan_for


class Careful:
    """A closed-loop plan: the larger the answer, the shorter the step, by a factor that is
    learned."""

    keep, to_zero, needs_features = "answer", False, False

    def __init__(self, problem: Bumpy, steps: int, care: Tensor) -> None:
        self.schedule, self.steps, self.care = problem.schedule, steps, care
        self.nodes = [torch.tensor([problem.schedule.t_max], dtype=torch.float64)]

    def start(self) -> tuple[Tensor, Tensor]:
        return self.nodes[0], torch.zeros(1, dtype=torch.float64)

    def decide(self, k, x, answer, features=None):
        size = answer.flatten(1).square().mean(1).sqrt().to(torch.float64)
        fraction = torch.exp(-self.care * size) / (self.steps - k)
        tau = self.nodes[-1] + fraction * (self.schedule.t_min - self.nodes[-1])
        self.nodes.append(tau)
        return Decision(torch.ones_like(tau), tau, torch.zeros_like(tau))


@each_solver
def test_a_closed_loop_plan_equals_the_open_loop_plan_of_the_nodes_it_chose(solver):
    problem, x = PROBLEMS["flow"], seeded(3, 2, seed=7)
    plan = Careful(problem, 4, torch.tensor(0.2, dtype=torch.float64))
    end = solve(problem, x, plan, solver)
    chosen = torch.stack([node.expand(3) for node in plan.nodes], dim=1)
    assert float((chosen[0] - chosen[1])[1:].abs().min()) > 1e-4
    replayed = solve(problem, x, Discretization.plain(chosen), solver)
    torch.testing.assert_close(end, replayed, rtol=1e-13, atol=1e-13)


@each_solver
def test_gradients_flow_through_a_closed_loop(solver):
    problem, x = PROBLEMS["flow"], seeded(2, 2, seed=7)

    def end(care: Tensor) -> Tensor:
        return solve(problem, x, Careful(problem, 3, care), solver)

    care = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(end, [care], eps=1e-6, atol=1e-7, rtol=1e-5)
    (gradient,) = torch.autograd.grad(end(care).sum(), care)
    assert float(gradient.abs()) > 1e-3


def test_a_stretch_multiplies_a_steps_weights_and_none_of_the_answers_that_are_kept():
    class Stretched(Discretization):
        def decide(self, k, x, answer, features=None):
            return replace(super().decide(k, x, answer), stretch=stretch[:, k])

    problem, solver, x = PROBLEMS["edm"], IPNDM(2), seeded(3, 2, seed=7)
    plan, stretch = plan_for(problem, 3, 4, 2), 1 + 0.2 * seeded(3, 4, seed=8)
    expected, older = x, torch.zeros_like(x)
    for k in range(4):
        newer = plan.gamma[:, k, None] * problem(
            expected, plan.tau[:, k] + plan.dtau[:, k], UNCONDITIONAL
        )
        new, old = (1.0, 0.0) if k == 0 else (1.5, -0.5)
        change = (new + plan.weights[:, k, :1]) * newer + (old + plan.weights[:, k, 1:]) * older
        width = plan.tau[:, k + 1] - plan.tau[:, k]
        expected, older = expected + (stretch[:, k] * width)[:, None] * change, newer
    stretched = Stretched(plan.tau, plan.dtau, plan.gamma, plan.weights)
    torch.testing.assert_close(
        solve(problem, x, stretched, solver), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_corrector_keeps_what_the_plan_decided_for_the_answers_before_it(order):
    problem, solver, x = Bumpy(EDM(0.05, 3.0), Form.DATA), UniPC(order), seeded(3, 2, seed=7)
    plan = plan_for(problem, 3, 4, order)
    answers: list[Tensor] = []  # newest first
    start, step = x, None
    for k in range(4):
        answers.insert(
            0, plan.gamma[:, k, None] * problem(x, plan.tau[:, k] + plan.dtau[:, k], UNCONDITIONAL)
        )
        if step is not None:  # the step before, once more, with the answer at its end
            corrected = (
                step.correct[:, 1:]
                + step.unit[:, None] * plan.weights[:, k - 1, : step.correct.shape[1] - 1]
            )
            older = sum(corrected[:, [j]] * answers[j + 1] for j in range(corrected.shape[1]))
            x = step.carry[:, None] * start + step.correct[:, [0]] * answers[0] + older
        start, step = (
            x,
            step_coefficients(solver, problem.schedule, Form.DATA, plan.tau[:, : k + 2], 4),
        )
        weights = step.predict + step.unit[:, None] * plan.weights[:, k, : step.predict.shape[1]]
        x = step.carry[:, None] * start + sum(
            weights[:, [j]] * answers[j] for j in range(weights.shape[1])
        )
    torch.testing.assert_close(
        solve(problem, seeded(3, 2, seed=7), plan, solver), x, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize(
    "schedule", [EDM(0.05, 3.0), RectifiedFlow(0.02, 0.95), LinearVP(t_min=0.02)], ids=repr
)
@pytest.mark.parametrize(
    "solver", [s for s in SOLVERS if s != Heun()], ids=repr
)  # Heun's second question: below
def test_what_is_added_moves_the_step_as_if_so_much_more_were_denoised(solver, schedule, form):
    """Where the denoised sample is the same everywhere, solvers of data predictions are exact,
    others in one step."""
    known, extra = seeded(3, 2, seed=1), seeded(3, 2, seed=2)

    class Adding(Discretization):
        def decide(self, k, x, answer, features=None):
            return replace(super().decide(k, x, answer), correction=(k + 1) * extra)

    def constant(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return convert(known, Form.DATA, form, x=x, schedule=schedule, t=t)

    steps = 3 if solver.form(form, schedule) is Form.DATA else 1
    tau, x = grids.log_snr(schedule, steps), seeded(3, 2, seed=3)
    end = solve(Wrapped(constant, schedule, (2,), form), x, Adding.plain(tau), solver)
    for k in range(steps):
        alpha, sigma = schedule.alpha(tau[0, k : k + 2]), schedule.sigma(tau[0, k : k + 2])
        data = known + (k + 1) * extra
        x = alpha[1] * data + sigma[1] / sigma[0] * (x - alpha[0] * data)
    torch.testing.assert_close(end, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("native", Form)
@pytest.mark.parametrize(
    "schedule", [EDM(0.05, 3.0), RectifiedFlow(0.02, 0.95), LinearVP(t_min=0.02)], ids=repr
)
def test_heun_asks_where_what_is_added_has_led_and_adds_it_to_the_corrected_step_too(
    schedule, native
):
    known, extra, x = seeded(3, 2, seed=1), seeded(3, 2, seed=2), seeded(3, 2, seed=3)

    class Adding(Discretization):
        def decide(self, k, x, answer, features=None):
            return replace(super().decide(k, x, answer), correction=extra)

    def constant(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return convert(known, Form.DATA, native, x=x, schedule=schedule, t=t)

    tau, form = grids.log_snr(schedule, 1), Heun().form(native, schedule)
    carry, unit = first_order(Nodes.at(schedule, form, tau))
    (alpha, then), (sigma, sigma_then) = schedule.alpha(tau[0]), schedule.sigma(tau[0])
    added = (then - alpha * sigma_then / sigma) * extra

    def slope(x: Tensor, k: int) -> Tensor:
        return convert(known, Form.DATA, form, x=x, schedule=schedule, t=tau[:, k])

    first = slope(x, 0)
    trial = carry * x + added + unit * first
    expected = carry * x + added + unit * (first + slope(trial, 1)) / 2
    end = solve(Wrapped(constant, schedule, (2,), native), x, Adding.plain(tau), Heun())
    torch.testing.assert_close(end, expected, rtol=1e-10, atol=1e-10)

"""The one loop: per-sample plans, shifts, scales, weights, counts, dtypes, gradients."""

import pytest
import torch
from torch import Tensor

from indis import (
    EDM,
    IPNDM,
    UNCONDITIONAL,
    Condition,
    Counted,
    Discretization,
    DPMSolverPP,
    Euler,
    Form,
    Heun,
    LinearVP,
    RectifiedFlow,
    convert,
    grids,
    solve,
    trajectory,
)
from indis.solvers.stepper import analytic_answer
from problems import FORMS, Bumpy, Gaussian, Recording, seeded
from small_cases import sentence
from solvers.cases import PROBLEMS, SOLVERS, each_problem, each_solver, plan_for


@each_problem
@each_solver
def test_every_row_of_a_batch_is_solved_as_if_it_were_alone(solver, problem):
    plan, x = plan_for(problem, 4, 5, solver.memory), seeded(4, 2, seed=7)
    together = solve(problem, x, plan, solver)
    alone = torch.cat([solve(problem, x[i : i + 1], plan[i : i + 1], solver) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert (
        float((solve(problem, x, plan[:1], solver) - together)[1:].abs().max()) > 1e-4
    )  # the rows do differ


@each_solver
def test_a_shared_plan_equals_the_same_plan_in_every_row(solver):
    problem = PROBLEMS["flow"]
    plan, x = plan_for(problem, 1, 5, solver.memory), seeded(3, 2, seed=7)
    repeated = plan[torch.zeros(3, dtype=torch.long)]
    torch.testing.assert_close(
        solve(problem, x, plan, solver), solve(problem, x, repeated, solver), rtol=1e-12, atol=1e-12
    )


@each_problem
@each_solver
def test_no_shifts_unit_scales_and_no_corrections_are_the_plain_solver_bit_for_bit(solver, problem):
    tau, x = grids.polynomial(problem.schedule, 5), seeded(3, 2, seed=7)
    neutral = Discretization(
        tau, 0 * tau[:, 1:], tau[:, 1:] ** 0, torch.zeros(1, 5, solver.memory, dtype=tau.dtype)
    )
    assert torch.equal(
        solve(problem, x, neutral, solver), solve(problem, x, Discretization.plain(tau), solver)
    )


def test_a_step_asks_at_the_shifted_time_scales_the_answer_and_integrates_between_the_nodes():
    # Equation 5 of the paper written out for second-order iPNDM on sigma = t, with corrected
    # weights.
    problem = PROBLEMS["edm"]
    plan, x = plan_for(problem, 3, 4, 2), seeded(3, 2, seed=7)
    expected, older = x, None
    for k in range(4):
        tau, width = plan.tau[:, k], (plan.tau[:, k + 1] - plan.tau[:, k])[:, None]
        newer = plan.gamma[:, k, None] * problem(expected, tau + plan.dtau[:, k], UNCONDITIONAL)
        weights = plan.weights[:, k]
        if older is None:
            change = (1 + weights[:, :1]) * newer
        else:
            change = (1.5 + weights[:, :1]) * newer + (-0.5 + weights[:, 1:]) * older
        expected, older = expected + width * change, newer
    torch.testing.assert_close(solve(problem, x, plan, IPNDM(2)), expected, rtol=1e-13, atol=1e-13)


def test_corrections_of_fewer_weights_than_the_solver_has_leave_the_older_ones_alone():
    problem, x = PROBLEMS["flow"], seeded(2, 2, seed=7)
    plan = plan_for(problem, 2, 5, 1)
    padded = torch.cat([plan.weights, torch.zeros(2, 5, 2, dtype=torch.float64)], dim=2)
    wide = Discretization(plan.tau, plan.dtau, plan.gamma, padded)
    torch.testing.assert_close(
        solve(problem, x, plan, IPNDM(3)), solve(problem, x, wide, IPNDM(3)), rtol=1e-13, atol=1e-13
    )


def test_a_shifted_and_scaled_answer_is_converted_at_the_node_where_the_state_is():
    # Noise asked for at tau + dtau becomes data with alpha and sigma of tau; then first-order
    # DPM-Solver++ by hand.
    schedule = LinearVP(t_min=0.02)
    problem = Bumpy(schedule, Form.NOISE)
    plan, x = plan_for(problem, 3, 4, 1), seeded(3, 2, seed=7)
    plain = Discretization(plan.tau, plan.dtau, plan.gamma)
    alpha, sigma = schedule.alpha(plan.tau)[..., None], schedule.sigma(plan.tau)[..., None]
    expected = x
    for k in range(4):
        noise = plan.gamma[:, k, None] * problem(
            expected, plan.tau[:, k] + plan.dtau[:, k], UNCONDITIONAL
        )
        data = (expected - sigma[:, k] * noise) / alpha[:, k]
        fading = sigma[:, k + 1] / sigma[:, k]
        expected = fading * expected + (alpha[:, k + 1] - fading * alpha[:, k]) * data
    torch.testing.assert_close(
        solve(problem, x, plain, DPMSolverPP(1)), expected, rtol=1e-12, atol=1e-12
    )


def test_heun_averages_the_slopes_at_both_ends():
    problem = PROBLEMS["edm"]
    plan, x = plan_for(problem, 2, 3, 1), seeded(2, 2, seed=7)
    plain = Discretization(plan.tau, plan.dtau, plan.gamma)
    expected = x
    for k in range(3):
        tau, then = plan.tau[:, k], plan.tau[:, k + 1]
        gamma, width = plan.gamma[:, k, None], (then - tau)[:, None]
        first = gamma * problem(expected, tau + plan.dtau[:, k], UNCONDITIONAL)
        second = gamma * problem(expected + width * first, then, UNCONDITIONAL)
        expected = expected + width * (first + second) / 2
    torch.testing.assert_close(solve(problem, x, plain, Heun()), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("steps", [1, 2, 5])
@each_solver
def test_network_calls_are_the_promised_number_and_one_less_with_an_analytic_first_step(
    solver, steps
):
    problem, x = PROBLEMS["flow"], seeded(3, 2, seed=7)
    plan = plan_for(problem, 3, steps, solver.memory)
    plain, shortened = Counted(problem), Counted(problem)
    solve(plain, x, plan, solver)
    solve(shortened, x, plan, solver, analytic_first=True)
    assert plain.calls == solver.nfe(steps)
    assert shortened.calls == solver.nfe(steps) - 1
    assert plain.samples == 3 * plain.calls
    assert solver.nfe(steps) == (2 * steps if isinstance(solver, Heun) else steps)


@each_solver
def test_permuting_the_batch_permutes_the_results(solver):
    problem = PROBLEMS["edm"]
    plan, x = plan_for(problem, 5, 4, solver.memory), seeded(5, 2, seed=7)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        solve(problem, x[order], plan[order], solver),
        solve(problem, x, plan, solver)[order],
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_solver
def test_the_network_sees_the_shifted_time_of_its_own_row_and_the_sample_in_its_own_dtype(
    solver, dtype
):
    problem = Recording(PROBLEMS["flow"])
    plan, x = plan_for(problem, 3, 4, solver.memory), seeded(3, 2, seed=7, dtype=dtype)
    end = solve(problem, x, plan, solver)
    assert end.dtype == dtype
    assert {call.dtype for call in problem.calls} == {dtype}
    assert {call.times.dtype for call in problem.calls} == {torch.float64}
    asked = torch.stack([call.times for call in problem.calls], dim=1)
    expected = plan.tau[:, :-1] + plan.dtau
    if isinstance(solver, Heun):  # and the trial at the end of each step, where there is no shift
        expected = torch.stack([expected, plan.tau[:, 1:]], dim=2).flatten(1)
    torch.testing.assert_close(asked, expected, rtol=0, atol=0)
    torch.testing.assert_close(problem.calls[0].x, x, rtol=0, atol=0)


def test_a_shared_time_reaches_the_network_once_per_sample():
    problem = Recording(PROBLEMS["flow"])
    solve(problem, seeded(6, 2, seed=7), plan_for(problem, 1, 3, 1), Euler())
    assert {call.times.shape for call in problem.calls} == {(6,)}


def test_single_and_double_precision_agree_to_single_precision():
    problem, x = PROBLEMS["vp"], seeded(3, 2, seed=7)
    for solver in SOLVERS:
        plan = plan_for(problem, 3, 5, solver.memory)
        single = solve(problem, x.float(), plan, solver).double()
        torch.testing.assert_close(single, solve(problem, x, plan, solver), rtol=2e-5, atol=2e-5)


def test_samples_of_any_shape_are_solved_pixel_by_pixel():
    problem = PROBLEMS["edm"]

    class Image(Bumpy):
        shape = (2, 4, 5)

        def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return torch.sin(1.3 * x + torch.cos(2 * t).reshape(-1, 1, 1, 1))

    image, x = Image(problem.schedule, problem.native), seeded(3, 2, 4, 5, seed=7)
    plan = plan_for(problem, 3, 4, 3)
    whole = solve(image, x, plan, IPNDM(3))
    pixel = solve(image, x[:, 1:, 2:3, 3:4], plan, IPNDM(3))
    torch.testing.assert_close(whole[:, 1:, 2:3, 3:4], pixel, rtol=1e-13, atol=1e-13)


def test_the_condition_reaches_every_call():
    class Conditioned(Bumpy):
        def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return condition.inputs["level"][:, None] * torch.ones_like(x)

    problem, level = (
        Conditioned(EDM(1.0, 3.0), Form.NOISE),
        torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64),
    )
    plan = Discretization.plain(grids.uniform(problem.schedule, 4))
    end = solve(problem, seeded(3, 2, seed=7), plan, IPNDM(2), Condition({"level": level}))
    torch.testing.assert_close(
        end, seeded(3, 2, seed=7) - 2 * level[:, None], rtol=1e-13, atol=1e-13
    )


@each_solver
def test_gradients_in_the_whole_plan_are_those_of_finite_differences(solver):
    problem = PROBLEMS["flow"]
    plan, x = plan_for(problem, 1, 3, solver.memory), seeded(2, 2, seed=7)
    inputs = [v.clone().requires_grad_() for v in (plan.tau, plan.dtau, plan.gamma, plan.weights)]

    def end(*parts: Tensor) -> Tensor:
        return solve(problem, x, Discretization(*parts), solver)

    assert torch.autograd.gradcheck(end, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)
    tau, dtau, gamma, weights = torch.autograd.grad(end(*inputs).square().sum(), inputs)
    assert all(bool((g != 0).all()) for g in (tau, dtau, gamma))
    assert bool((weights[:, :, 0] != 0).any())


@each_solver
def test_gradients_reach_the_start_through_every_solver_on_its_own_row_only(solver):
    problem = PROBLEMS["edm"]
    plan, x = plan_for(problem, 3, 3, solver.memory), seeded(3, 2, seed=7).requires_grad_()
    (gradient,) = torch.autograd.grad(solve(problem, x, plan, solver)[1].sum(), x)
    assert bool((gradient[1] != 0).all())
    assert bool((gradient[[0, 2]] == 0).all())


@each_solver
def test_checkpointing_changes_neither_values_nor_gradients(solver):
    problem = PROBLEMS["flow"]
    plan, x = plan_for(problem, 2, 3, solver.memory), seeded(2, 2, seed=7)
    results = []
    for checkpoint in (False, True):
        inputs = [
            v.clone().requires_grad_() for v in (plan.tau, plan.dtau, plan.gamma, plan.weights)
        ]
        end = solve(problem, x, Discretization(*inputs), solver, recompute=checkpoint)
        results.append((end, *torch.autograd.grad(end.square().sum(), inputs)))
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_checkpointing_recomputes_each_call_once_in_the_backward_pass():
    problem, x = Counted(PROBLEMS["flow"]), seeded(2, 2, seed=7).requires_grad_()
    end = solve(problem, x, plan_for(problem, 2, 3, 1), Euler(), recompute=True)
    assert problem.calls == 3
    end.sum().backward()
    assert problem.calls == 6


@pytest.mark.parametrize(
    "schedule", [EDM(), LinearVP(), RectifiedFlow(), RectifiedFlow(0.02, 0.95)], ids=repr
)
def test_the_analytic_answer_means_the_same_in_every_form(schedule):
    tau = torch.tensor([schedule.t_max, (schedule.t_min + schedule.t_max) / 2], dtype=torch.float64)
    x = seeded(2, 3, seed=7)
    alpha, sigma = schedule.alpha(tau)[:, None], schedule.sigma(tau)[:, None]
    expected = x / (alpha**2 + sigma**2).sqrt()
    for native in FORMS:
        answer = analytic_answer(schedule, native, x, tau)
        assert bool(answer.isfinite().all())
        noise = convert(answer, native, Form.NOISE, x=x, schedule=schedule, t=tau)
        torch.testing.assert_close(noise, expected, rtol=1e-12, atol=1e-12)


def test_the_analytic_answer_is_close_to_a_network_that_knows_unit_variance_data():
    problem = Gaussian(EDM(), Form.NOISE, mean=(0.0, 0.0), variance=(1.0, 1.0))
    x, tau = problem.start(4), torch.tensor([80.0], dtype=torch.float64)
    exact = problem(x, tau, UNCONDITIONAL)
    torch.testing.assert_close(
        analytic_answer(problem.schedule, problem.native, x, tau), exact, rtol=1e-4, atol=0
    )


def test_an_analytic_first_step_ignores_the_first_shift_but_not_the_first_scale():
    problem, x = PROBLEMS["flow"], seeded(2, 2, seed=7)
    plan = plan_for(problem, 2, 3, 1)
    unshifted = plan.dtau.clone()
    unshifted[:, 0] = 0
    end = solve(problem, x, plan, Euler(), analytic_first=True)
    same = Discretization(plan.tau, unshifted, plan.gamma, plan.weights)
    assert torch.equal(solve(problem, x, same, Euler(), analytic_first=True), end)
    unscaled = plan.gamma.clone()
    unscaled[:, 0] = 1
    other = Discretization(plan.tau, plan.dtau, unscaled, plan.weights)
    assert float((solve(problem, x, other, Euler(), analytic_first=True) - end).abs().max()) > 1e-3


@each_solver
def test_the_trajectory_visits_every_node_and_ends_where_solve_does(solver):
    problem, x = PROBLEMS["flow"], seeded(3, 2, seed=7)
    plan = plan_for(problem, 3, 4, solver.memory)
    states = list(trajectory(problem, x, plan, solver))
    assert [state.node for state in states] == [1, 2, 3, 4]
    for state in states:
        assert torch.equal(state.tau, plan.tau[:, state.node])
    assert torch.equal(states[-1].x, solve(problem, x, plan, solver))


@pytest.mark.parametrize(
    "solver", [s for s in SOLVERS if not getattr(s, "lower_order_final", False)], ids=repr
)
def test_a_trajectory_cut_short_is_the_run_on_the_first_nodes(solver):
    # Coefficients depend on the nodes so far only, so a closed-loop policy may leave the rest open.
    # A lower-order finish is different: it counts steps from the end.
    problem, x = PROBLEMS["edm"], seeded(2, 2, seed=7)
    tau = grids.polynomial(problem.schedule, 6)
    third = list(trajectory(problem, x, Discretization.plain(tau), solver))[2].x
    short = list(trajectory(problem, x, Discretization.plain(tau[:, :4]), solver))[2].x
    torch.testing.assert_close(third, short, rtol=1e-13, atol=1e-13)


@each_solver
@pytest.mark.parametrize("native", Form)
def test_a_noise_prediction_at_pure_noise_is_refused_and_not_nan(solver, native):
    """A flow that begins at t = 1 has no noise prediction there; one of data suits solvers that
    keep data."""
    schedule = RectifiedFlow(0.02, 1.0)
    problem, x = Bumpy(schedule, native), seeded(2, 2, seed=1)
    plan = Discretization.plain(grids.uniform(schedule, 3))
    if Form.NOISE in (native, solver.form(native, schedule)):
        ways = {
            Form.NOISE: "a smaller t_max",
            Form.DATA: "dpmpp or unipc",
            Form.VELOCITY: "adams_bashforth",
        }
        with pytest.raises(ValueError, match=f"t_max = 1 is pure noise, .*{ways[native]}") as error:
            solve(problem, x, plan, solver)
        sentence(error)
    else:
        assert bool(solve(problem, x, plan, solver).isfinite().all())


@each_solver
@pytest.mark.parametrize("native", Form)
def test_a_run_to_pure_data_is_finite_or_says_what_it_would_need(solver, native):
    schedule = RectifiedFlow(0.0, 0.98)
    problem, x = Bumpy(schedule, native), seeded(2, 2, seed=1)
    plan = Discretization.plain(grids.uniform(schedule, 4))
    if isinstance(solver, Heun) and native is Form.DATA:
        with pytest.raises(
            ValueError, match="t_min = 0 is pure data, .* take a larger t_min"
        ) as error:
            solve(problem, x, plan, solver)
        sentence(error)
    else:
        assert bool(solve(problem, x, plan, solver).isfinite().all())

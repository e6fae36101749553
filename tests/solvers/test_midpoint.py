"""Midpoint steps on the one loop, against the formulas of the papers written out for each kind of
schedule."""

import math
from itertools import pairwise

import pytest
import torch

from indis import (
    EDM,
    UNCONDITIONAL,
    Counted,
    Discretization,
    Form,
    LinearVP,
    Midpoint,
    RectifiedFlow,
    Sampler,
    grids,
    solve,
    solvers,
)
from indis.policies import Fixed
from problems import Bumpy, Gaussian, seeded

PROBLEMS = {
    "flow": Bumpy(RectifiedFlow(0.02, 0.95), Form.VELOCITY),
    "edm": Bumpy(EDM(0.05, 3.0), Form.NOISE),
    "vp": Bumpy(LinearVP(t_min=0.02), Form.NOISE),
}
SCHEDULES = {
    "edm": EDM(0.05, 10.0),
    "linear_vp": LinearVP(t_min=0.02),
    "flow": RectifiedFlow(0.02, 0.95),
}
each_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
each_solver = pytest.mark.parametrize(
    "solver", [Midpoint(), Midpoint(2), Midpoint(3), Midpoint(2, 3)], ids=repr
)


def nodes(problem, whole: int, r: torch.Tensor) -> torch.Tensor:
    """Starts and midpoints side by side; ``r`` ``(rows, whole, points)`` is in log-SNR."""
    base = grids.log_snr(problem.schedule, whole).expand(len(r), -1)
    level = problem.schedule.log_snr(base)
    inside = problem.schedule.time(level[:, :-1, None] * (1 - r) + level[:, 1:, None] * r)
    columns = torch.cat([base[:, :-1, None], inside], dim=2).flatten(1)
    return torch.cat([columns, base[:, -1:]], dim=1)


def fractions(rows: int, whole: int, points: int, seed: int = 0) -> torch.Tensor:
    """Midpoints anywhere in the step, in no order."""
    return torch.sigmoid(seeded(rows, whole, points, seed=seed))


def plan_for(problem, rows: int, whole: int, solver: Midpoint, seed: int = 0) -> Discretization:
    tau = nodes(problem, whole, fractions(rows, whole, solver.points, seed))
    shape = rows, tau.shape[1] - 1
    dtau = 0.1 * tau[:, :-1] * torch.tanh(seeded(*shape, seed=seed + 1))
    gamma = 1 + 0.1 * seeded(*shape, seed=seed + 2)
    return Discretization(tau, dtau, gamma, 0.05 * seeded(*shape, solver.memory, seed=seed + 3))


def starts_and_midpoints(plan: Discretization, points: int, step: int):
    """(start, midpoints, stop) of a step, each with the axis of the sample."""
    first = step * (points + 1)
    columns = [plan.tau[:, first + j, None] for j in range(points + 2)]
    return columns[0], columns[1:-1], columns[-1]


def move(problem, x, start, stop, answer):
    """The published first-order step: VE and flow in time, DPM-Solver-1 where alpha + sigma is not
    1."""
    schedule = problem.schedule
    if not isinstance(schedule, LinearVP):
        return x + (stop - start) * answer
    h = schedule.log_snr(stop) - schedule.log_snr(start)
    return (
        schedule.alpha(stop) / schedule.alpha(start) * x
        - schedule.sigma(stop) * torch.expm1(h) * answer
    )


@pytest.mark.parametrize("points", [1, 2, 3])
@each_problem
def test_a_step_goes_along_the_mean_of_its_midpoints(problem, points):
    plan, x = plan_for(problem, 3, 3, Midpoint(points)), seeded(3, 2, seed=7)
    plain, expected = Discretization.plain(plan.tau), x
    for step in range(3):
        start, inside, stop = starts_and_midpoints(plan, points, step)
        first = problem(expected, start[:, 0], UNCONDITIONAL)
        heard = [
            problem(move(problem, expected, start, m, first), m[:, 0], UNCONDITIONAL)
            for m in inside
        ]
        expected = move(problem, expected, start, stop, sum(heard) / points)
    torch.testing.assert_close(
        solve(problem, x, plain, Midpoint(points)), expected, rtol=1e-12, atol=1e-12
    )


def test_halfway_in_log_snr_it_is_dpm_solver_2_of_a_data_prediction():
    """Lu et al., 2022a, Algorithm 1, r = 1/2, on noise computed from the data prediction."""
    schedule = LinearVP(t_min=0.02)
    problem = Bumpy(schedule, Form.DATA)
    plan, x = (
        Discretization.plain(nodes(problem, 4, torch.full((1, 4, 1), 0.5))),
        seeded(3, 2, seed=7),
    )

    def noise(x, t):
        return (x - schedule.alpha(t) * problem(x, t.expand(3), UNCONDITIONAL)) / schedule.sigma(t)

    expected = x
    for t, s in pairwise(grids.log_snr(schedule, 4)[0]):
        h = schedule.log_snr(s) - schedule.log_snr(t)
        m = schedule.time((schedule.log_snr(s) + schedule.log_snr(t)) / 2)
        u = schedule.alpha(m) / schedule.alpha(t) * expected - schedule.sigma(m) * torch.expm1(
            h / 2
        ) * noise(expected, t)
        expected = schedule.alpha(s) / schedule.alpha(t) * expected - schedule.sigma(
            s
        ) * torch.expm1(h) * noise(u, m)
    torch.testing.assert_close(
        solve(problem, x, plan, Midpoint()), expected, rtol=1e-11, atol=1e-11
    )


def test_shifts_scales_and_corrected_weights_of_two_midpoints_by_hand():
    """In sigma = t: slopes asked at tau + dtau times gamma; corrections in units of the whole step,
    newest first."""
    problem, solver = PROBLEMS["edm"], Midpoint(2)
    plan, x = plan_for(problem, 3, 2, solver), seeded(3, 2, seed=7)
    no_corrections = plan.weights.clone()
    no_corrections[:, [0, 1, 3, 4]] = 0  # at the last sub-step of each step alone
    no_corrections[:, :, 2] = 0  # and for midpoints alone
    plan = Discretization(plan.tau, plan.dtau, plan.gamma, no_corrections)

    def heard(x, k):
        return plan.gamma[:, k, None] * problem(x, plan.tau[:, k] + plan.dtau[:, k], UNCONDITIONAL)

    expected = x
    for step in range(2):
        k = 3 * step
        start, (a, b), stop = starts_and_midpoints(plan, 2, step)
        first = heard(expected, k)
        at_a, at_b = (
            heard(expected + (a - start) * first, k + 1),
            heard(expected + (b - start) * first, k + 2),
        )
        newest, older = plan.weights[:, k + 2, 0, None], plan.weights[:, k + 2, 1, None]
        expected = expected + (stop - start) * ((0.5 + newest) * at_b + (0.5 + older) * at_a)
    torch.testing.assert_close(solve(problem, x, plan, solver), expected, rtol=1e-12, atol=1e-12)


ADAMS = {
    1: [1],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("points", [1, 2])
@each_problem
def test_a_history_predicts_midpoints_from_the_starts_of_steps(problem, points, order):
    """EPD-Plugin on iPNDM: x_k = x + (t_k - t) AB(d, earlier d); midpoints do not enter the
    history."""
    solver = Midpoint(points, order)
    plan, x = plan_for(problem, 3, 5, solver), seeded(3, 2, seed=7)
    expected, history = x, []
    for step in range(5):
        start, inside, stop = starts_and_midpoints(plan, points, step)
        history.insert(0, problem(expected, start[:, 0], UNCONDITIONAL))
        weights = ADAMS[min(order, step + 1)]
        along = sum(w * d for w, d in zip(weights, history, strict=False))
        heard = [
            problem(move(problem, expected, start, m, along), m[:, 0], UNCONDITIONAL)
            for m in inside
        ]
        expected = move(problem, expected, start, stop, sum(heard) / points)
    found = solve(problem, x, Discretization.plain(plan.tau), solver)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("native", list(Form))
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("r", [[0.5], [0.25, 0.75]], ids=str)
def test_midpoints_in_the_middle_are_of_second_order(r, name, native):
    problem = Gaussian(SCHEDULES[name], native)
    solver, x = Midpoint(len(r)), problem.start(3)

    def error(whole: int) -> float:
        tau = nodes(problem, whole, torch.tensor(r, dtype=torch.float64).expand(1, whole, len(r)))
        end = solve(problem, x, Discretization.plain(tau), solver)
        return float((end - problem.exact(x, tau[0, 0], tau[0, -1])).abs().max())

    assert 1.9 < math.log2(error(32) / error(64)) < 2.15


def test_a_midpoint_elsewhere_is_of_first_order():
    problem = Gaussian(SCHEDULES["edm"], Form.NOISE)
    x = problem.start(3)

    def error(whole: int) -> float:
        tau = nodes(problem, whole, torch.full((1, whole, 1), 0.3))
        return float(
            (
                solve(problem, x, Discretization.plain(tau), Midpoint())
                - problem.exact(x, *tau[0, [0, -1]])
            )
            .abs()
            .max()
        )

    assert 0.9 < math.log2(error(64) / error(128)) < 1.1


@each_problem
@each_solver
def test_every_row_is_solved_as_if_it_were_alone(solver, problem):
    plan, x = plan_for(problem, 4, 3, solver), seeded(4, 2, seed=7)
    together = solve(problem, x, plan, solver)
    alone = torch.cat([solve(problem, x[i : i + 1], plan[i : i + 1], solver) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert float((solve(problem, x, plan[:1], solver) - together)[1:].abs().max()) > 1e-4


@each_solver
def test_the_order_in_which_a_step_asks_its_midpoints_does_not_matter(solver):
    problem, x = PROBLEMS["edm"], seeded(2, 2, seed=7)
    r = fractions(2, 3, solver.points)
    ends = [
        solve(problem, x, Discretization.plain(nodes(problem, 3, f)), solver)
        for f in (r, r.flip(2))
    ]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


@each_solver
def test_gradients_in_the_whole_plan_are_those_of_finite_differences(solver):
    problem = PROBLEMS["flow"]
    plan, x = plan_for(problem, 1, 2, solver), seeded(2, 2, seed=7)
    r = fractions(1, 2, solver.points).requires_grad_()
    inputs = [v.clone().requires_grad_() for v in (plan.dtau, plan.gamma, plan.weights)]

    def end(r, *parts):
        return solve(problem, x, Discretization(nodes(problem, 2, r), *parts), solver)

    assert torch.autograd.gradcheck(end, [r, *inputs], eps=1e-6, atol=1e-6, rtol=1e-5)
    (gradient,) = torch.autograd.grad(end(r, *inputs).square().sum(), r)
    assert bool((gradient != 0).all())


@each_solver
def test_calls_and_calls_one_after_another_are_counted(solver):
    problem, x = PROBLEMS["edm"], seeded(3, 2, seed=7)
    counter = Counted(problem)
    solve(counter, x, plan_for(problem, 3, 4, solver), solver)
    sub_steps = 4 * (solver.points + 1)
    assert counter.calls == solver.nfe(sub_steps) == sub_steps
    assert solver.depth(sub_steps) == 8  # a node and then all its midpoints at once
    plain = Fixed(nodes(problem, 4, fractions(1, 4, solver.points)))
    assert Sampler(plain, solver, analytic_first=True).depth == 7
    assert Sampler(plain, solver, analytic_first=True).nfe == sub_steps - 1


def test_other_solvers_are_as_deep_as_they_count():
    tau = grids.polynomial(EDM(), 4)
    for name, count in (("euler", 4), ("heun", 8), ("unipc", 4)):
        sampler = Sampler(Fixed(tau), solvers.named(name), analytic_first=True)
        assert sampler.depth == sampler.nfe == count - 1


def test_single_precision_stays_close_to_double_precision():
    problem, solver, x = PROBLEMS["vp"], Midpoint(2, 2), seeded(3, 2, seed=7)
    plan = plan_for(problem, 3, 4, solver)
    single = solve(problem, x.float(), plan, solver)
    assert single.dtype == torch.float32
    torch.testing.assert_close(
        single.double(), solve(problem, x, plan, solver), rtol=2e-5, atol=2e-5
    )


def test_names_mean_midpoint_rules():
    assert solvers.named("midpoint") == Midpoint(1, 1)
    assert solvers.named("midpoint:2:4") == Midpoint(2, 4)
    assert Midpoint(2, 4).memory == 12


@pytest.mark.parametrize(
    ("spec", "message"),
    [("midpoint:0", "points must be at least 1"), ("midpoint:1:5", "order must be 1, 2, 3 or 4")],
)
def test_midpoint_rules_that_do_not_exist_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        solvers.named(spec)


def test_part_of_a_step_is_refused():
    plan = Discretization.plain(grids.polynomial(PROBLEMS["edm"].schedule, 5))
    with pytest.raises(ValueError, match="steps must be a multiple of 2"):
        solve(PROBLEMS["edm"], seeded(1, 2), plan, Midpoint())

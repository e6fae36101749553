"""EPD-Solver and EPD-Plugin: the published steps, the table behind them, and its bad inputs."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from indis import (
    UNCONDITIONAL,
    Counted,
    Discretization,
    Fixed,
    Form,
    Midpoint,
    RectifiedFlow,
    grids,
    prior,
    solve,
)
from indis.methods import EPD, METHODS, EPDPlugin
from indis.methods.midpoint_table import MidpointBounds, MidpointTable
from methods.published import SCHEDULE, adams, fill, first_slope, problem, slope
from problems import Gaussian, seeded
from small_cases import sentence

NOISE = seeded(4, 3, seed=9)


def learned(config, native=Form.NOISE, seed=3):
    sampler = config.untrained(problem(native))
    fill(sampler.policy, seed)
    return sampler


def table(policy, squash, margin=1e-3):
    """r, s_dir, s_time, w from a table whose r starts at the middles of K parts; the paper's margin
    is 0."""
    free, points = {k: v.detach().double() for k, v in policy.free.items()}, policy.points
    middles = (2 * torch.arange(points, dtype=torch.float64) + 1) / (2 * points)
    begin = torch.logit((middles - margin) / (1 - 2 * margin))
    r = margin + (1 - 2 * margin) * torch.sigmoid(begin + free["r"])
    s_dir, s_time = (
        1 + getattr(policy.bounds, n) * torch.tanh(free[n] / squash) for n in ("s_dir", "s_time")
    )
    w = torch.softmax(free["w"], dim=1) if points > 1 else torch.ones_like(r)
    return r, s_dir, s_time, w


def published(x, base, numbers, *, analytic, order=1):
    """Every midpoint predicted from the start, the step taken along their weighted sum."""
    r, s_dir, s_time, w = numbers
    history = []
    for n, (t, s) in enumerate(pairwise(base)):
        history.insert(0, first_slope(x, t, analytic and n == 0))
        total = torch.zeros_like(x)
        for k in range(r.shape[1]):
            m = s ** r[n, k] * t ** (1 - r[n, k])
            inside = x + (m - t) * adams(history, order)
            total = total + w[n, k] * s_dir[n, k] * slope(inside, m, asked=s_time[n, k] * m)
        x = x + (s - t) * total
    return x


def test_one_untrained_midpoint_is_dpm_solver_2():
    sampler = EPD(solver="midpoint", steps=4, analytic_first=False).untrained(problem())
    x = prior(SCHEDULE, NOISE)
    for t, s in pairwise(grids.vp_time(SCHEDULE, 4)[0]):
        m = (t * s).sqrt()
        x = x + (s - t) * slope(x + (m - t) * slope(x, t), m)
    torch.testing.assert_close(sampler(problem(), NOISE).detach(), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("points", [2, 3])
def test_an_untrained_table_is_the_composite_midpoint_rule(points):
    sampler = EPD(solver=f"midpoint:{points}", steps=3).untrained(problem())
    plan = sampler.policy(NOISE).check(SCHEDULE).detach()
    base = grids.vp_time(SCHEDULE, 3)
    level = SCHEDULE.log_snr(base)
    fraction = torch.tensor(
        [0, *((2 * k + 1) / (2 * points) for k in range(points))], dtype=torch.float64
    )
    expected = torch.lerp(level[0, :-1, None], level[0, 1:, None], fraction).flatten()
    torch.testing.assert_close(SCHEDULE.log_snr(plan.tau[0, :-1]), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(plan.dtau, torch.zeros_like(plan.dtau))
    assert torch.equal(plan.gamma, torch.ones_like(plan.gamma))
    torch.testing.assert_close(plan.weights, torch.zeros_like(plan.weights), rtol=0, atol=1e-15)


@pytest.mark.parametrize("native", [Form.NOISE, Form.DATA])
@pytest.mark.parametrize("analytic", [False, True])
@pytest.mark.parametrize("points", [1, 2, 3])
def test_a_learned_table_takes_the_published_step(points, analytic, native):
    config = EPD(
        solver=f"midpoint:{points}", steps=3, analytic_first=analytic, s_dir=0.1, s_time=0.3
    )
    sampler = learned(config, native)
    base, x, numbers = (
        grids.vp_time(SCHEDULE, 3)[0],
        prior(SCHEDULE, NOISE),
        table(sampler.policy, 4),
    )
    expected = published(x, base, numbers, analytic=analytic)
    torch.testing.assert_close(
        sampler(problem(native), NOISE).detach(), expected, rtol=1e-11, atol=1e-11
    )
    for which in range(3 + (points > 1)):  # and every column of the table matters
        neutral = [v * 0 + v.mean() if i == which else v for i, v in enumerate(numbers)]
        assert float((published(x, base, neutral, analytic=analytic) - expected).abs().max()) > 1e-3


def test_the_margin_of_r_is_all_that_differs_from_the_papers_sigmoid():
    sampler = learned(EPD(steps=3))
    ours, theirs = table(sampler.policy, 4), table(sampler.policy, 4, margin=0)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-3)
    assert not torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_plugin_predicts_its_midpoints_from_the_history_of_the_nodes(order):
    sampler = learned(EPDPlugin(solver=f"midpoint:2:{order}", steps=5))
    numbers = table(sampler.policy, 4)
    base, x = grids.polynomial(SCHEDULE, 5)[0], prior(SCHEDULE, NOISE)
    expected = published(x, base, numbers, analytic=True, order=order)
    torch.testing.assert_close(sampler(problem(), NOISE).detach(), expected, rtol=1e-11, atol=1e-11)
    if order > 1:
        assert float((published(x, base, numbers, analytic=True) - expected).abs().max()) > 1e-3


def test_a_flow_keeps_the_data_prediction_of_the_shifted_question_too():
    flow = Gaussian(RectifiedFlow(0.02, 0.95), Form.VELOCITY)
    sampler = EPD(
        solver="midpoint", steps=2, grid="uniform", analytic_first=False, s_time=0.3
    ).untrained(flow)
    fill(sampler.policy)
    r, s_dir, s_time, _ = table(sampler.policy, 4)
    x, schedule = prior(flow.schedule, NOISE), flow.schedule
    for n, (t, s) in enumerate(pairwise(grids.uniform(schedule, 2)[0])):
        m = t + r[n] * (s - t)
        asked = 1 / (1 + (1 - m) / m / s_time[n])  # sigma / alpha is s_time times that of m
        inside = x + (m - t) * flow(x, t.expand(4), UNCONDITIONAL)
        expected = inside - asked * flow(
            inside, asked.expand(4), UNCONDITIONAL
        )  # the data prediction
        x = x + (s - t) * s_dir[n] * (inside - expected) / m
    torch.testing.assert_close(sampler(flow, NOISE).detach(), x, rtol=1e-11, atol=1e-11)


def test_a_step_costs_two_evaluations_one_after_another_and_k_plus_one_calls():
    for nfe in (3, 5, 7):
        steps = EPD.steps_for(nfe, analytic_first=True)
        sampler, counter = EPD(steps=steps).untrained(problem()), Counted(problem())
        sampler(counter, NOISE)
        assert sampler.depth == nfe
        assert sampler.nfe == counter.calls == 3 * steps - 1
    assert EPD.steps_for(6) == 3


@pytest.mark.parametrize(("nfe", "analytic"), [(4, True), (5, False), (0, False), (-1, True)])
def test_numbers_of_evaluations_that_no_whole_step_gives_are_refused(nfe, analytic):
    with pytest.raises(ValueError, match="nfe must be") as error:
        EPD.steps_for(nfe, analytic_first=analytic)
    sentence(error)


def test_a_table_freezes_to_its_columns_with_the_same_bits():
    sampler = learned(EPD(steps=3))
    frozen = sampler.policy.frozen()
    assert isinstance(frozen, Fixed)
    assert torch.equal(replace(sampler, policy=frozen)(problem(), NOISE), sampler(problem(), NOISE))


def test_a_table_comes_back_from_its_description():
    policy = learned(EPD(steps=3)).policy
    back = MidpointTable.rebuild(policy.describe(), policy.state_dict())
    for name, column in policy(NOISE).columns().items():
        assert torch.equal(getattr(back(NOISE), name), column)


def test_midpoints_that_pass_each_other_are_the_same_plan():
    sampler = learned(EPD(steps=3))
    before = sampler.policy(NOISE).check(SCHEDULE)
    with torch.no_grad():
        for name, parameter in sampler.policy.free.items():
            # Where a logit starts depends on its column, so r moves by the difference of the two.
            shift = 2 * torch.atanh(torch.tensor([-0.25, 0.25]) / 0.499) if name == "r" else 0
            parameter.copy_((parameter + shift).flip(1) - shift)
    after = sampler.policy(NOISE).check(SCHEDULE)
    for name, column in before.columns().items():
        torch.testing.assert_close(getattr(after, name), column, rtol=1e-5, atol=1e-6)


def test_midpoints_stay_inside_their_step_for_any_table():
    policy = EPD(steps=3).untrained(problem()).policy
    with torch.no_grad():
        policy.free["r"].copy_(1e3 * seeded(3, 2, seed=1))
        policy.free["s_time"].copy_(-1e3 * seeded(3, 2, seed=2).abs())
    plan = policy(NOISE)
    inside = plan.tau.detach()[0, :-1].reshape(3, 3)
    assert bool((inside[:, 1:] < inside[:, :1]).all()) and bool(
        (inside[:, 1:] > plan.tau[0, 3::3, None]).all()
    )
    asked = (plan.tau[:, :-1] + plan.dtau)[0].reshape(3, 3)[:, 1:]
    torch.testing.assert_close(asked.detach(), 0.95 * inside[:, 1:], rtol=1e-12, atol=0)


def test_a_bound_of_zero_removes_a_freedom():
    assert set(EPD(s_dir=0, s_time=0).untrained(problem()).policy.free) == {"r", "w"}
    assert set(EPD(s_dir=0, solver="midpoint").untrained(problem()).policy.free) == {"r", "s_time"}
    assert EPD(steps=3).untrained(problem()).policy.parameter_count() == 4 * 3 * 2


def test_gradients_reach_every_number_of_the_table():
    sampler = learned(EPDPlugin(steps=3))
    sampler(problem(), NOISE).square().sum().backward()
    for name, parameter in sampler.policy.free.items():
        assert bool((parameter.grad != 0).all()), name


def test_the_domain_of_r_is_the_schedules_unless_it_is_given():
    flow = Gaussian(RectifiedFlow(0.02, 0.95), Form.VELOCITY)
    for domain, middle in ((None, 0.485), ("log_snr", 0.384)):
        plan = (
            EPD(solver="midpoint", steps=1, grid="uniform", domain=domain)
            .untrained(flow)
            .policy(NOISE)
        )
        assert plan.tau[0, 1].item() == pytest.approx(middle, abs=1e-3)


def test_names_mean_the_two_methods():
    assert METHODS["epd"]() == EPD(solver="midpoint:2", s_time=0.05)
    assert METHODS["epd-plugin"]().solver == "midpoint:2:4"
    sampler = METHODS["epd-plugin"](steps=4).untrained(problem())
    assert sampler.solver == Midpoint(2, 4)
    assert isinstance(sampler.policy(NOISE), Discretization)


def test_a_plain_run_of_the_solver_is_not_the_plugin():
    base, x = grids.polynomial(SCHEDULE, 3), prior(SCHEDULE, NOISE)
    sampler = EPDPlugin(steps=3, analytic_first=False).untrained(problem())
    plain = solve(problem(), x, Discretization.plain(sampler.policy(NOISE).tau), Midpoint(2))
    assert float((sampler(problem(), NOISE) - plain).detach().abs().max()) > 1e-3
    assert torch.equal(sampler.policy.base, base)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"solver": "euler"}, "solver must be midpoint"),
        ({"s_dir": 1.0}, r"s_dir must be in \[0, 1\)"),
        ({"s_time": -0.1}, r"s_time must be in \[0, 1\)"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_bad_configs_are_refused_in_one_sentence(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        EPD(**fields)
    sentence(error)


def test_a_base_grid_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="base must be a shared grid"):
        MidpointTable(torch.ones(2, 3), SCHEDULE, MidpointBounds())
    with pytest.raises(ValueError, match="squash must be positive"):
        MidpointBounds(squash=0)

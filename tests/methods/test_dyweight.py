"""DyWeight: the published recursion, written out by hand, is what the plan makes of the one
loop."""

import math

import pytest
import torch

from indis import (
    EDM,
    UNCONDITIONAL,
    Counted,
    Discretization,
    Fixed,
    Form,
    LinearVP,
    Recipe,
    RectifiedFlow,
    Sampler,
    grids,
    prior,
    solve,
    solvers,
)
from indis.losses import squared_distance
from indis.methods import DyWeight
from indis.methods.dyweight import ipndm_rows
from problems import Bumpy, Gaussian, GoldenMixture, seeded
from small_cases import sentence, toy, toy_pairs

GOLDEN = GoldenMixture()
STEPS = 5
ORDERS = pytest.mark.parametrize("order", [1, 2, 3, 4])
PROBLEMS = {
    "edm, noise": (GOLDEN, "polynomial:7"),
    "edm, data": (Gaussian(EDM(), Form.DATA), "polynomial:7"),
    "flow, velocity": (Bumpy(RectifiedFlow(0.02, 0.95)), "uniform"),
    "whole flow, velocity": (Bumpy(RectifiedFlow()), "flow_shift"),
    "vp, noise": (Gaussian(LinearVP(), Form.NOISE), "uniform"),
}


def policy_for(problem, grid, order=3, **fields):
    return (
        DyWeight(STEPS, f"ipndm:{order}", grid, **{"analytic_first": False} | fields)
        .untrained(problem)
        .policy
    )


def scattered(policy, seed=0, size=0.1):
    """Any weights and scales, which may drive the clock anywhere."""
    with torch.no_grad():
        policy.weights.add_(size * seeded(*policy.weights.shape, seed=seed))
        policy.scales.add_(size * seeded(*policy.scales.shape, seed=seed + 100))
    return policy


def spread(policy, seed=0):
    """Random weights and scales with row sums of the published sizes: above one at first, below one
    later."""
    scattered(policy, seed)
    sums = 0.75 + 0.25 * torch.rand(
        policy.steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    sums[0] += 0.1
    with torch.no_grad():
        policy.scales[0].clamp_(max=0.98)  # a question from before a flow's beginning would be cut
        policy.weights.tril_()
        policy.weights[:, 0] += sums - policy.weights.sum(1)
    return policy


def recursion(x, grid, weights, scales, slope, tracking=True, analytic_first=False):
    """The published rule. ``slope(x, clock, told)`` is that of the ODE; returns the end and the
    effective times."""
    reached, slopes, times = grid[0], [], [grid[0]]
    for k in range(len(grid) - 1):
        first = analytic_first and k == 0
        told = abs(scales[k] * reached)
        slopes.append(x / math.sqrt(1 + reached**2) if first else slope(x, reached, told))
        row = weights[k][: k + 1]
        x = x + (grid[k + 1] - reached) * sum(
            w * d for w, d in zip(row, reversed(slopes), strict=False)
        )
        total = sum(row) if tracking else 1.0
        reached = reached + total * (grid[k + 1] - reached)
        times.append(reached)
    return x, times


def values(policy):
    scales = policy.scales.tolist()
    return policy.weights.tolist(), [1.0] * (policy.steps - len(scales)) + scales


def slope_of_data(denoiser):
    """EDM: (x - D(x, told)) / clock, from a denoiser that answers noise or data."""

    def slope(x, clock, told):
        told = torch.tensor([told], dtype=torch.float64)
        answer = denoiser(x, told, UNCONDITIONAL)
        data = x - told * answer if denoiser.native is Form.NOISE else answer
        return (x - data) / clock

    return slope


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("denoiser", [GOLDEN, Gaussian(EDM(), Form.DATA)], ids=["noise", "data"])
@ORDERS
def test_it_is_the_published_recursion(denoiser, tracking, seed, order):
    policy = spread(policy_for(denoiser, "polynomial:7", order, tracking=tracking), seed)
    x = 80 * seeded(6, 3, seed=seed)
    end = solve(denoiser, x, policy.shared_plan().detach(), solvers.IPNDM(order))
    grid = grids.polynomial(EDM(), STEPS)[0].tolist()
    expected, _ = recursion(x, grid, *values(policy), slope_of_data(denoiser), tracking)
    torch.testing.assert_close(end, expected, rtol=1e-9, atol=1e-9)
    plain = solve(denoiser, x, Discretization.plain(policy.base), solvers.IPNDM(order))
    assert float((plain - expected).abs().max()) > 0.01


def test_tracking_the_time_is_something_else_than_not_tracking_it():
    ends = []
    for tracking in (True, False):
        policy = spread(policy_for(GOLDEN, "polynomial:7", tracking=tracking))
        ends.append(
            solve(GOLDEN, 80 * seeded(6, 3), policy.shared_plan().detach(), solvers.IPNDM(3))
        )
    assert float((ends[0] - ends[1]).abs().max()) > 0.1


@pytest.mark.parametrize("seed", range(3))
def test_the_analytic_first_step_enters_the_history_unscaled(seed):
    policy = spread(policy_for(GOLDEN, "polynomial:7", analytic_first=True), seed)
    assert policy.scales.shape == (STEPS - 1,)
    x = 80 * seeded(6, 3, seed=seed)
    end = solve(GOLDEN, x, policy.shared_plan().detach(), solvers.IPNDM(3), analytic_first=True)
    grid = grids.polynomial(EDM(), STEPS)[0].tolist()
    expected, _ = recursion(x, grid, *values(policy), slope_of_data(GOLDEN), analytic_first=True)
    torch.testing.assert_close(end, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["flow, velocity", "whole flow, velocity"])
def test_in_a_flow_the_velocity_takes_the_place_of_the_slope(name, seed):
    denoiser, grid = PROBLEMS[name]
    policy = spread(policy_for(denoiser, grid), seed)
    x = seeded(6, 2, seed=seed)
    end = solve(denoiser, x, policy.shared_plan().detach(), solvers.IPNDM(3))
    times = grids.named(grid)(denoiser.schedule, STEPS)[0].tolist()

    def velocity(x, clock, told):
        return denoiser(x, torch.tensor([told], dtype=torch.float64), UNCONDITIONAL)

    expected, _ = recursion(x, times, *values(policy), velocity)
    torch.testing.assert_close(end, expected, rtol=1e-9, atol=1e-9)


def test_in_a_vp_process_the_clock_is_noise_over_signal():
    denoiser, grid = PROBLEMS["vp, noise"]
    schedule, policy = denoiser.schedule, spread(policy_for(denoiser, grid))

    def time(ratio):
        return schedule.time(-torch.tensor([ratio], dtype=torch.float64).log())

    def slope(x, clock, told):
        state = schedule.alpha(time(told)) * x
        return denoiser(state, time(told), UNCONDITIONAL) * told / clock

    tau = policy.base[0]
    ratios = (schedule.sigma(tau) / schedule.alpha(tau)).tolist()
    x = seeded(6, 3)
    expected, times = recursion(x / schedule.alpha(tau[:1]), ratios, *values(policy), slope)
    plan = policy.shared_plan().detach()
    torch.testing.assert_close(
        plan.tau[0, 1:-1], torch.cat([time(t) for t in times[1:-1]]), rtol=1e-9, atol=0
    )
    end = solve(denoiser, x, plan, solvers.IPNDM(3))
    torch.testing.assert_close(
        end, schedule.alpha(plan.tau[:, -1]) * expected, rtol=1e-9, atol=1e-9
    )


def test_no_question_is_asked_from_before_the_beginning():
    denoiser, grid = PROBLEMS["flow, velocity"]
    policy = spread(policy_for(denoiser, grid))
    with torch.no_grad():
        policy.scales[0] = 1.5
    plan = policy.shared_plan().detach()
    assert float(plan.tau[0, 0] + plan.dtau[0, 0]) == pytest.approx((0.95 + 1) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_nodes_are_the_effective_times_also_where_they_do_not_end_at_the_schedules_end(seed):
    policy = spread(policy_for(GOLDEN, "polynomial:7"), seed)
    with torch.no_grad():
        policy.weights[-1, 0] -= (
            policy.weights[-1].sum() - 0.9
        )  # the last row sums to 0.9: the rule stops early
    _, times = recursion(
        torch.zeros(1, 3), policy.base[0].tolist(), *values(policy), lambda x, clock, told: x
    )
    tau = policy.shared_plan().detach().check(EDM()).tau[0]
    torch.testing.assert_close(tau, torch.tensor(times, dtype=torch.float64), rtol=1e-9, atol=0)
    assert float(tau[-1]) > 0.004


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("tracking", [True, False])
@ORDERS
def test_untrained_it_is_ipndm(name, tracking, order):
    denoiser, grid = PROBLEMS[name]
    sampler = DyWeight(
        STEPS, f"ipndm:{order}", grid, analytic_first=False, tracking=tracking
    ).untrained(denoiser)
    plain = Sampler(Fixed(grids.named(grid)(denoiser.schedule, STEPS)), solvers.IPNDM(order))
    noise = seeded(6, *denoiser.shape)
    torch.testing.assert_close(
        sampler(denoiser, noise).detach(), plain(denoiser, noise), rtol=1e-12, atol=1e-12
    )
    plan = sampler.policy.shared_plan().detach()
    assert float(plan.dtau.abs().max()) == 0
    assert float(plan.weights.abs().max()) < 1e-11


def test_the_rows_are_ipndms():
    expected = [
        [1, 0, 0],
        [3 / 2, -1 / 2, 0],
        [23 / 12, -16 / 12, 5 / 12],
        [23 / 12, -16 / 12, 5 / 12],
    ]
    torch.testing.assert_close(
        ipndm_rows(4, 3), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-16
    )


def test_a_last_step_that_overshoots_moves_the_state_though_time_cannot_follow():
    policy = policy_for(GOLDEN, "polynomial:7")
    with torch.no_grad():
        policy.weights[-1] *= 1.2
    x = 80 * seeded(6, 3)
    expected, times = recursion(x, policy.base[0].tolist(), *values(policy), slope_of_data(GOLDEN))
    assert times[-1] < 0
    plan = policy.shared_plan().detach().check(EDM())
    assert float(plan.tau[0, -1]) == pytest.approx(0.002, rel=1e-9)
    torch.testing.assert_close(
        solve(GOLDEN, x, plan, solvers.IPNDM(3)), expected, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("total", [0.0, 1e-9, -0.3])
def test_a_step_whose_weights_sum_to_nothing_still_moves_the_state_by_the_rule(total):
    """Its clock stands still (or would run back), so the loop's unit nearly vanishes and the
    corrections are large."""
    policy = policy_for(GOLDEN, "polynomial:7")
    with torch.no_grad():
        policy.weights[1] = torch.tensor([0.7 + total, -0.7, 0.0])
    x = 80 * seeded(6, 3)
    plan = policy.shared_plan().detach().check(EDM())
    states = list(solvers.trajectory(GOLDEN, x, plan, solvers.IPNDM(3)))
    grid = policy.base[0].tolist()
    expected, _ = recursion(x, grid[:3], *values(policy), slope_of_data(GOLDEN))
    torch.testing.assert_close(states[1].x, expected, rtol=1e-8, atol=1e-8)
    assert float(plan.tau[0, 1] - plan.tau[0, 2]) == pytest.approx(1e-6 * 80, rel=1e-3)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("size", [1.0, 30.0, 1e6])
def test_any_weights_and_scales_give_a_sound_plan_with_finite_gradients(name, size):
    denoiser, grid = PROBLEMS[name]
    for seed in range(8):
        policy = scattered(policy_for(denoiser, grid), seed, size)
        plan = policy.shared_plan().check(denoiser.schedule)
        asked = plan.tau[:, :-1] + plan.dtau
        assert (asked >= denoiser.schedule.t_min / 2 - 1e-12).all()
        sum(column.sum() for column in plan.columns().values()).backward()
        assert policy.weights.grad.isfinite().all() and policy.scales.grad.isfinite().all()


def test_scales_at_and_below_zero_ask_at_a_time_that_exists():
    for denoiser, grid in PROBLEMS.values():
        policy = policy_for(denoiser, grid)
        with torch.no_grad():
            policy.scales.copy_(torch.tensor([1.0, 0.0, -0.0, -1.0, -0.5]))
        plan = policy.shared_plan().detach().check(denoiser.schedule)
        asked = (plan.tau[:, :-1] + plan.dtau)[0]
        assert asked[3] == pytest.approx(plan.tau[0, 3].item(), rel=1e-9)  # |s t|, as published
        torch.testing.assert_close(
            asked[1:3], torch.full((2,), denoiser.schedule.t_min / 2).double()
        )


def test_gradients_are_those_of_finite_differences():
    policy = spread(policy_for(GOLDEN, "polynomial:7"))
    x = 80 * seeded(2, 3)

    def end(weights, scales):
        state = {"weights": weights, "scales": scales}
        plan = torch.func.functional_call(policy, state, (x,))
        return solve(GOLDEN, x, plan, solvers.IPNDM(3)).sum()

    weights = policy.weights.detach().clone().requires_grad_()
    scales = policy.scales.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(end, (weights, scales), eps=1e-6, atol=1e-4, rtol=1e-4)


def test_answers_that_do_not_exist_have_no_weight():
    policy = policy_for(GOLDEN, "polynomial:7")
    expected = policy.shared_plan().detach()
    with torch.no_grad():
        policy.weights[0, 1:] = 5.0
        policy.weights[1, 2:] = 5.0
    found = policy.shared_plan().detach()
    assert torch.equal(found.tau, expected.tau) and torch.equal(found.weights, expected.weights)


def test_it_is_kept_as_a_fixed_plan():
    policy = spread(policy_for(GOLDEN, "polynomial:7"))
    frozen = policy.frozen()
    assert isinstance(frozen, Fixed) and frozen.parameter_count() == 0
    kept, plan = frozen.shared_plan().columns(), policy.shared_plan().columns()
    assert kept.keys() == plan.keys() and all(torch.equal(kept[name], plan[name]) for name in plan)
    assert frozen.shared_plan().keep == policy.shared_plan().keep == "data"
    assert policy.parameter_count() == 3 * STEPS + STEPS


def test_the_analytic_first_step_saves_a_call_in_a_fit_too():
    method = DyWeight(
        4, grid="uniform", recipe=Recipe(iterations=10, batch=32, holdout=32, validate_every=5)
    )
    before = method.tuning(toy(), toy_pairs(), squared_distance).validate()
    process = method.tuning(toy(), toy_pairs(), squared_distance)
    list(process.run())
    assert process.best < before
    counter = Counted(toy())
    process.sampler(counter, prior(toy().schedule, seeded(2, 2, dtype=torch.float32)))
    assert counter.calls == process.sampler.nfe == 3


@pytest.mark.parametrize("solver", ["euler", "unipc:3:bh1", "adams_bashforth:3"])
def test_solvers_with_other_rows_are_refused(solver):
    with pytest.raises(ValueError) as error:
        DyWeight(solver=solver)
    assert sentence(error) == f"solver must be ipndm:1 ... ipndm:4 for DyWeight, got {solver!r}"

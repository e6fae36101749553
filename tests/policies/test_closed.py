"""Closed loops: decisions after evaluations cost no call, stay monotone, and begin as the base
solver."""

import pytest
import torch

from indis import (
    EDM,
    INDIS,
    IPNDM,
    Bounds,
    Counted,
    Discretization,
    Euler,
    Fixed,
    LearnedPolicy,
    RectifiedFlow,
    Sampler,
    grids,
    prior,
    solve,
)
from indis.logits import restart
from learned import closed as closed_loop
from learned import phi, shared
from problems import Bumpy, GoldenMixture, seeded
from small_cases import sentence

PROBLEM, FLOW = GoldenMixture(), Bumpy(RectifiedFlow())
BASE = grids.polynomial(PROBLEM.schedule, 4)
REPLANS = pytest.mark.parametrize("replan", ["first", "every"])
STEPS = 4


def closed(problem, replan, *, seed=None, scale=0.5, floor=1e-4, steps=STEPS):
    """A policy whose last layer is zero, or random under ``seed``."""
    base = grids.named("polynomial" if problem is PROBLEM else "flow_shift")(
        problem.schedule, steps
    )
    bounds = Bounds.natural(problem.schedule, weights=0.2, floor=floor)
    torch.manual_seed(seed or 0)
    network = {"shape": problem.shape, "width": 16, "order": 3}
    network |= {"native": problem.native, "replan": replan}
    policy = closed_loop(base, problem.schedule, bounds, **network)
    if seed is not None:
        torch.nn.init.normal_(policy.logits.head, std=scale)
        torch.nn.init.normal_(policy.logits.table, std=scale)
    return policy


@REPLANS
@pytest.mark.parametrize("problem", [PROBLEM, FLOW], ids=["edm", "flow"])
def test_untrained_it_is_its_base_solver_bit_for_bit(problem, replan):
    noise, policy = seeded(6, *problem.shape, seed=1, dtype=torch.float32), closed(problem, replan)
    plain = Sampler(Fixed(policy.base), IPNDM(3))(problem, noise)
    assert torch.equal(Sampler(policy, IPNDM(3))(problem, noise), plain)


@REPLANS
def test_looking_costs_no_call(replan):
    counter = Counted(PROBLEM)
    Sampler(closed(PROBLEM, replan, seed=1), IPNDM(3))(counter, seeded(5, *PROBLEM.shape))
    assert counter.calls == STEPS


@REPLANS
@pytest.mark.parametrize("problem", [PROBLEM, FLOW], ids=["edm", "flow"])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_times_fall_strictly_and_end_exactly_for_any_logits(problem, replan, scale):
    sampler = Sampler(closed(problem, replan, seed=2, scale=scale), IPNDM(3))
    plan = sampler.realized_plan(problem, seeded(8, *problem.shape, seed=3)).check(problem.schedule)
    assert (plan.tau.diff(dim=1) < 0).all()
    base = sampler.policy.base
    assert torch.equal(plan.tau[:, [0, -1]], base[:, [0, -1]].expand(8, 2))


@REPLANS
def test_what_was_decided_is_what_realised_says(replan):
    """Replaying the record as an open-loop plan ends at the same point."""
    sampler, noise = (
        Sampler(closed(PROBLEM, replan, seed=4), IPNDM(3)),
        seeded(6, *PROBLEM.shape, seed=5),
    )
    plan = sampler.realized_plan(PROBLEM, noise)
    assert isinstance(plan, Discretization) and plan.weights.shape == (6, STEPS, 3)
    replayed = solve(PROBLEM, prior(PROBLEM.schedule, noise), plan, IPNDM(3))
    assert torch.equal(replayed, sampler(PROBLEM, noise))
    assert plan.tau[:, 1].std() > 1e-6 * plan.tau[:, 1].mean()


@REPLANS
def test_a_trajectory_has_every_step_and_ends_at_the_sample(replan):
    noise = seeded(3, *PROBLEM.shape, seed=5)
    for policy in (closed(PROBLEM, replan, seed=4), Fixed(BASE)):
        sampler = Sampler(policy, IPNDM(3))
        states = list(sampler.trajectory(PROBLEM, noise))
        assert [state.node for state in states] == list(range(1, STEPS + 1))
        assert torch.equal(states[-1].x, sampler(PROBLEM, noise))
        taus = torch.stack([state.tau.expand(3) for state in states], dim=1)
        assert torch.equal(taus, sampler.realized_plan(PROBLEM, noise).tau[:, 1:].expand(3, -1))


def test_a_trajectory_is_refused_before_its_first_step():
    with pytest.raises(ValueError, match="noise must be"):
        Sampler(Fixed(BASE), IPNDM(3)).trajectory(PROBLEM, torch.zeros(2, 77))


def test_with_one_look_later_states_do_not_matter():
    """Two paths that agree at the first node get the same plan; with a plan at every node they do
    not."""
    noise = seeded(2, *PROBLEM.shape, seed=6)
    x, answer = noise * 80, PROBLEM(noise * 80, torch.full((2,), 80.0).double(), None)
    for replan, same in (("first", True), ("every", False)):
        plans = [closed(PROBLEM, replan, seed=7)(noise) for _ in range(2)]
        for plan in plans:
            plan.start()
            plan.decide(0, x, answer)
        decisions = [
            plan.decide(1, x * factor, answer)
            for plan, factor in zip(plans, (0.1, 0.2), strict=True)
        ]
        assert torch.equal(decisions[0].gamma, decisions[1].gamma) is same


@REPLANS
def test_a_row_is_alone_what_it_is_in_a_batch(replan):
    sampler, noise = (
        Sampler(closed(PROBLEM, replan, seed=8).double(), IPNDM(3)),
        seeded(5, *PROBLEM.shape, seed=9),
    )
    alone = torch.cat([sampler(PROBLEM, noise[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(sampler(PROBLEM, noise), alone, rtol=1e-6, atol=1e-6)


@REPLANS
def test_gradients_reach_every_parameter_through_the_decisions(replan):
    policy = closed(PROBLEM, replan, seed=10)
    Sampler(policy, IPNDM(3))(PROBLEM, seeded(6, *PROBLEM.shape, seed=11)).square().sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_the_gradient_is_that_of_finite_differences():
    policy = closed(PROBLEM, "every", seed=12, scale=0.2, steps=3).double()
    noise = seeded(2, *PROBLEM.shape, seed=13)
    bias = policy.logits.table
    loss = Sampler(policy, IPNDM(3))(PROBLEM, noise).square().sum()
    (slope,) = torch.autograd.grad(loss, bias)
    slope, bias = slope.flatten(), bias.detach().flatten()  # a view
    step = torch.zeros_like(bias)
    for i in range(0, len(bias), 4):
        step.zero_()[i] = 1e-5
        with torch.no_grad():
            bias += step
            up = Sampler(policy, IPNDM(3))(PROBLEM, noise).square().sum()
            bias -= 2 * step
            down = Sampler(policy, IPNDM(3))(PROBLEM, noise).square().sum()
            bias += step
        torch.testing.assert_close(slope[i], (up - down) / 2e-5, rtol=1e-4, atol=1e-6)


def test_one_look_at_nothing_new_is_the_open_loop():
    """With the network's weights at zero both kinds are the plan of their bias (but for the
    floor)."""
    policy = closed(PROBLEM, "first", seed=14, floor=0.0)
    torch.nn.init.zeros_(policy.logits.head)
    one = shared(policy.base, policy.schedule, policy.bounds, 3)
    one.logits.table.data.copy_(policy.logits.table)
    noise = seeded(4, *PROBLEM.shape, seed=15)
    expected = Sampler(one, IPNDM(3))(PROBLEM, noise)
    for replan in ("first", "every"):
        policy.replan = replan
        often = replan == "every"
        policy.logits.position = torch.nn.Linear(STEPS + 1, 16, bias=False) if often else None
        torch.testing.assert_close(
            Sampler(policy, IPNDM(3))(PROBLEM, noise), expected, rtol=1e-6, atol=1e-6
        )


def test_it_begins_at_a_fitted_global_plan():
    policy = closed(PROBLEM, "every", floor=0.0)
    one = shared(policy.base, policy.schedule, policy.bounds, 3)
    torch.nn.init.normal_(one.logits.table, std=0.3)
    policy.start_at(one)
    noise = seeded(4, *PROBLEM.shape, seed=16)
    expected = Sampler(one, IPNDM(3))(PROBLEM, noise)
    torch.testing.assert_close(
        Sampler(policy, IPNDM(3))(PROBLEM, noise), expected, rtol=1e-6, atol=1e-6
    )


def test_restart_keeps_proportions_and_the_end():
    base, bounds = grids.polynomial(EDM(), 4), Bounds()
    tau = torch.tensor([base[0, 2], 1.0], dtype=torch.float64)
    rest = restart(base, 2, tau, EDM(), bounds)
    assert rest.shape == (2, 3) and torch.equal(rest[0], base[0, 2:])
    assert torch.equal(rest[:, -1], base[:, -1].expand(2))
    share = (rest[1].log()[1] - rest[1].log()[0]) / (rest[1].log()[2] - rest[1].log()[0])
    planned = (base.log()[0, 3] - base.log()[0, 2]) / (base.log()[0, 4] - base.log()[0, 2])
    torch.testing.assert_close(share, planned)


def test_realised_of_an_open_loop_is_its_plan():
    policy = phi(grids.polynomial(EDM(), 3), EDM(), Bounds(), shape=PROBLEM.shape, width=8)
    noise = seeded(3, *PROBLEM.shape)
    plan = Sampler(policy, Euler()).realized_plan(PROBLEM, noise)
    assert torch.equal(plan.tau, policy(noise).tau)


def test_choices_that_do_not_fit_together_are_refused():
    base, bounds = grids.polynomial(EDM(), 4), Bounds()
    for choices, words in (
        ({"reads": "noise"}, "shape must be given to a policy that reads"),
        ({"shape": (3,)}, "shape must be given to a policy that reads"),
        ({"reads": "answers", "shape": (3,)}, "native must be given"),
        ({"reads": "noise", "shape": (3,), "samples": 2}, "samples must be 1"),
        ({"reads": "noise", "shape": (3,), "picture": "both"}, "picture must be left out"),
        ({"reads": "everything"}, "reads must be nothing, noise or answers, got 'everything'"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            LearnedPolicy(base, EDM(), bounds, **choices)
        sentence(error)
    with pytest.raises(ValueError, match="replan must be first or every, got 'often'"):
        INDIS(reads="answers", replan="often")


def test_weights_that_the_solver_does_not_remember_are_refused_before_any_call():
    for policy in (closed(PROBLEM, "every"), closed(PROBLEM, "first")):
        with pytest.raises(ValueError, match="weights must correct at most the 1 answers") as error:
            Sampler(policy, Euler())
        sentence(error)

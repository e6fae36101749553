"""LD3's plan: the published formula of its stamps, and shifts that end at a part of the smallest
gap."""

import math

import pytest
import torch

from indis import EDM, Fixed, RectifiedFlow, grids, solve, solvers
from indis.methods.ld3 import FLOOR, LD3Policy
from problems import GoldenMixture, seeded

GOLDEN = GoldenMixture()
FLOW = RectifiedFlow(0.02, 0.95)
STEPS = 4


def policy_with(stamps, shifts=None, schedule=None, domain="log_snr", win_rate=0.5):
    schedule = schedule or EDM()
    base = (grids.log_snr if domain == "log_snr" else grids.uniform)(schedule, STEPS)
    policy = LD3Policy(base, schedule, domain, win_rate)
    with torch.no_grad():
        policy.stamps.copy_(stamps)
        if shifts is not None:
            policy.shifts.copy_(shifts)
    return policy


@pytest.mark.parametrize(
    ("schedule", "domain", "ends"),
    [
        (EDM(), "log_snr", (-math.log(80.0), -math.log(0.002))),
        (EDM(), "time", (80.0, 0.002)),
        (FLOW, "time", (0.95, 0.02)),
    ],
)
def test_stamps_are_the_cumulated_softmax_of_the_logits(schedule, domain, ends):
    logits = seeded(1, STEPS, seed=2)
    tau = policy_with(logits, schedule=schedule, domain=domain).shared_plan().tau[0].detach()
    share = [math.exp(v) for v in logits[0].tolist()]
    share = [(1 - FLOOR) * v / sum(share) + FLOOR / STEPS for v in share]
    level = [ends[0] + (ends[1] - ends[0]) * sum(share[:k]) for k in range(STEPS + 1)]
    expected = [math.exp(-v) for v in level] if domain == "log_snr" else level
    torch.testing.assert_close(tau, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0)


@pytest.mark.parametrize("dead", [-3.0, 1.0, 5.0])
def test_the_published_formula_with_its_dead_logit_gives_the_same_stamps(dead):
    """There: N + 1 logits, cumulated, then stretched so that the first is 0 and the last is 1."""
    logits = seeded(1, STEPS, seed=3)
    cumulated = torch.softmax(torch.cat([torch.tensor([dead]), logits[0]]), 0).cumsum(0)
    u = (cumulated - cumulated[0]) / (cumulated[-1] - cumulated[0])
    expected = (math.log(80) + u * (math.log(0.002) - math.log(80))).exp()
    torch.testing.assert_close(
        policy_with(logits).shared_plan().tau[0].detach(), expected, rtol=2e-5, atol=0
    )


def test_shifts_move_the_told_time_in_the_domain_and_leave_the_stamps():
    logits, shifts = (
        seeded(1, STEPS, seed=2),
        torch.tensor([[0.02, -0.03, 0.01]], dtype=torch.float64),
    )
    plain, plan = (
        policy_with(logits).shared_plan().detach(),
        policy_with(logits, shifts).shared_plan().detach(),
    )
    assert torch.equal(plan.tau, plain.tau)
    asked = plan.tau[:, :-1] + plan.dtau
    torch.testing.assert_close(
        asked[:, 1:].log(), plan.tau[:, 1:-1].log() - shifts, rtol=1e-12, atol=1e-12
    )
    assert plan.dtau[0, 0] == 0
    assert torch.equal(plan.gamma, torch.ones(1, STEPS, dtype=torch.float64))


@pytest.mark.parametrize("win_rate", [0.0, 0.3, 0.5])
def test_a_shift_ends_at_a_part_of_the_smallest_gap_of_the_stamps(win_rate):
    """Also for equal logits, whose own gaps are zero: the published slip is not imitated."""
    for logits in (torch.zeros(1, STEPS), seeded(1, STEPS, seed=2)):
        shifts = torch.tensor([[9.0, -9.0, 9.0]])
        plan = policy_with(logits, shifts, win_rate=win_rate).shared_plan().detach()
        level = -plan.tau.log()
        most = win_rate * level.diff(dim=1).min()
        moved = -(plan.tau[:, 1:-1] + plan.dtau[:, 1:]).log() - level[:, 1:-1]
        torch.testing.assert_close(moved, most * shifts.sign().double(), rtol=1e-9, atol=1e-12)


def test_a_clamped_shift_has_no_gradient_and_a_free_one_has():
    policy = policy_with(torch.zeros(1, STEPS), torch.tensor([[9.0, 0.1, -9.0]]))
    policy.shared_plan().dtau.sum().backward()
    assert torch.equal(policy.shifts.grad != 0, torch.tensor([[False, True, False]]))


def test_the_limit_of_a_shift_is_no_way_to_move_the_stamps():
    policy = policy_with(seeded(1, STEPS, seed=2), torch.full((1, STEPS - 1), 9.0))
    plan = policy.shared_plan()
    (plan.tau[:, :-1].log() - (plan.tau[:, :-1] + plan.dtau).log()).sum().backward()
    torch.testing.assert_close(
        policy.stamps.grad, torch.zeros(1, STEPS).double(), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("size", [30.0, 1e3, 1e30])
def test_extreme_logits_leave_a_sound_plan(size):
    for seed in range(3):
        policy = policy_with(
            size * seeded(1, STEPS, seed=seed), size * seeded(1, STEPS - 1, seed=9 + seed)
        )
        policy.shared_plan().check(EDM())
        end = solve(GOLDEN, 80 * seeded(2, 3), policy.shared_plan(), solvers.named("unipc:3:bh1"))
        end.sum().backward()
        assert end.isfinite().all() and policy.stamps.grad.isfinite().all()


def test_it_is_kept_as_a_fixed_plan():
    policy = policy_with(seeded(1, STEPS, seed=2), seeded(1, STEPS - 1, seed=3))
    frozen = policy.frozen()
    assert isinstance(frozen, Fixed) and frozen.parameter_count() == 0
    for name in ("tau", "dtau", "gamma"):
        assert torch.equal(getattr(frozen.shared_plan(), name), getattr(policy.shared_plan(), name))
    assert policy.parameter_count() == 2 * STEPS - 1

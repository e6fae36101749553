"""Equations 6-7: whatever the logits, a plan is sound; zero logits are the base grid itself."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indis import (
    EDM,
    Bounds,
    DiscreteVP,
    Discretization,
    LinearVP,
    RectifiedFlow,
    from_logits,
    grids,
)
from indis.noise import zero_time
from problems import seeded

SCHEDULES = {
    "edm": EDM(),
    "rectified_flow": RectifiedFlow(),
    "rectified_flow_inside": RectifiedFlow(0.002, 0.988),
    "linear_vp": LinearVP(),
    "discrete_vp": DiscreteVP(),
}
SHIFTS = ("relative", "gap", "additive")
DOMAINS = ("time", "log_snr")
EVEN = {"edm": "polynomial", "rectified_flow": "flow_shift", "discrete_vp": "vp_time"}


def base_of(name: str, steps: int) -> torch.Tensor:
    return grids.named(EVEN.get(name, "uniform"))(SCHEDULES[name], steps)


@st.composite
def cases(draw):
    """A schedule, a base grid (named or random), bounds, and logits from tame to enormous."""
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    schedule, steps = SCHEDULES[name], draw(st.integers(1, 12))
    seed = draw(st.integers(0, 2**31))
    refused = ("flow_shift", "resolution") if schedule.t_max > 1 else ()
    refused = ("polynomial", "vp_time") if name == "rectified_flow" else refused
    valid = [g for g in grids.GRIDS if g not in refused]
    kind = draw(st.sampled_from([*valid, "random"]))
    if kind == "random":  # gaps in log-SNR that differ by up to a factor of a hundred
        gaps = torch.exp(
            4.6
            * torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        )
        level = schedule.log_snr(
            torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
        )
        inside = schedule.time(level[0] + (level[1] - level[0]) * gaps.cumsum(0)[:-1] / gaps.sum())
        base = grids.listed(schedule, [schedule.t_max, *inside.tolist(), schedule.t_min])
    else:
        base = grids.GRIDS[kind](schedule, steps)
    bounds = Bounds(
        dtau=draw(st.sampled_from([0.0, 0.3, 0.9])),
        gamma=draw(st.sampled_from([0.0, 0.5, 0.99])),
        weights=draw(st.sampled_from([0.0, 0.4])),
        shift=draw(st.sampled_from(SHIFTS)),
        domain=draw(st.sampled_from(DOMAINS)),
    )
    scale = draw(st.sampled_from([0.01, 1.0, 30.0, 1000.0]))
    logits = scale * torch.tanh(seeded(draw(st.integers(1, 5)), 5, steps, seed=seed))
    if draw(st.booleans()):
        logits = scale * logits.sign()
    return schedule, base, bounds, logits.to(draw(st.sampled_from([torch.float32, torch.float64])))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_any_logits_give_a_sound_plan_within_its_bounds(case):
    schedule, base, bounds, logits = case
    to_zero = grids.ends_at_zero(schedule, base)
    plan = from_logits(logits, base, schedule, bounds, to_zero=to_zero).check(schedule)
    assert plan.tau.dtype == plan.dtau.dtype == plan.gamma.dtype == torch.float64
    assert bool((plan.tau[:, 0] == schedule.t_max).all())
    assert bool((plan.tau[:, -1] == (zero_time(schedule) if to_zero else schedule.t_min)).all())
    assert float((plan.gamma - 1).abs().max()) <= bounds.gamma
    assert float(plan.gamma.min()) > 0
    assert plan.weights.shape == (len(logits), plan.steps, 2)
    assert float(plan.weights.abs().max()) <= bounds.weights
    now, following = plan.tau[:, :-1], plan.tau[:, 1:]
    asked = now + plan.dtau
    assert bool((asked >= schedule.t_min / 2 * (1 - 1e-9)).all())
    assert bool((asked <= getattr(schedule, "limit", math.inf)).all())
    if bounds.shift == "gap":
        assert bool((plan.dtau.abs() <= bounds.dtau * (now - following) * (1 + 1e-9)).all())
    elif bounds.shift == "additive":
        assert bool((plan.dtau.abs() <= bounds.dtau * (1 + 1e-9)).all())
    else:
        inside = (now < schedule.t_max) & (asked > schedule.t_min / 2 * (1 + 1e-9))
        moved = (schedule.log_snr(asked) - schedule.log_snr(now))[inside]
        assert bool((moved.abs() <= bounds.dtau + 1e-5).all())


@settings(max_examples=150, deadline=None)
@given(cases())
def test_zero_logits_are_the_base_grid_bit_for_bit(case):
    schedule, base, bounds, logits = case
    to_zero = grids.ends_at_zero(schedule, base)
    plan = from_logits(0 * logits, base, schedule, bounds, to_zero=to_zero)
    assert torch.equal(plan.tau, base.expand(len(logits), -1))
    assert bool((plan.dtau == 0).all())
    assert bool((plan.gamma == 1).all())
    assert bool((plan.weights == 0).all())


@settings(max_examples=150, deadline=None)
@given(cases())
def test_gradients_are_finite_for_any_logits(case):
    schedule, base, bounds, logits = case
    logits, to_zero = logits.requires_grad_(), grids.ends_at_zero(schedule, base)
    plan = from_logits(logits, base, schedule, bounds, to_zero=to_zero)
    total = sum(v.sum() for v in (plan.tau, plan.dtau, plan.gamma, plan.weights))
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient.dtype == logits.dtype
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_an_untouched_row_keeps_its_bits_beside_rows_that_move(name, domain):
    schedule, base = SCHEDULES[name], base_of(name, 6)
    logits = seeded(4, 3, 6, seed=1)
    logits[2] = 0
    plan = from_logits(logits, base, schedule, Bounds(domain=domain))
    assert torch.equal(plan.tau[2], base[0])
    assert float((plan.tau[[0, 1, 3], 1:-1] - base[0, 1:-1]).abs().min()) > 0


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("name", ["edm", "rectified_flow", "linear_vp"])
def test_derivatives_are_those_of_finite_differences_also_at_zero(name, domain, shift):
    schedule, base = SCHEDULES[name], base_of(name, 4)
    bounds = Bounds(dtau=0.2, weights=0.3, domain=domain, shift=shift)

    def parts(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        plan = from_logits(logits, base, schedule, bounds)
        return plan.tau / schedule.t_max, plan.dtau / schedule.t_max, plan.gamma, plan.weights

    for start in (0.1 * seeded(1, 4, 4, seed=2), torch.zeros(1, 4, 4, dtype=torch.float64)):
        logits = start.requires_grad_()
        assert torch.autograd.gradcheck(parts, [logits], eps=1e-6, atol=1e-6, rtol=1e-5)
        for row, part in zip((0, 1, 2, 3), parts(logits), strict=True):
            (gradient,) = torch.autograd.grad(
                part.square().sum() + part.sum(), logits, retain_graph=True
            )
            assert float(gradient[0, row].abs().max()) > 1e-9


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_larger_logit_makes_its_interval_longer_and_all_others_shorter(domain):
    schedule, base = SCHEDULES["edm"], base_of("edm", 5)
    coordinate = schedule.log_snr if domain == "log_snr" else torch.Tensor.neg
    logits = torch.zeros(1, 3, 5, dtype=torch.float64)
    logits[0, 0, 2] = 1.0
    before, after = (
        coordinate(t).diff(dim=1)[0]
        for t in (base, from_logits(logits, base, schedule, Bounds(domain=domain)).tau)
    )
    longer = torch.tensor([False, False, True, False, False])
    assert torch.equal(after > before, longer)


@pytest.mark.parametrize("domain", DOMAINS)
def test_intervals_are_the_softmax_of_logits_above_the_logs_of_the_base_fractions(domain):
    schedule, base, logits = (
        SCHEDULES["linear_vp"],
        base_of("linear_vp", 6),
        seeded(3, 3, 6, seed=3),
    )
    plan = from_logits(logits, base, schedule, Bounds(domain=domain, floor=0.0))
    coordinate = schedule.log_snr if domain == "log_snr" else torch.Tensor.neg

    def fractions(tau: torch.Tensor) -> torch.Tensor:
        level = coordinate(tau)
        return level.diff(dim=1) / (level[:, -1:] - level[:, :1])

    expected = (fractions(base).log() + logits[:, 0]).softmax(1)
    torch.testing.assert_close(fractions(plan.tau), expected, rtol=1e-9, atol=1e-12)


def test_an_added_constant_changes_no_time():
    schedule, base, logits = SCHEDULES["edm"], base_of("edm", 5), seeded(3, 3, 5, seed=3)
    moved = logits.clone()
    moved[:, 0] += 7.0
    a, b = (from_logits(v, base, schedule, Bounds()).tau for v in (logits, moved))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_no_interval_falls_below_its_floor():
    schedule, base = SCHEDULES["edm"], base_of("edm", 5)
    logits = torch.zeros(1, 3, 5, dtype=torch.float64)
    logits[0, 0] = torch.tensor([1e3, -1e3, -1e3, -1e3, -1e3])
    level = schedule.log_snr(from_logits(logits, base, schedule, Bounds(floor=1e-3)).tau)
    before = schedule.log_snr(base)
    expected = 5e-3 * before.diff(dim=1)[:, 1:]  # floor times steps of the base interval
    torch.testing.assert_close(level.diff(dim=1)[:, 1:], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("sign", "factor"), [(1.0, 2.718281828), (-1.0, 0.367879441)])
def test_a_relative_shift_multiplies_sigma_by_up_to_e_to_the_bound(sign, factor):
    schedule, base = SCHEDULES["edm"], base_of("edm", 5)
    logits = torch.zeros(1, 3, 5, dtype=torch.float64)
    logits[0, 1] = 1e3 * sign
    plan = from_logits(logits, base, schedule, Bounds(dtau=1.0))
    torch.testing.assert_close(
        (plan.tau[:, :-1] + plan.dtau) / plan.tau[:, :-1],
        torch.full((1, 5), factor).double(),
        rtol=1e-7,
        atol=0,
    )


def test_shifts_and_scales_are_b_tanh_of_half_the_logit():
    schedule, base, logits = (
        SCHEDULES["rectified_flow"],
        base_of("rectified_flow", 4),
        seeded(2, 5, 4, seed=4),
    )
    bounds = Bounds(dtau=0.2, gamma=0.3, weights=0.1, shift="gap", domain="time")
    plan = from_logits(logits, base, schedule, bounds)
    gap = plan.tau[:, :-1] - plan.tau[:, 1:]
    room = 1 - plan.tau[:, :-1]  # before t = 1 there is no network
    torch.testing.assert_close(
        plan.dtau, (0.2 * torch.tanh(logits[:, 1] / 2) * gap).minimum(room), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        plan.gamma, 1 + 0.3 * torch.tanh(logits[:, 2] / 2), rtol=1e-12, atol=0
    )
    expected = 0.1 * torch.tanh(logits[:, 3:] / 2).transpose(1, 2)  # rows are weights, newest first
    torch.testing.assert_close(plan.weights, expected, rtol=1e-12, atol=1e-15)


def test_bounds_of_zero_remove_their_freedom_exactly():
    logits = 5 * seeded(2, 5, 4, seed=5)
    for shift in SHIFTS:
        bounds = Bounds(dtau=0, gamma=0, weights=0, shift=shift)
        plan = from_logits(logits, base_of("edm", 4), SCHEDULES["edm"], bounds)
        assert (plan.dtau.abs().max(), (plan.gamma - 1).abs().max(), plan.weights.abs().max()) == (
            0,
            0,
            0,
        )


def test_logits_without_further_rows_correct_no_weights():
    assert (
        from_logits(
            seeded(2, 3, 4), base_of("edm", 4), SCHEDULES["edm"], Bounds(weights=0.5)
        ).weights
        is None
    )


def test_rows_are_independent():
    logits, base = seeded(5, 5, 4, seed=6), base_of("edm", 4)
    together = from_logits(logits, base, SCHEDULES["edm"], Bounds(weights=0.1))
    for i in range(5):
        alone = from_logits(logits[i : i + 1], base, SCHEDULES["edm"], Bounds(weights=0.1))
        for name in ("tau", "dtau", "gamma", "weights"):
            torch.testing.assert_close(
                getattr(together[i : i + 1], name), getattr(alone, name), rtol=1e-14, atol=1e-15
            )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtau": -0.1}, "dtau must be in"),
        ({"gamma": 1.0}, "gamma must be in"),
        ({"gamma": -0.1}, "gamma must be in"),
        ({"weights": -1.0}, "weights must be in"),
        ({"weights": float("inf")}, "weights must be in"),
        ({"dtau": float("nan")}, "dtau must be in"),
        ({"floor": 0.1}, "floor must be in"),
        ({"shift": "gap", "dtau": 1.0}, "below 1 for shift 'gap'"),
        ({"domain": "lambda"}, "domain must be time or log_snr, got 'lambda'"),
        ({"shift": "foo"}, "shift must be relative, gap or additive, got 'foo'"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Bounds(**fields)


def test_natural_bounds_are_relative_for_decades_of_sigma_and_local_for_flows():
    assert Bounds.natural(EDM(), gamma=0.2) == Bounds(shift="relative", domain="log_snr", gamma=0.2)
    assert Bounds.natural(RectifiedFlow()) == Bounds(shift="gap", domain="time")
    assert Bounds.natural(RectifiedFlow(), shift="additive").shift == "additive"


PLAIN = Discretization.plain(grids.polynomial(EDM(), 3))


def test_a_plain_discretization_neither_shifts_nor_scales():
    assert PLAIN.steps == 3
    assert PLAIN.dtau.tolist() == [[0, 0, 0]]
    assert PLAIN.gamma.tolist() == [[1, 1, 1]]
    assert PLAIN.weights is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tau": torch.ones(4)}, r"tau must be \(grid, steps \+ 1\)"),
        (
            {"tau": torch.ones(1, 1), "dtau": torch.ones(1, 0), "gamma": torch.ones(1, 0)},
            "steps >= 1",
        ),
        ({"dtau": torch.zeros(1, 4)}, r"dtau must be \(grid, steps\) = \(1, 3\), got \(1, 4\)"),
        ({"gamma": torch.ones(2, 3)}, r"gamma must be \(grid, steps\) = \(1, 3\), got \(2, 3\)"),
        (
            {"weights": torch.zeros(1, 2, 3)},
            r"weights must be \(grid, steps, order\), got \(1, 2, 3\)",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(PLAIN, **fields)


def changed(name: str, column: int, value: float) -> Discretization:
    part = getattr(PLAIN, name).clone()
    part[0, column] = value
    return replace(PLAIN, **{name: part})


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (changed("tau", 1, float("nan")), "must be finite"),
        (changed("dtau", 0, float("inf")), "must be finite"),
        (changed("gamma", 2, float("nan")), "must be finite"),
        (replace(PLAIN, weights=torch.full((1, 3, 2), float("nan"))), "must be finite"),
        (changed("tau", 1, 90.0), "must decrease strictly"),
        (changed("tau", 1, float(PLAIN.tau[0, 2])), "must decrease strictly"),
        (changed("tau", 0, 81.0), r"must lie in \[0.002, 80\]"),
        (changed("tau", 3, 0.001), r"must lie in \[0.002, 80\]"),
    ],
)
def test_unsound_values_are_found_by_a_check(plan, message):
    with pytest.raises(ValueError, match=message):
        plan.check(EDM())


def test_a_sound_plan_passes_its_check_unchanged():
    assert PLAIN.check(EDM()) is PLAIN


def test_indexing_and_detaching_keep_the_numbers():
    logits = seeded(4, 5, 3, seed=7).requires_grad_()
    plan = from_logits(logits, PLAIN.tau, EDM(), Bounds(weights=0.2))
    picked = plan[torch.tensor([2, 0])]
    for name in ("tau", "dtau", "gamma", "weights"):
        torch.testing.assert_close(
            getattr(picked, name), getattr(plan, name)[[2, 0]], rtol=0, atol=0
        )
        detached = getattr(plan.detach(), name)
        assert not detached.requires_grad
        torch.testing.assert_close(detached, getattr(plan, name).detach(), rtol=0, atol=0)


def test_decisions_are_the_columns():
    plan = from_logits(seeded(2, 5, 3, seed=8), PLAIN.tau, EDM(), Bounds(weights=0.2))
    tau, dtau = plan.start()
    torch.testing.assert_close((tau, dtau), (plan.tau[:, 0], plan.dtau[:, 0]), rtol=0, atol=0)
    for k in range(3):
        decision = plan.decide(k, torch.empty(0), torch.empty(0))
        torch.testing.assert_close(decision.gamma, plan.gamma[:, k], rtol=0, atol=0)
        torch.testing.assert_close(decision.tau, plan.tau[:, k + 1], rtol=0, atol=0)
        torch.testing.assert_close(decision.weights, plan.weights[:, k], rtol=0, atol=0)
        following = plan.dtau[:, k + 1] if k < 2 else torch.zeros(2, dtype=torch.float64)
        torch.testing.assert_close(decision.dtau, following, rtol=0, atol=0)

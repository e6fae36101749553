"""AdaSDE: the published step with churn, its deterministic form, and whose noise is fresh."""

from itertools import pairwise

import pytest
import torch

from indis import (
    EDM,
    Discretization,
    Fixed,
    Form,
    LinearVP,
    Midpoint,
    RectifiedFlow,
    grids,
    noise_from_seeds,
    prior,
    solve,
)
from indis.methods import EPD, METHODS, AdaSDE
from indis.methods.midpoint_table import Churned, fresh_noise
from indis.plan import Churn
from indis.solvers.stepper import inflate
from methods.published import SCHEDULE, fill, first_slope, problem, slope
from problems import Gaussian, seeded
from small_cases import sentence

NOISE = seeded(4, 3, seed=9)


def published(x, base, free, *, analytic, churn, noise):
    """x-hat = x + sqrt(t-hat^2 - t^2) z after the first step, then a midpoint step from t-hat."""
    free = {name: value.detach().double() for name, value in free.items()}
    r = 1e-3 + (1 - 2e-3) * torch.sigmoid(free["r"][:, 0])
    s_dir, s_time = (
        1 + 0.05 * torch.tanh(free["s_dir"][:, 0] / 2),
        1 + 0.2 * torch.tanh(free["s_time"][:, 0] / 2),
    )
    gamma = 2e-4 + (churn - 2e-4) * torch.sigmoid((free["churn"][0] + 0.811) / 2)
    for n, (t, s) in enumerate(pairwise(base)):
        if n:
            later = (1 + gamma[n - 1]) * t
            x, t = x + (later**2 - t**2).sqrt() * fresh_noise(noise, n), later
        m = s ** r[n] * t ** (1 - r[n])
        inside = x + (m - t) * first_slope(x, t, analytic and n == 0)
        x = x + (s - t) * s_dir[n] * slope(inside, m, asked=s_time[n] * m)
    return x


@pytest.mark.parametrize("native", [Form.NOISE, Form.DATA])
@pytest.mark.parametrize("analytic", [False, True])
def test_a_learned_table_takes_the_published_step(analytic, native):
    sampler = AdaSDE(steps=4, analytic_first=analytic, churn=0.3).untrained(problem(native))
    fill(sampler.policy)
    x, base = prior(SCHEDULE, NOISE), grids.vp_time(SCHEDULE, 4)[0]
    expected = published(x, base, sampler.policy.free, analytic=analytic, churn=0.3, noise=NOISE)
    # 0.811 is rounded, as published
    torch.testing.assert_close(
        sampler(problem(native), NOISE).detach(), expected, rtol=1e-4, atol=1e-4
    )
    other = published(x, base, sampler.policy.free, analytic=analytic, churn=0.3, noise=-NOISE)
    assert float((other - expected).abs().max()) > 0.05


def test_no_churn_is_the_deterministic_form_bit_for_bit():
    sampler = AdaSDE(steps=3, churn=0).untrained(problem())
    fill(sampler.policy)
    plan = sampler.policy(NOISE)
    assert isinstance(plan, Discretization)
    assert set(sampler.policy.free) == {"r", "s_dir", "s_time"}
    plain = solve(problem(), prior(SCHEDULE, NOISE), plan, Midpoint(), analytic_first=True)
    assert torch.equal(sampler(problem(), NOISE), plain)
    assert isinstance(sampler.policy.frozen(), Fixed)
    untouched, epd = AdaSDE(steps=3, churn=0), EPD(steps=3, solver="midpoint")
    assert torch.equal(
        untouched.untrained(problem())(problem(), NOISE), epd.untrained(problem())(problem(), NOISE)
    )


def test_churn_is_kept_when_a_table_is_frozen():
    policy = AdaSDE(steps=3).untrained(problem()).policy
    assert policy.frozen() is policy
    assert isinstance(policy(NOISE), Churned)


def test_the_first_step_has_no_churn_and_later_ones_begin_at_sixty_percent_of_the_most():
    policy = AdaSDE(steps=4, churn=0.02).untrained(problem()).policy
    assert policy.free["churn"].shape == (1, 3)
    found = policy(NOISE).tau.detach() / policy.base[:, 1:-1] - 1
    torch.testing.assert_close(
        found, torch.full_like(found, 2e-4 + 0.6 * (0.02 - 2e-4)), rtol=1e-9, atol=1e-12
    )
    assert set(AdaSDE(steps=1).untrained(problem()).policy.free) == {"r", "s_dir", "s_time"}


def test_midpoints_are_counted_from_where_churn_leaves_the_state():
    policy = AdaSDE(steps=3, churn=1.0).untrained(problem()).policy
    plan = policy(NOISE)
    starts, stops = plan.tau[0], policy.base[0, 2:]
    torch.testing.assert_close(
        plan.inner.tau[0, [3, 5]], (starts * stops).sqrt(), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(
    "schedule", [EDM(0.05, 10.0), LinearVP(t_min=0.02), RectifiedFlow(0.02, 0.95)], ids=repr
)
def test_a_churned_state_has_the_variance_of_its_new_time(schedule):
    count, variance = 200_000, 0.25
    tau, later = (torch.tensor([t], dtype=torch.float64) for t in (0.4, 0.55))
    clean, noise = variance**0.5 * seeded(count, 1, seed=1), seeded(count, 1, seed=2)
    x = schedule.alpha(tau) * clean + schedule.sigma(tau) * noise
    up = inflate(x, tau, Churn(later, seeded(count, 1, seed=3)), schedule)
    expected = schedule.alpha(later) ** 2 * variance + schedule.sigma(later) ** 2
    assert up.var().item() == pytest.approx(expected.item(), rel=0.02)
    assert (up * clean).mean().item() == pytest.approx(
        (schedule.alpha(later) * variance).item(), rel=0.05
    )


def test_churn_inflates_the_noise_to_signal_ratio_of_every_schedule():
    for schedule in (EDM(0.05, 10.0), LinearVP(t_min=0.02), RectifiedFlow(0.02, 0.95)):
        policy = (
            AdaSDE(steps=3, churn=0.5, grid="log_snr")
            .untrained(Gaussian(schedule, Form.NOISE))
            .policy
        )
        ratio = (
            (schedule.log_snr(policy.base[:, 1:-1]) - schedule.log_snr(policy(NOISE).tau))
            .exp()
            .detach()
        )
        torch.testing.assert_close(
            ratio, torch.full_like(ratio, 1 + 2e-4 + 0.6 * (0.5 - 2e-4)), rtol=1e-9, atol=0
        )


def test_fresh_noise_belongs_to_the_sample_and_to_the_step():
    noise = noise_from_seeds(range(6), (2, 3))
    together = fresh_noise(noise, 1)
    assert torch.equal(torch.cat([fresh_noise(noise[i : i + 1], 1) for i in range(6)]), together)
    assert torch.equal(fresh_noise(noise.flip(0), 1), together.flip(0))
    assert torch.equal(fresh_noise(noise.double(), 1), together.double())
    assert float((fresh_noise(noise, 2) - together).abs().min()) > 0
    assert float((together[0] - together[1]).abs().min()) > 0


def test_fresh_noise_is_unit_noise_that_the_start_does_not_tell():
    noise = noise_from_seeds(range(2000), (16,))
    first, second = fresh_noise(noise, 1), fresh_noise(noise, 2)
    assert first.mean().item() == pytest.approx(0, abs=0.02)
    assert first.var().item() == pytest.approx(1, abs=0.02)
    for a, b in ((first, noise), (first, second)):
        assert (a * b).mean().item() == pytest.approx(0, abs=0.02)


def test_a_seed_is_one_sample_in_every_batch():
    sampler, noise = AdaSDE(steps=3, churn=0.3).untrained(problem()), NOISE.float()
    together = sampler(problem(), noise)
    assert torch.equal(sampler(problem(), noise), together)
    alone = torch.cat([sampler(problem(), noise[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_churn():
    sampler = AdaSDE(steps=3, churn=0.3).untrained(problem())
    sampler(problem(), NOISE).square().sum().backward()
    for name, parameter in sampler.policy.free.items():
        assert bool((parameter.grad != 0).all()), name


def test_it_counts_two_evaluations_a_step():
    assert AdaSDE.steps_for(7, analytic_first=True) == 4
    sampler = AdaSDE(steps=4).untrained(problem())
    assert (sampler.nfe, sampler.depth) == (7, 7)
    assert METHODS["adasde"] is AdaSDE


@pytest.mark.parametrize("churn", [1e-4, -0.1, 1.5])
def test_a_churn_that_is_no_small_inflation_is_refused(churn):
    with pytest.raises(ValueError, match="churn must be 0 or in") as error:
        AdaSDE(churn=churn)
    sentence(error)

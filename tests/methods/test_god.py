"""GOD and INDIS on a problem whose best scale is known: one Euler step, times fixed, and least
squares by hand."""

import pytest
import torch

from indis import (
    EDM,
    INDIS,
    UNCONDITIONAL,
    Form,
    RectifiedFlow,
    losses,
    noise_from_seeds,
    prior,
)
from indis.endpoints import Endpoints
from indis.methods import ALD3, EPD, LD3, METHODS, Look
from indis.recipe import Recipe
from problems import Gaussian
from small_cases import sentence

CASES = {
    "noise": Gaussian(EDM(0.05, 1.5), Form.NOISE),
    "data": Gaussian(EDM(0.05, 4.0), Form.DATA),
    "velocity": Gaussian(RectifiedFlow(0.02, 0.95), Form.VELOCITY),
}
each = pytest.mark.parametrize("problem", CASES.values(), ids=CASES)
SMALL = {"god": {}, "indis": {"width": 8, "depth": 1}}


def known(problem, count=64):
    """Noise, and where the exact ODE takes it."""
    seeds = torch.arange(count)
    noise = noise_from_seeds(seeds.tolist(), problem.shape).double()
    first, last = (
        torch.tensor(t, dtype=torch.float64)
        for t in (problem.schedule.t_max, problem.schedule.t_min)
    )
    return Endpoints(
        seeds, noise, problem.exact(prior(problem.schedule, noise), first, last), UNCONDITIONAL
    )


def affine(problem, data):
    """The end of one Euler step as offset + gamma * slope, written out for each form's ODE."""
    x, first, last = (
        prior(problem.schedule, data.noise),
        problem.schedule.t_max,
        problem.schedule.t_min,
    )
    answer = problem(x, torch.full((len(x),), first, dtype=torch.float64), UNCONDITIONAL)
    if (
        problem.native is Form.DATA
    ):  # the noise of a scaled data prediction is (x - gamma D) / sigma
        return last / first * x, (1 - last / first) * answer
    return x, (last - first) * answer


def best_gamma(problem, data):
    offset, slope = affine(problem, data)
    return float((slope * (data.target - offset)).sum() / slope.square().sum())


def fitted(name, problem, data, *, gamma=0.95, iterations=300):
    fit = Recipe(iterations=iterations, batch=len(data), lr=0.1, holdout=0)
    sizes = {"dtau": 0.0, "gamma": gamma, "recipe": fit, "loss": "squared", **SMALL[name]}
    method = METHODS[name](steps=1, solver="euler", grid="uniform", **sizes)
    process = method.tuning(problem, data, losses.named("squared"))
    list(process.run())
    return process.sampler


def scales(sampler, data):
    with torch.no_grad():
        plan = sampler.policy(data.noise)
    assert not plan.dtau.any()
    return plan.gamma[:, 0]


@each
def test_the_fitted_scale_is_that_of_least_squares(problem):
    data = known(problem)
    best = best_gamma(problem, data)
    assert 0.04 < abs(best - 1) < 0.9  # neither where the fit begins nor at its bound
    assert scales(fitted("god", problem, data), data).tolist() == pytest.approx([best], rel=1e-5)


@each
def test_a_bound_that_excludes_the_best_scale_is_met(problem):
    data = known(problem)
    best = best_gamma(problem, data)
    bound = abs(best - 1) / 2
    found = float(scales(fitted("god", problem, data, gamma=bound), data))
    assert found == pytest.approx(1 + bound * (1 if best > 1 else -1), rel=0.02)
    assert abs(found - 1) <= bound


@each
def test_phi_ends_below_the_least_loss_that_one_scale_for_all_can_have(problem):
    data = known(problem)
    (offset, slope), loss = affine(problem, data), losses.named("squared")
    shared = loss(offset + best_gamma(problem, data) * slope, data.target).mean()
    own = (slope * (data.target - offset)).sum(1) / slope.square().sum(1)
    least = loss(offset + own[:, None] * slope, data.target).mean()
    sampler = fitted("indis", problem, data)
    with torch.no_grad():
        found = loss(sampler(problem, data.noise), data.target).mean()
    assert least < found < 0.95 * shared


@pytest.mark.parametrize(
    "sizes", [{"dtau": -1}, {"weights": -1}, {"gamma": float("nan")}, {"gamma": 1.0}]
)
def test_bounds_out_of_range_are_refused_where_they_are_given(sizes):
    with pytest.raises(ValueError, match=f"{next(iter(sizes))} must be in ") as error:
        INDIS(**sizes)
    sentence(error)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (
            INDIS,
            {"shift": "sideways"},
            "shift must be relative, gap or additive, got 'sideways'",
        ),
        (INDIS, {"domain": "sigma"}, "domain must be time or log_snr, got 'sigma'"),
        (
            INDIS,
            {"shift": "gap", "dtau": 1.5},
            "dtau must be below 1 for shift 'gap', got 1.5",
        ),
        (
            Look,
            {"replan": "first", "analytic_first": True},
            "replan must be every with an analytic first step",
        ),
        (LD3, {"domain": "sigma"}, "domain must be time or log_snr, got 'sigma'"),
        (ALD3, {"domain": "sigma"}, "domain must be time or log_snr, got 'sigma'"),
        (EPD, {"domain": "sigma"}, "domain must be time or log_snr, got 'sigma'"),
    ],
    ids=str,
)
def test_what_no_plan_could_be_made_of_is_refused_where_it_is_given(method, given, message):
    with pytest.raises(ValueError) as error:
        method(**given)
    assert message in sentence(error)

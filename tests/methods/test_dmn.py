"""DMN: its bound against the published closed forms and against dense sums, its grids against known
minima."""

import math
import sys

import pytest
import torch

from indis import EDM, DiscreteVP, Form, LinearVP, RectifiedFlow, grids, losses
from indis.methods import DMN, dmn
from indis.methods.dmn import error_bound, minimal, step_weights
from problems import Gaussian, seeded
from small_cases import sentence, toy_pairs

scipy_optimize = pytest.importorskip("scipy.optimize")

EVERY_SCHEDULE = pytest.mark.parametrize(
    "schedule",
    [EDM(), LinearVP(), DiscreteVP(), RectifiedFlow(0.002, 0.988)],
    ids=lambda s: type(s).__name__,
)


def random_nodes(steps, seed=0):
    """Increasing, uneven, over a range like EDM's."""
    gaps = 0.2 + seeded(steps, seed=seed).abs()
    return -4 + torch.cat([torch.zeros(1, dtype=torch.float64), gaps.cumsum(0)]) * 10 / gaps.sum()


def weight(log_snr, power):
    """sigma^p / alpha of a variance preserving process."""
    alpha = 1 / math.sqrt(1 + math.exp(-2 * log_snr))
    return math.sqrt(1 - alpha**2) ** power / alpha


def closed_forms(at, s, order):
    """J of step s for its nodes, oldest first, from the integrals of e^u, u e^u and u^2 e^u over
    the step."""
    e, h, g = math.exp(at[s]), at[s + 1] - at[s], [at[k + 1] - at[k] for k in range(s)]
    h0 = math.exp(h) - 1
    h1 = h * math.exp(h) - h0
    h2 = h**2 * math.exp(h) - 2 * h1
    if order == 1:
        return [e * h0]
    if order == 2:
        return [-e * h1 / g[-1], e * (h1 + g[-1] * h0) / g[-1]]
    last, both = g[-1], g[-1] + g[-2]
    newest = e * (h2 + (last + both) * h1 + last * both * h0) / (last * both)
    return [e * (h2 + last * h1) / (g[-2] * both), -e * (h2 + both * h1) / (g[-2] * last), newest]


def published_bound(at, power, apart):
    steps, total, shared = len(at) - 1, 0.0, [0.0] * len(at)
    for s in range(steps):
        order = min(s + 1, steps - s, 3)
        nodes = range(s - order + 1, s + 1)
        terms = [
            weight(at[n], power) * j for n, j in zip(nodes, closed_forms(at, s, order), strict=True)
        ]
        if order == 1 or s < apart:
            total += math.hypot(*terms)
        else:
            for n, term in zip(nodes, terms, strict=True):
                shared[n] += term
    return total + sum(abs(v) for v in shared)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7, 10])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("apart", [0, 2, 3, 99])
def test_the_bound_is_the_published_one(steps, power, apart):
    at = random_nodes(steps)
    expected = published_bound(at.tolist(), power, apart)
    assert error_bound(at, power, apart).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_weights_integrate_the_lagrange_polynomials_of_the_last_nodes(order):
    at = random_nodes(5, seed=3)
    used = torch.tensor([[3, 2, 1][:order]])
    weights = step_weights(at, torch.tensor([3]), used)[0]
    points = torch.linspace(at[3].item(), at[4].item(), 200_001, dtype=torch.float64)
    for own, value in zip(used[0], weights, strict=True):
        factors = [(points - at[n]) / (at[own] - at[n]) for n in used[0] if n != own]
        basis = torch.stack([torch.ones_like(points), *factors]).prod(0)
        assert value.item() == pytest.approx(
            torch.trapezoid(points.exp() * basis, points).item(), rel=1e-8
        )


@pytest.mark.parametrize("apart", [0, 3])
def test_the_slope_that_the_search_follows_is_that_of_the_bound(apart):
    at = random_nodes(6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: error_bound(v, 2, apart), at)


@EVERY_SCHEDULE
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize(("init", "power"), [("log_snr", 1), ("uniform", 2)])
def test_grids_keep_their_ends_decrease_and_never_have_a_greater_bound_than_at_the_start(
    schedule, steps, init, power
):
    denoiser = Gaussian(schedule, Form.NOISE)
    tau = DMN(steps=steps, init=init, power=power).best(denoiser, toy_pairs(), losses.mse)
    start = grids.named(init)(schedule, steps)
    assert torch.equal(tau[:, [0, -1]], start[:, [0, -1]]) and bool((tau.diff(dim=1) < 0).all())
    before, after = (error_bound(schedule.log_snr(v[0]), power, 3) for v in (start, tau))
    assert after < before * (1 - 1e-3) if steps > 2 else after <= before * (1 + 1e-9)


def test_two_steps_meet_in_the_middle_where_the_bound_is_symmetric():
    # With p = 1 the bound of two steps is e^a + e^b - 2 for the two gaps a and b, least where they
    # are equal.
    found = minimal(torch.tensor([-4.0, 3.0, 6.0], dtype=torch.float64), power=1, apart=3)
    assert found[1].item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("power", [1, 2])
def test_three_steps_are_as_good_as_the_best_of_a_dense_grid(power):
    init = torch.linspace(-4, 6, 4, dtype=torch.float64)
    found = error_bound(minimal(init, power, apart=3), power, apart=3).item()
    inner = torch.linspace(-4, 6, 101)[1:-1].tolist()
    pairs = ((a, b) for a in inner for b in inner if a < b)
    dense = min(published_bound([-4.0, a, b, 6.0], power, 3) for a, b in pairs)
    assert found <= dense
    assert found == pytest.approx(dense, rel=0.02)


def test_schedules_with_the_same_log_snr_get_the_same_grid():
    edm, flow = EDM(0.002, 80.0), RectifiedFlow(0.002 / 1.002, 80 / 81)
    found = [
        DMN(steps=5).best(Gaussian(s, Form.VELOCITY), toy_pairs(), losses.mse)[0]
        for s in (edm, flow)
    ]
    assert torch.allclose(edm.log_snr(found[0]), flow.log_snr(found[1]), atol=1e-3)


def test_few_steps_are_kept_apart_by_default_and_many_are_not(monkeypatch):
    asked = []
    monkeypatch.setattr(
        dmn, "minimal", lambda init, power, apart: asked.append((power, apart)) or init
    )
    for options in ({"steps": 7}, {"steps": 8}, {"steps": 8, "apart": 2, "power": 2}):
        DMN(**options).best(Gaussian(EDM(), Form.NOISE), toy_pairs(), losses.mse)
    assert asked == [(1, 3), (1, 0), (2, 2)]


def test_eight_steps_gain_too():
    init = EDM().log_snr(grids.log_snr(EDM(), 8)[0])
    found = minimal(init, power=1, apart=0)
    assert error_bound(found, 1, 0) < error_bound(init, 1, 0) / 2 and bool((found.diff() > 0).all())


def test_a_search_that_ends_worse_than_it_began_is_not_believed(monkeypatch):
    def lost(function, start, args, **options):
        worse = start - 0.9 * (start - start[0])
        return scipy_optimize.OptimizeResult(x=worse, fun=function(worse, *args)[0])

    monkeypatch.setattr(scipy_optimize, "minimize", lost)
    init = torch.linspace(-4, 6, 5, dtype=torch.float64)
    assert torch.equal(minimal(init, 1, 3), init)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"power": 3}, ["power", "1 or 2", "3"]),
        ({"apart": -1}, ["apart", "at least 0", "-1"]),
        ({"init": "magic"}, ["grid", "log_snr", "'magic'"]),
    ],
)
def test_bad_input_is_named_with_what_is_accepted(options, words):
    with pytest.raises(ValueError) as error:
        DMN(**options)
    assert all(word in sentence(error) for word in words)


@pytest.mark.parametrize(
    "schedule", [RectifiedFlow(0.01, 1.0), RectifiedFlow(0.0, 0.99)], ids=["alpha", "sigma"]
)
def test_a_flow_that_reaches_pure_noise_or_pure_data_is_refused(schedule):
    with pytest.raises(ValueError) as error:
        DMN().best(Gaussian(schedule, Form.VELOCITY), toy_pairs(), losses.mse)
    assert all(
        word in sentence(error)
        for word in ("alpha(t_max) > 0", "sigma(t_min) > 0", f"{schedule.t_max:g}")
    )


def test_without_scipy_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError) as error:
        DMN().best(Gaussian(EDM(), Form.NOISE), toy_pairs(), losses.mse)
    assert "pip install indis-diffusion[metrics]" in sentence(error)

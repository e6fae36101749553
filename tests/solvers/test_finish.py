"""Lower-order finishes of the exact Adams-Bashforth methods: by hand, off unless asked for, and
kept in artifacts."""

import json

import pytest
import torch

from indis import (
    DEIS,
    EDM,
    AdamsBashforth,
    Discretization,
    Euler,
    Fixed,
    Form,
    LinearVP,
    Sampler,
    artifact,
    grids,
    solve,
    solvers,
)
from indis.noise import VPClock, ratio
from indis.numerics import integrate_lagrange, quadrature_points
from indis.solvers import step_coefficients
from problems import Gaussian
from small_cases import reseal

STEPS = 6
TAU = grids.polynomial(EDM(0.05, 10.0), STEPS)
both = pytest.mark.parametrize("kind", [AdamsBashforth, DEIS])


def weights(solver, k):
    """Those of step k on EDM's grid, where the scale is 1 and the clock of the noise form is the
    time."""
    return step_coefficients(solver, EDM(0.05, 10.0), Form.NOISE, TAU[:, : k + 2], STEPS).predict[0]


@both
@pytest.mark.parametrize(("order", "expected"), [(2, [1, 2, 2, 2, 2, 1]), (4, [1, 2, 3, 3, 2, 1])])
def test_orders_fall_at_the_end_as_they_rose(kind, order, expected):
    assert [len(weights(kind(order, lower_order_final=True), k)) for k in range(STEPS)] == expected


def test_the_last_two_steps_of_adams_bashforth_are_those_of_orders_two_and_one():
    before, start, stop, end = TAU[0, -4:]
    h, r = stop - start, (stop - start) / (start - before)
    solver = AdamsBashforth(3, lower_order_final=True)
    second = torch.stack([h * (1 + r / 2), -h * r / 2])  # the textbook's variable-step formula
    torch.testing.assert_close(weights(solver, STEPS - 2), second, rtol=1e-12, atol=0)
    torch.testing.assert_close(weights(solver, STEPS - 1), (end - stop)[None], rtol=1e-12, atol=0)


def test_the_last_two_steps_of_deis_integrate_a_line_and_a_constant_in_vp_time():
    schedule, (before, start, stop, end) = EDM(0.05, 10.0), TAU[0, -4:]
    clock = VPClock.fit(schedule)
    u = lambda t: clock.time(ratio(schedule, t))  # noqa: E731
    fine = start + (stop - start) * torch.linspace(0, 1, 20_001, dtype=torch.float64)
    line = torch.trapezoid((u(fine) - u(before)) / (u(start) - u(before)), fine)
    solver = DEIS(3, lower_order_final=True)
    expected = torch.stack([line, stop - start - line])
    torch.testing.assert_close(weights(solver, STEPS - 2), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(weights(solver, STEPS - 1), (end - stop)[None], rtol=1e-9, atol=0)


@both
def test_two_steps_that_finish_low_are_two_euler_steps(kind):
    problem = Gaussian(LinearVP(t_min=0.02), Form.NOISE)
    plan = Discretization.plain(grids.listed(problem.schedule, [0.5, 0.3, 0.1]))
    x = problem.start(3)
    low, full, euler = (solve(problem, x, plan, s) for s in (kind(3, True), kind(3), Euler()))
    torch.testing.assert_close(low, euler, rtol=1e-8, atol=1e-8)
    assert float((full - euler).abs().max()) > 1e-3


def speed(clock, u):
    """d(sigma / alpha) / du of a VP process."""
    return (clock.beta_d * u + clock.beta_min) * (1 + clock.ratio(u) ** 2) / (2 * clock.ratio(u))


@both
@pytest.mark.parametrize("order", [1, 3, 4])
def test_without_a_finish_the_rule_is_the_published_one(kind, order):
    schedule, clock = EDM(0.05, 10.0), VPClock.fit(EDM(0.05, 10.0))
    for k in range(STEPS):
        tau = TAU[:, : k + 2]
        level = tau if kind is AdamsBashforth else clock.time(ratio(schedule, tau))
        past = [level[:, k - j] for j in range(min(order, k + 1))]
        density = (
            None
            if kind is AdamsBashforth
            else speed(clock, quadrature_points(past[0], level[:, -1])[0])
        )
        given = {} if density is None else {"density": density}
        expected = torch.stack(integrate_lagrange(past, past[0], level[:, -1], **given), dim=1)[0]
        tolerance = (
            {"rtol": 0, "atol": 0} if kind is AdamsBashforth else {"rtol": 1e-9, "atol": 1e-9}
        )
        torch.testing.assert_close(weights(kind(order), k), expected, **tolerance)


@both
def test_an_artifact_keeps_the_finish_and_one_that_does_not_tell_it_is_refused(kind, tmp_path):
    name = {AdamsBashforth: "adams_bashforth", DEIS: "deis"}[kind]
    solver = solvers.named(f"{name}:2:true")
    assert solver == kind(2, lower_order_final=True) != kind(2)
    artifact.save(Sampler(Fixed(TAU), solver), tmp_path)
    assert artifact.load(tmp_path).solver == solver
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["solver"].pop("lower_order_final") is True
    reseal(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match="lower_order_final"):
        artifact.load(tmp_path)

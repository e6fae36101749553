"""What the coefficients promise: orders of convergence, exactness on polynomials, phi functions.

Orders are measured on a Gaussian whose ODE is solved exactly. The first step of every multistep
method is an Euler step, so they are of order 2 in the limit; where their later steps still dominate
at these step counts, the bound is higher.
"""

import math
from decimal import Decimal, localcontext

import pytest
import torch

from indis import (
    DEIS,
    EDM,
    IPNDM,
    AdamsBashforth,
    DiscreteVP,
    Discretization,
    DPMSolverPP,
    Euler,
    Form,
    Heun,
    LinearVP,
    RectifiedFlow,
    ScaledLinearVP,
    UniPC,
    convert,
    grids,
    solve,
)
from indis.noise import VPClock
from indis.numerics import broadcast, integrate_lagrange, phi, quadrature_points
from indis.solvers import SOLVERS, Midpoint, step_coefficients
from indis.solvers.adams import EVEN_WEIGHTS
from indis.solvers.base import Nodes, first_order
from problems import FORMS, Gaussian, seeded

# Away from the ends where log-SNR or the slope of the ODE is infinite.
SCHEDULES = {
    "edm": EDM(0.05, 10.0),
    "linear_vp": LinearVP(t_min=0.02),
    "rectified_flow": RectifiedFlow(0.02, 0.95),
}
MORE = {**SCHEDULES, "scaled_linear_vp": ScaledLinearVP(t_min=0.02), "discrete_vp": DiscreteVP()}

# solver: least and greatest order observed between 32 and 64 steps, over all schedules and native
# forms
OBSERVED = [
    (Euler(), 0.95, 1.05),
    (Heun(), 1.95, 2.1),
    (AdamsBashforth(1), 0.95, 1.05),
    (AdamsBashforth(2), 1.8, 2.1),
    (AdamsBashforth(3), 2.6, 3.1),
    (AdamsBashforth(4), 2.2, 4.1),  # limited by its start
    (IPNDM(1), 0.95, 1.05),
    (
        IPNDM(2),
        1.9,
        2.2,
    ),  # on a smooth grid neighbouring steps become equal, but only to first order
    (IPNDM(3), 1.9, 2.5),
    (IPNDM(4), 1.9, 2.5),
    (DEIS(1), 0.95, 1.05),
    (DEIS(2), 1.8, 2.1),
    (DEIS(3), 2.5, 3.1),
    (DEIS(4), 3.0, 4.1),
    (DPMSolverPP(1), 0.95, 1.05),
    (DPMSolverPP(2), 1.9, 2.1),
    (DPMSolverPP(2, False), 1.9, 2.1),
    (DPMSolverPP(3), 2.0, 2.4),
    (
        DPMSolverPP(3, False),
        2.0,
        2.5,
    ),  # the published curvature term is half of the one that would give order 3
    (UniPC(1), 1.9, 2.2),  # the corrector adds one
    (UniPC(2, "bh1", False), 2.9, 3.2),
    (UniPC(2, "bh2", False), 2.9, 3.2),
    (UniPC(3, "bh1", False), 3.4, 4.2),
    (UniPC(3, "bh2", False), 3.4, 4.2),
    (UniPC(3), 1.8, 2.2),  # an uncorrected first-order step at the end
]


def test_every_solver_says_what_order_was_observed():
    # Midpoint, whose steps are several of the plan's, is measured in test_midpoint.py.
    assert {type(solver) for solver, _, _ in OBSERVED} == set(SOLVERS.values()) - {Midpoint}


def error(problem: Gaussian, solver, grid, steps: int) -> float:
    tau, x = grid(problem.schedule, steps), problem.start(3)
    end = solve(problem, x, Discretization.plain(tau), solver)
    return float((end - problem.exact(x, tau[0, 0], tau[0, -1])).abs().max())


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("solver", "low", "high"), OBSERVED, ids=lambda v: repr(v) if hasattr(v, "nfe") else ""
)
def test_halving_the_step_divides_the_error_by_two_to_the_order(solver, low, high, name):
    # Solvers that work in one form whatever the native one are the same in all (see below), so one
    # form is enough.
    for native in dict.fromkeys(solver.form(form, SCHEDULES[name]) for form in FORMS):
        problem = Gaussian(SCHEDULES[name], native)
        order = math.log2(
            error(problem, solver, grids.log_snr, 32) / error(problem, solver, grids.log_snr, 64)
        )
        assert low < order < high, (native, order)


@pytest.mark.parametrize("solver", [DEIS(3), DPMSolverPP(2), UniPC(3)], ids=repr)
def test_solvers_with_a_form_of_their_own_do_not_depend_on_the_native_one(solver):
    schedule = SCHEDULES["linear_vp"]
    plan = Discretization.plain(grids.log_snr(schedule, 6))
    ends = [
        solve(Gaussian(schedule, form), Gaussian(schedule, form).start(3), plan, solver)
        for form in FORMS
    ]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("solver", [Euler(), Heun(), IPNDM(3), AdamsBashforth(3)], ids=repr)
def test_drift_solvers_treat_a_data_prediction_as_noise(solver, name):
    schedule = SCHEDULES[name]
    plan = Discretization.plain(grids.polynomial(schedule, 6))
    start = Gaussian(schedule, Form.NOISE).start(3)
    data, noise = (
        solve(Gaussian(schedule, form), start, plan, solver) for form in (Form.DATA, Form.NOISE)
    )
    torch.testing.assert_close(data, noise, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("native", [Form.NOISE, Form.VELOCITY])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_is_adams_bashforth_where_the_clock_is_even(order, name, native):
    schedule = SCHEDULES[name]
    ends = native.clock(
        schedule, torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
    )
    clock = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, 8, dtype=torch.float64))
    ratio = clock if native is Form.NOISE else clock / (1 - clock)  # sigma / alpha
    plan = Discretization.plain(schedule.time(-ratio.log())[None])
    problem = Gaussian(schedule, native)
    a, b = (solve(problem, problem.start(3), plan, kind(order)) for kind in (IPNDM, AdamsBashforth))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_ipndm_is_not_adams_bashforth_on_an_uneven_grid():
    problem = Gaussian(SCHEDULES["edm"], Form.NOISE)
    plan = Discretization.plain(grids.polynomial(problem.schedule, 5))
    a, b = (solve(problem, problem.start(3), plan, kind(3)) for kind in (IPNDM, AdamsBashforth))
    assert float((a - b).abs().max()) > 0.01


@pytest.mark.parametrize("name", MORE)
def test_first_order_steps_in_the_three_forms_coincide_when_converted(name):
    # One step with the answer held: the data, noise and velocity steps are the same affine map of x
    # and the data.
    schedule = MORE[name]
    tau = grids.log_snr(schedule, 5)
    tau = torch.stack([tau[0, :-1], tau[0, 1:]], dim=1)  # five intervals as five rows
    x, data = seeded(5, 3, seed=1), seeded(5, 3, seed=2)
    results = []
    for form in FORMS:
        value = convert(data, Form.DATA, form, x=x, schedule=schedule, t=tau[:, 0])
        carry, unit = first_order(Nodes.at(schedule, form, tau))
        results.append(broadcast(carry, x) * x + broadcast(unit, x) * value)
    scale = float(results[0].abs().max())
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("name", MORE)
def test_euler_is_first_order_dpm_solver_and_first_order_deis(name):
    schedule = MORE[name]
    problem = Gaussian(schedule, Form.NOISE)
    plan = Discretization.plain(grids.log_snr(schedule, 7))
    ends = [
        solve(problem, problem.start(3), plan, s)
        for s in (Euler(), DPMSolverPP(1), DEIS(1), AdamsBashforth(1), IPNDM(1))
    ]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_lagrange_integrals_are_exact_on_polynomials(count):
    nodes = [
        torch.tensor([1.0 - 0.37 * j - 0.05 * j**2, 8.0 / (j + 1)], dtype=torch.float64)
        for j in range(count)
    ]
    start, stop = (
        torch.tensor([1.0, 9.0], dtype=torch.float64),
        torch.tensor([1.4, 3.0], dtype=torch.float64),
    )
    weights = integrate_lagrange(nodes, start, stop)
    for degree in range(count):
        integral = sum(w * node**degree for w, node in zip(weights, nodes, strict=True))
        exact = (stop ** (degree + 1) - start ** (degree + 1)) / (degree + 1)
        torch.testing.assert_close(integral, exact, rtol=1e-10, atol=1e-12)


def test_lagrange_integrals_take_a_density():
    nodes = [torch.tensor([v], dtype=torch.float64) for v in (0.0, -1.0, -2.5)]
    start, stop = torch.tensor([0.0], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    at, _ = quadrature_points(start, stop)
    weights = integrate_lagrange(nodes, start, stop, density=at.exp())
    e = math.exp(0.7)
    exact = [e - 1, e * (0.7 - 1) + 1, e * (0.7**2 - 1.4 + 2) - 2]  # of e^u u^n
    for degree, value in enumerate(exact):
        total = sum(float(w * node**degree) for w, node in zip(weights, nodes, strict=True))
        assert total == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_weights_of_an_even_grid_are_the_textbook_ones(order):
    tau = torch.linspace(9, 2, 8, dtype=torch.float64)[None, : order + 1]
    found = step_coefficients(AdamsBashforth(order), EDM(), Form.NOISE, tau, 7)
    expected = torch.tensor([EVEN_WEIGHTS[order]], dtype=torch.float64)
    torch.testing.assert_close(
        found.predict / found.unit[:, None], expected, rtol=1e-13, atol=1e-13
    )
    torch.testing.assert_close(found.carry, torch.ones(1, dtype=torch.float64), rtol=0, atol=0)
    torch.testing.assert_close(
        expected.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-15, atol=0
    )


def test_adams_bashforth_weights_on_the_polynomial_grid_are_those_of_the_moment_equations():
    tau = grids.polynomial(EDM(), 5)[:, :4]
    found = step_coefficients(AdamsBashforth(3), EDM(), Form.NOISE, tau, 5)
    past, start, stop = tau[0, :3].flip(0), tau[0, 2], tau[0, 3]
    degrees = torch.arange(3, dtype=torch.float64)
    moments = (stop ** (degrees + 1) - start ** (degrees + 1)) / (degrees + 1)
    expected = torch.linalg.solve(past ** degrees[:, None], moments)
    torch.testing.assert_close(found.predict[0], expected, rtol=1e-10, atol=1e-12)
    # far from the constant ones, 23/12, -16/12, 5/12
    torch.testing.assert_close(
        found.predict[0] / found.unit,
        torch.tensor([1.17, -0.18, 0.013], dtype=torch.float64),
        rtol=0,
        atol=5e-3,
    )


def exponential_moment(degree: int, level: torch.Tensor) -> torch.Tensor:
    """The antiderivative of e^u u^degree at ``level``."""
    polynomial = [1, level - 1, level**2 - 2 * level + 2, level**3 - 3 * level**2 + 6 * level - 6][
        degree
    ]
    return level.exp() * polynomial


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_unipc_3_integrates_data_that_are_polynomials_of_log_snr(name, variant):
    schedule = SCHEDULES[name]
    tau = grids.quadratic(schedule, 6)[:, 1:5]  # uneven in log-SNR
    level, sigma = schedule.log_snr(tau)[0], schedule.sigma(tau)[0]
    found = step_coefficients(UniPC(3, variant, False), schedule, Form.DATA, tau, 6)
    assert found.correct is not None
    newest_first = level[:-1].flip(0)
    for degree in range(4):
        exact = sigma[-1] * (
            exponential_moment(degree, level[-1]) - exponential_moment(degree, level[-2])
        )
        corrected = (found.correct[0] * torch.cat([level[-1:], newest_first]) ** degree).sum()
        torch.testing.assert_close(corrected, exact, rtol=1e-9, atol=1e-11)
        if degree < 3:  # the predictor has one node less
            torch.testing.assert_close(
                (found.predict[0] * newest_first**degree).sum(), exact, rtol=1e-9, atol=1e-11
            )
    torch.testing.assert_close(found.carry[0], sigma[-1] / sigma[-2], rtol=1e-15, atol=0)


def reference_phi(order: int, z: float) -> float:
    """The power series in eighty decimal digits."""
    with localcontext() as context:
        context.prec = 80
        x = Decimal(z)
        power, total = Decimal(1), Decimal(0)
        for k in range(200):
            total += power / math.factorial(k + order)
            power *= x
        return float(total)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_phi_functions_are_their_power_series_for_tiny_and_large_arguments(order):
    z = [0.0, 1e-12, -1e-8, 1e-5, -1e-3, 0.1, -0.7, 1.0, -3.0, 5.0, -11.0, -20.0]
    expected = torch.tensor([reference_phi(order, v) for v in z], dtype=torch.float64)
    torch.testing.assert_close(
        phi(order, torch.tensor(z, dtype=torch.float64)), expected, rtol=1e-13, atol=0
    )


def test_phi_functions_are_their_closed_forms():
    z = torch.tensor([-6.0, -2.0, -0.5, 0.5, 3.0], dtype=torch.float64)
    closed = [z.expm1() / z, (z.expm1() - z) / z**2, (z.expm1() - z - z**2 / 2) / z**3]
    for order, expected in enumerate(closed, start=1):
        torch.testing.assert_close(phi(order, z), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("gap", [1e-3, 1e-6])
@pytest.mark.parametrize(
    "solver", [DPMSolverPP(3, False), UniPC(3, "bh2", False), AdamsBashforth(3), DEIS(3)], ids=repr
)
def test_weights_of_tiny_steps_sum_to_one_first_order_step(solver, gap):
    # Constant answers are integrated exactly however small the step; naive differences of phi would
    # lose digits.
    tau = torch.tensor([[1 + 3 * gap, 1 + 2 * gap, 1 + gap, 1]], dtype=torch.float64)
    found = step_coefficients(solver, EDM(), solver.form(Form.NOISE, EDM()), tau, 9)
    torch.testing.assert_close(found.predict.sum(1), found.unit, rtol=1e-8, atol=0)
    torch.testing.assert_close(
        found.unit.abs(), torch.tensor([gap], dtype=torch.float64), rtol=2 * gap, atol=0
    )


@pytest.mark.parametrize("make", [AdamsBashforth, IPNDM, DEIS, DPMSolverPP, UniPC])
@pytest.mark.parametrize("order", [0, 5])
def test_orders_that_do_not_exist_are_refused(make, order):
    with pytest.raises(ValueError, match="order must be"):
        make(order)


def test_deis_refuses_a_flow_that_starts_without_signal():
    problem = Gaussian(RectifiedFlow(), Form.VELOCITY)
    plan = Discretization.plain(grids.uniform(problem.schedule, 3))
    with pytest.raises(ValueError, match="t_max = 1 is pure noise, .* such as adams_bashforth"):
        solve(problem, problem.start(1), plan, DEIS(2))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "nodes", [[80, 0.002], [80, 3, 0.002], [80, 20, 1, 0.002], [80, 79, 78, 0.002]], ids=str
)
def test_deis_integrates_widest_intervals_to_rounding(nodes, order):
    """Weights sum to the step; and a line in VP time is integrated to what fine sums in log sigma
    give."""
    schedule, tau = EDM(), torch.tensor([nodes], dtype=torch.float64)
    step = step_coefficients(DEIS(order), schedule, Form.NOISE, tau, len(nodes) - 1)
    torch.testing.assert_close(step.predict.sum(1), step.unit, rtol=1e-11, atol=0)
    clock = VPClock.fit(schedule)
    past = clock.time(tau[0, :-1]).flip(0)[: step.predict.shape[1]]
    fine = torch.linspace(
        math.log(nodes[-2]), math.log(nodes[-1]), 400_001, dtype=torch.float64
    ).exp()
    moved = torch.trapezoid(clock.time(fine), fine)
    if len(past) > 1:  # order one takes it for a constant
        torch.testing.assert_close((step.predict[0] * past).sum(), moved, rtol=1e-7, atol=1e-9)

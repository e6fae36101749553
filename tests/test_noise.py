import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indis import (
    EDM,
    DiscreteVP,
    Discretization,
    Form,
    LinearVP,
    NoiseSchedule,
    RectifiedFlow,
    ScaledLinearVP,
    TableVP,
    Wrapped,
    convert,
    grids,
    prior,
    solve,
    solvers,
)
from indis.noise import levels, limit_shift, shifted, zero_time
from problems import SCHEDULES, Gaussian
from small_cases import sentence

each = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
PRESERVING = [s for name, s in SCHEDULES.items() if name.endswith(("vp", "ddpm"))]


def times(schedule: NoiseSchedule, count: int = 401) -> torch.Tensor:
    """Interior times, even and (for the small ones) geometric."""
    even = torch.linspace(schedule.t_min, schedule.t_max, count + 2, dtype=torch.float64)[1:-1]
    small = schedule.t_max * torch.logspace(-4, -1e-3, 101, dtype=torch.float64)
    return torch.cat([even, small[small > schedule.t_min]])


@each
def test_schedules_satisfy_the_protocol(schedule):
    assert isinstance(schedule, NoiseSchedule)
    assert schedule.t_min < schedule.t_max
    assert schedule.domain in ("time", "log_snr")


@each
def test_time_inverts_log_snr(schedule):
    t = times(schedule)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-10, atol=1e-12)


@each
def test_log_snr_inverts_time(schedule):
    ends = schedule.log_snr(torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64))
    level = torch.lerp(ends[0], ends[1], torch.linspace(0.05, 0.95, 200, dtype=torch.float64))
    torch.testing.assert_close(
        schedule.log_snr(schedule.time(level)), level, rtol=1e-10, atol=1e-10
    )


@each
def test_log_snr_is_the_log_of_alpha_over_sigma_and_decreases(schedule):
    t = times(schedule).sort().values
    level = schedule.log_snr(t)
    torch.testing.assert_close(
        level, (schedule.alpha(t) / schedule.sigma(t)).log(), rtol=1e-11, atol=1e-11
    )
    distinct = t.diff() > 0
    assert bool((level.diff()[distinct] < 0).all())


@each
def test_every_method_keeps_shape_and_dtype(schedule):
    for dtype in (torch.float32, torch.float64):
        for shape in ((), (3,), (2, 3)):
            t = torch.full(shape, 0.5 * (schedule.t_min + schedule.t_max), dtype=dtype)
            for method in (schedule.alpha, schedule.sigma, schedule.log_snr):
                assert (method(t).dtype, method(t).shape) == (dtype, t.shape)
            level = schedule.log_snr(t)
            assert (schedule.time(level).dtype, schedule.time(level).shape) == (dtype, t.shape)


@each
def test_every_method_is_elementwise(schedule):
    t = times(schedule)[::37]
    for method in (schedule.alpha, schedule.sigma, schedule.log_snr):
        one_by_one = torch.stack([method(v) for v in t])
        torch.testing.assert_close(method(t), one_by_one, rtol=1e-14, atol=1e-14)


@each
def test_derivatives_are_those_of_finite_differences(schedule):
    t = (
        times(schedule)[5:300:40] + 1e-3 * math.pi * schedule.t_max
    ).requires_grad_()  # between the table's entries
    eps = 1e-6 * schedule.t_max
    for method in (schedule.alpha, schedule.sigma, schedule.log_snr):
        assert torch.autograd.gradcheck(method, [t], eps=eps, atol=1e-6, rtol=1e-5)
    level = schedule.log_snr(t).detach().requires_grad_()
    assert torch.autograd.gradcheck(
        schedule.time, [level], eps=1e-6, atol=1e-5 * schedule.t_max, rtol=1e-4
    )


@pytest.mark.parametrize("schedule", PRESERVING, ids=repr)
def test_variance_is_preserved(schedule):
    t = times(schedule)
    torch.testing.assert_close(
        schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("schedule", [LinearVP(), ScaledLinearVP()], ids=repr)
def test_alpha_is_the_integral_of_beta(schedule):
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    low, high = schedule.beta_min, schedule.beta_max
    if isinstance(schedule, LinearVP):
        beta = low + t * (high - low)
    else:
        beta = (math.sqrt(low) + t * (math.sqrt(high) - math.sqrt(low))) ** 2
    integral = torch.trapezoid(beta, t)
    torch.testing.assert_close(schedule.alpha(t[-1]), (-integral / 2).exp(), rtol=1e-7, atol=0)


def test_linear_vp_has_the_published_values():
    # exp(-0.25 (20 - 0.1) - 0.05) at t = 1, Song et al. (2021), eq. 33
    alpha = LinearVP().alpha(torch.tensor([1.0, 0.5], dtype=torch.float64))
    expected = torch.tensor(
        [math.exp(-5.025), math.exp(-0.25 * 19.9 * 0.25 - 0.025)], dtype=torch.float64
    )
    torch.testing.assert_close(alpha, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("spacing", ["linear", "scaled_linear"])
def test_discrete_tables_are_cumulative_products_of_the_betas(spacing):
    schedule = DiscreteVP(0.00085, 0.012, spacing=spacing)
    power = 0.5 if spacing == "scaled_linear" else 1
    betas = torch.linspace(0.00085**power, 0.012**power, 1000, dtype=torch.float64) ** (1 / power)
    alpha_bar = (1 - betas).cumprod(0)
    t = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t), alpha_bar.sqrt(), rtol=1e-11, atol=0)
    torch.testing.assert_close(schedule.sigma(t), (1 - alpha_bar).sqrt(), rtol=1e-11, atol=0)


def test_stable_diffusion_ends_at_its_known_noise_levels():
    schedule = DiscreteVP()
    ratio = (-schedule.log_snr(torch.tensor([999.0, 0.0], dtype=torch.float64))).exp()
    torch.testing.assert_close(
        ratio, torch.tensor([14.6146, 0.0292], dtype=torch.float64), rtol=0, atol=5e-5
    )


def test_discrete_times_between_entries_interpolate_log_snr():
    schedule = DiscreteVP()
    t = torch.tensor([10.0, 11.0, 10.25], dtype=torch.float64)
    low, high, between = schedule.log_snr(t)
    torch.testing.assert_close(between, 0.75 * low + 0.25 * high, rtol=1e-13, atol=0)


def test_scaled_linear_vp_is_the_continuous_form_of_the_table():
    t = torch.arange(50, 1000, 50, dtype=torch.float64)
    torch.testing.assert_close(
        ScaledLinearVP().log_snr((t + 1) / 1000), DiscreteVP().log_snr(t), rtol=0, atol=2e-2
    )


def test_edm_is_sigma_equals_t():
    t = torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    torch.testing.assert_close(EDM().sigma(t), t, rtol=0, atol=0)
    torch.testing.assert_close(EDM().alpha(t), torch.ones(3, dtype=torch.float64), rtol=0, atol=0)


def test_the_ends_of_a_flow_are_pure_data_and_pure_noise_with_a_finite_log_snr():
    schedule, ends = (
        RectifiedFlow(),
        torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True),
    )
    assert schedule.alpha(ends).tolist() == [1, 0]
    assert schedule.sigma(ends).tolist() == [0, 1]
    level = schedule.log_snr(ends)
    data, noise = level.tolist()
    assert 18 < data < 19
    assert -19 < noise < -18
    (gradient,) = torch.autograd.grad(level.sum(), ends)
    assert bool(gradient.isfinite().all())


def test_flows_and_edm_share_their_log_snr_where_the_ratio_is_the_same():
    t = torch.linspace(0.01, 0.98, 50, dtype=torch.float64)
    torch.testing.assert_close(
        RectifiedFlow().log_snr(t), EDM().log_snr(t / (1 - t)), rtol=1e-12, atol=1e-13
    )


@each
def test_the_prior_is_noise_of_the_last_sigma(schedule):
    noise = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    start = prior(schedule, noise)
    assert start.dtype == torch.float32
    sigma = float(schedule.sigma(torch.tensor(schedule.t_max, dtype=torch.float64)))
    torch.testing.assert_close(start, noise * sigma, rtol=1e-6, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.floats(0.001, 0.999),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_round_trips_hold_at_any_time_in_both_precisions(name, fraction, dtype):
    schedule = SCHEDULES[name]
    t = torch.tensor(schedule.t_min + fraction * (schedule.t_max - schedule.t_min), dtype=dtype)
    tolerance = 2e-3 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(
        schedule.time(schedule.log_snr(t)), t, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EDM(0, 80), "times must satisfy 0 < t_min < t_max, got 0 and 80"),
        (lambda: EDM(80, 0.002), "times must satisfy 0 < t_min < t_max, got 80 and 0.002"),
        (lambda: EDM(0.002, math.inf), "times must satisfy 0 < t_min < t_max, got 0.002 and inf"),
        (lambda: EDM(math.nan), "times must satisfy 0 < t_min < t_max, got nan and 80"),
        (
            lambda: RectifiedFlow(0.0, 1.1),
            "times must satisfy 0 <= t_min < t_max <= 1, got 0 and 1.1",
        ),
        (lambda: RectifiedFlow(-0.1), "times must satisfy 0 <= t_min < t_max <= 1, got -0.1 and 1"),
        (lambda: LinearVP(t_min=0), "times must satisfy 0 < t_min < t_max, got 0 and 1"),
        (lambda: LinearVP(20, 0.1), "betas must satisfy 0 < first < last, got 20 and 0.1"),
        (lambda: ScaledLinearVP(0.0), "betas must satisfy 0 < first < last, got 0 and 12"),
        (
            lambda: DiscreteVP(steps=100, t_max=999.0),
            "times must satisfy 0 <= t_min < t_max <= 99, got 0 and 999",
        ),
        (lambda: DiscreteVP(0.85, 12), "betas must satisfy 0 < first < last < 1, got 0.85 and 12"),
        (
            lambda: DiscreteVP(spacing="cosine"),
            "spacing must be linear or scaled_linear, got 'cosine'",
        ),
        (lambda: EDM(domain="sigma"), "domain must be time or log_snr, got 'sigma'"),
        (lambda: DiscreteVP(prior="half"), "prior must be marginal or unit, got 'half'"),
    ],
)
def test_schedules_that_mean_nothing_are_refused(make, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        make()
    sentence(error)


@pytest.mark.parametrize(
    ("schedule", "latest"),
    [
        (RectifiedFlow(0.02, 0.98), 0.99),
        (RectifiedFlow(0.02, 1.0), 1.0),
        (DiscreteVP(t_min=1.0), 999.0),
        (DiscreteVP(t_min=1.0, t_max=900.0), 949.5),
        (LinearVP(), 1.0),
        (ScaledLinearVP(t_max=1.5), 1.5),  # where somebody samples from, a network must be
        (EDM(), math.inf),
    ],
    ids=str,
)
def test_shifts_do_not_lead_to_where_no_network_is(schedule, latest):
    tau = torch.tensor(
        [schedule.t_max, (schedule.t_min + schedule.t_max) / 2, schedule.t_min], dtype=torch.float64
    )
    for size in (0.0, 1e-3, 0.3, 1e4):
        for sign in (-1, 1):
            wish = sign * size * tau
            asked = tau + limit_shift(schedule, tau, wish)
            torch.testing.assert_close(
                asked, (tau + wish).clamp(schedule.t_min / 2, latest), rtol=1e-12, atol=1e-12
            )


def test_any_table_is_the_schedule_that_its_formula_gives():
    formula = DiscreteVP()
    table = TableVP((formula.alpha(torch.arange(1000.0, dtype=torch.float64)) ** 2).tolist())
    assert (table.t_min, table.t_max, table.limit) == (0.0, 999.0, 999)
    t = times(formula)
    for name in ("alpha", "sigma", "log_snr"):
        torch.testing.assert_close(
            getattr(table, name)(t), getattr(formula, name)(t), rtol=1e-9, atol=1e-12
        )
    torch.testing.assert_close(table.time(table.log_snr(t)), t, rtol=1e-10, atol=1e-9)
    assert table == TableVP(
        torch.tensor(table.alphas_cumprod, dtype=torch.float64)
    ) and "0.99" not in repr(table)


@pytest.mark.parametrize(
    "table",
    [
        [],
        [0.9],
        [0.9, 0.95],
        [1.0, 0.5],
        [0.5, 0.0],
        [0.9, 0.5, 0.0, 0.0],
        [0.5, math.nan],
        [[0.9, 0.5]],
    ],
    ids=str,
)
def test_tables_that_do_not_fall_inside_the_unit_interval_are_refused(table):
    with pytest.raises(
        ValueError, match=r"alphas_cumprod must be at least two numbers that fall strictly inside"
    ) as e:
        TableVP(table)
    sentence(e)


def test_times_beyond_a_table_are_refused():
    with pytest.raises(ValueError, match="0 <= t_min < t_max <= 2, got 0 and 5"):
        TableVP((0.9, 0.5, 0.1), t_max=5)


@pytest.mark.parametrize(
    ("schedule", "time"),
    [(s, -1.0 if isinstance(s, DiscreteVP) else 0.0) for s in SCHEDULES.values()]
    + [(TableVP((0.9, 0.5, 0.1)), -1.0), (TableVP((0.9, 0.5, 0.0)), -1.0)],
    ids=str,
)
def test_a_time_stands_for_no_noise_at_all(schedule, time):
    assert zero_time(schedule) == time <= schedule.t_min
    end = torch.tensor([time], dtype=torch.float64)
    assert (float(schedule.alpha(end)), float(schedule.sigma(end))) == (1.0, 0.0)
    if schedule.domain == "log_snr":
        assert float(schedule.log_snr(end)) == math.inf
        assert float(schedule.time(torch.tensor([math.inf], dtype=torch.float64))) == time


@each
def test_a_shifted_time_has_the_ratio_of_noise_to_signal_that_was_asked_for(schedule):
    t = times(schedule)[5:390:7]
    factor = torch.linspace(-0.4, 0.4, 5, dtype=torch.float64)[:, None]
    later = shifted(schedule, t, factor)
    assert later.shape == (5, len(t))
    expected = schedule.log_snr(t) - factor
    torch.testing.assert_close(schedule.log_snr(later), expected, rtol=1e-9, atol=1e-9)


@each
def test_a_factor_of_one_leaves_every_bit_of_a_time_and_its_gradients(schedule):
    t = times(schedule).requires_grad_()
    factor = torch.zeros_like(t, requires_grad=True)
    same = shifted(schedule, t, factor)
    assert torch.equal(same, t)
    by_time, by_factor = torch.autograd.grad(same.sum(), [t, factor])
    torch.testing.assert_close(by_time, torch.ones_like(t), rtol=1e-12, atol=1e-12)
    step = 1e-6
    ahead, behind = (shifted(schedule, t.detach(), factor.detach() + s) for s in (step, -step))
    slope = (ahead - behind) / (2 * step)
    smooth = torch.ones_like(t, dtype=torch.bool)
    if hasattr(schedule, "table"):  # at an entry of a table the slope jumps
        smooth = (t - t.round()).abs() > 1e-3
    torch.testing.assert_close(by_factor[smooth], slope[smooth], rtol=1e-5, atol=1e-7)


def zero_terminal(steps=1000):
    """Stable Diffusion's table, moved and scaled so that sqrt(alpha_bar) ends at 0 (Lin et al.)."""
    root = DiscreteVP(steps=steps).alpha(torch.arange(steps, dtype=torch.float64))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return TableVP(root.square())


def test_a_table_may_end_at_pure_noise():
    schedule = zero_terminal()
    assert (schedule.t_max, schedule.limit) == (999.0, 999.0)
    t = torch.tensor([998.0, 998.25, 998.9, 999.0], dtype=torch.float64, requires_grad=True)
    alpha = schedule.alpha(t)
    left = torch.tensor([1.0, 0.75, 0.1, 0.0], dtype=torch.float64)
    torch.testing.assert_close(alpha, left * alpha[0], rtol=1e-9, atol=0)
    assert (alpha[-1].item(), schedule.sigma(t)[-1].item()) == (0.0, 1.0)
    level = schedule.log_snr(t)
    assert bool((level.diff() < 0).all())
    assert -19 < level[-1].item() < -18
    torch.testing.assert_close(
        level[:3], (alpha / schedule.sigma(t)).log()[:3], rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(schedule.time(level), t, rtol=0, atol=5e-5)
    for together, alone in zip(levels(schedule, t), (alpha, schedule.sigma(t), level), strict=True):
        assert torch.equal(together, alone)
    for value in (alpha, schedule.sigma(t), level, schedule.time(level.detach() + 0 * t)):
        (slope,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        assert bool(slope.isfinite().all())


@each
def test_noise_may_begin_with_the_scale_that_diffusers_begins_with(schedule):
    if not hasattr(schedule, "prior"):
        pytest.skip("no variance-preserving schedule")
    unit = replace(schedule, prior="unit")
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prior(unit, noise), noise)
    assert unit != schedule


def test_both_beginnings_are_those_of_diffusers_schedulers():
    diffusers = pytest.importorskip("diffusers")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    schedule = DiscreteVP()
    noise = torch.ones(1, 1)
    ddim = diffusers.DDIMScheduler(**betas)
    assert float(prior(replace(schedule, prior="unit"), noise)) == float(ddim.init_noise_sigma)
    euler = diffusers.EulerDiscreteScheduler(**betas, timestep_spacing="trailing")
    euler.set_timesteps(10)
    # Euler's state is x / alpha, and its first one sigma / alpha.
    alpha = float(schedule.alpha(torch.tensor(999.0, dtype=torch.float64)))
    expected = float(euler.init_noise_sigma) * alpha
    assert float(prior(schedule, noise)) == pytest.approx(expected, rel=1e-5)
    # A "leading" grid begins earlier, still with unit noise.
    ddim.set_timesteps(10)
    leading = DiscreteVP(t_max=float(ddim.timesteps[0]), prior="unit")
    assert (leading.t_max, float(prior(leading, noise))) == (900.0, 1.0)


def test_noise_that_half_precision_cannot_hold_is_refused():
    schedule = EDM(0.002, 20_000)
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert bool(prior(schedule, noise).isfinite().all())
    assert bool(prior(schedule, noise.bfloat16()).isfinite().all())
    assert bool(prior(EDM(), noise.half()).isfinite().all())
    words = "noise must be of a dtype that holds sigma(t_max) = 20000 times a normal number"
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        prior(schedule, noise.half())
    assert "float32" in sentence(error) and "65504" in sentence(error)


def test_a_table_of_any_length_begins_at_its_last_step():
    betas = {"beta_start": 0.00085 / 4, "beta_end": 0.012 / 4, "steps": 4000}
    schedule = DiscreteVP(**betas)
    assert schedule.t_max == 3999
    table = TableVP(schedule.alpha(torch.arange(4000, dtype=torch.float64)).square())
    for name in ("alpha", "sigma"):
        last = torch.tensor([3999.0], dtype=torch.float64)
        torch.testing.assert_close(getattr(schedule, name)(last), getattr(table, name)(last))
    assert DiscreteVP().t_max == 999 and DiscreteVP(steps=100).t_max == 99


@pytest.mark.parametrize("solver", ["euler", "adams_bashforth:2", "dpmpp:2", "unipc:2", "heun"])
def test_velocities_and_v_run_from_pure_noise_of_a_table(solver):
    problem = Gaussian(zero_terminal(), Form.VELOCITY, mean=(0.3, -0.2), variance=(0.25, 0.5))

    def v(x, t, condition):
        alpha, sigma = (
            level(t)[:, None] for level in (problem.schedule.alpha, problem.schedule.sigma)
        )
        noise = convert(
            problem(x, t, condition), Form.VELOCITY, Form.NOISE, x=x, schedule=problem.schedule, t=t
        )
        data = convert(
            problem(x, t, condition), Form.VELOCITY, Form.DATA, x=x, schedule=problem.schedule, t=t
        )
        return alpha * noise - sigma * data

    x = problem.start(64)
    ends = [torch.tensor(t, dtype=torch.float64) for t in (999.0, 0.0)]
    exact = problem.exact(x, *ends)
    plan = Discretization.plain(grids.uniform(problem.schedule, 40))
    for denoiser in (problem, Wrapped.from_v(v, problem.schedule, (2,))):
        sample = solve(denoiser, x, plan, solvers.named(solver))
        assert float((sample - exact).abs().max()) < (0.15 if solver == "euler" else 0.06)
    with pytest.raises(ValueError, match="is pure noise, where no noise prediction is of use"):
        solve(Gaussian(problem.schedule, Form.NOISE), x, plan, solvers.named(solver))

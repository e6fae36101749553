import math
from dataclasses import dataclass

import pytest
import torch

from indis import (
    EDM,
    DiscreteVP,
    Discretization,
    Form,
    LinearVP,
    RectifiedFlow,
    TableVP,
    Wrapped,
    grids,
    solve,
    solvers,
)
from indis.noise import VPClock, ratio, zero_time
from problems import SCHEDULES, Gaussian
from small_cases import sentence

SHIFTED = ("flow_shift", "resolution")
RATIOS = ("polynomial", "vp_time")  # spread in sigma / alpha
ENDLESS = ["rectified_flow"]  # sigma / alpha is infinite at its beginning and zero at its end


@dataclass(frozen=True)
class Zero(LinearVP):
    """A VP schedule whose last step is pure noise ("zero terminal SNR")."""

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return torch.where(t == self.t_max, 0.0, super().alpha(t))


def valid(grid: str, schedule: str) -> bool:
    return not (
        grid in SHIFTED and SCHEDULES[schedule].t_max > 1 or grid in RATIOS and schedule in ENDLESS
    )


VALID = [(g, s) for g in grids.GRIDS for s in SCHEDULES if valid(g, s)]

# Printed by the public implementation of Karras et al.'s and Zhang & Chen's grids, sigma 80 ...
# 0.002.
VECTORS = {
    ("polynomial", 3): [80, 9.7232, 0.4700, 0.002],
    ("polynomial", 5): [80, 24.4083, 5.8389, 0.9654, 0.0851, 0.002],
    ("polynomial", 7): [80, 34.9922, 13.6986, 4.6371, 1.2866, 0.2675, 0.0352, 0.002],
    ("log_snr", 3): [80, 2.3392, 0.0684, 0.002],
    ("log_snr", 5): [80, 9.609, 1.1542, 0.1386, 0.0167, 0.002],
    ("log_snr", 7): [80, 17.6057, 3.8745, 0.8527, 0.1876, 0.0413, 0.0091, 0.002],
    ("vp_time", 3): [80, 6.9503, 1.2867, 0.002],
    ("vp_time", 5): [80, 16.5063, 4.7464, 1.7541, 0.6502, 0.002],
    ("vp_time", 7): [80, 25.0154, 9.3124, 4.0679, 2.0043, 1.0249, 0.4447, 0.002],
}


@pytest.mark.parametrize(("name", "steps"), VECTORS)
def test_grids_of_edm_are_the_published_ones(name, steps):
    expected = torch.tensor([VECTORS[name, steps]], dtype=torch.float64)
    # Four printed decimals; the public VP time computes its betas in single precision.
    rtol = 2e-5 if name == "vp_time" else 0
    torch.testing.assert_close(grids.GRIDS[name](EDM(), steps), expected, rtol=rtol, atol=5.1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 30, 100])
@pytest.mark.parametrize(("name", "schedule"), VALID)
def test_every_grid_decreases_strictly_between_exact_ends_on_every_schedule(name, schedule, steps):
    schedule = SCHEDULES[schedule]
    tau = grids.GRIDS[name](schedule, steps)
    assert (tau.shape, tau.dtype) == ((1, steps + 1), torch.float64)
    assert bool((tau.diff(dim=1) < 0).all())
    to_zero = name == "natural" and isinstance(schedule, DiscreteVP)  # a table still holds noise
    end = zero_time(schedule) if to_zero else schedule.t_min
    assert (float(tau[0, 0]), float(tau[0, -1])) == (schedule.t_max, end)


@pytest.mark.parametrize("name", SHIFTED)
@pytest.mark.parametrize("schedule", ["edm", "discrete_vp"])
def test_shifted_grids_refuse_times_beyond_one_where_their_formula_has_a_pole(name, schedule):
    with pytest.raises(ValueError, match=r"needs times in \[0, 1\], got t_max = "):
        grids.GRIDS[name](SCHEDULES[schedule], 3)


@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.parametrize(
    "schedule", [RectifiedFlow(), RectifiedFlow(0.01, 1.0), RectifiedFlow(0.0, 0.9)], ids=str
)
def test_grids_of_the_noise_ratio_refuse_schedules_on_which_it_has_no_end(name, schedule):
    """They would put all nodes but one within a thousandth of the end."""
    with pytest.raises(ValueError) as error:
        grids.named(name)(schedule, 5)
    text = sentence(error)
    assert name in text and "alpha(t_max) > 0 and sigma(t_min) > 0" in text and "flow_shift" in text


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (EDM(), "polynomial:7"),
        (LinearVP(), "polynomial:7"),
        (RectifiedFlow(), "uniform"),
        (RectifiedFlow(0.002, 0.988), "uniform"),
        (Zero(), "uniform"),
    ],
    ids=str,
)
def test_the_natural_grid_suits_the_schedule(schedule, name):
    assert grids.resolve_grid("natural", schedule) == name
    assert torch.equal(grids.named("natural")(schedule, 4), grids.named(name)(schedule, 4))
    assert grids.resolve_grid("log_snr", schedule) == "log_snr"


@pytest.mark.parametrize("name", ["edm", "rectified_flow_inside", "linear_vp", "discrete_vp"])
def test_grids_are_even_where_they_say(name):
    schedule = SCHEDULES[name]

    def spread(values: torch.Tensor) -> float:
        gaps = values[0].diff()
        return float((gaps / gaps.mean() - 1).abs().max())

    assert spread(grids.uniform(schedule, 6)) < 1e-9
    assert spread(grids.quadratic(schedule, 6).sqrt()) < 1e-9
    assert spread(schedule.log_snr(grids.log_snr(schedule, 6))) < 1e-9
    for rho in (1.0, 3.0, 7.0):
        assert spread(ratio(schedule, grids.polynomial(schedule, 6, rho)) ** (1 / rho)) < 1e-9
    clock = VPClock.fit(schedule)
    for rho in (1.0, 2.0):
        assert (
            spread(clock.time(ratio(schedule, grids.vp_time(schedule, 6, rho))) ** (1 / rho)) < 1e-9
        )


def test_the_flow_shift_is_the_formula_of_sd3():
    t = torch.linspace(1, 0, 6, dtype=torch.float64)
    expected = (3 * t / (1 + 2 * t))[None]
    torch.testing.assert_close(
        grids.flow_shift(RectifiedFlow(), 5), expected, rtol=1e-14, atol=1e-15
    )
    torch.testing.assert_close(
        grids.flow_shift(RectifiedFlow(), 5, 1.0), t[None], rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize(
    ("tokens", "mu"), [(256, 0.5), (4096, 1.15), (1024, 0.5 + 0.65 * 768 / 3840)]
)
def test_the_resolution_shift_is_the_line_of_flux(tokens, mu):
    expected = grids.flow_shift(RectifiedFlow(), 4, math.exp(mu))
    torch.testing.assert_close(
        grids.resolution(RectifiedFlow(), 4, tokens), expected, rtol=1e-13, atol=0
    )


def test_the_vp_clock_of_a_linear_vp_process_is_its_own_time():
    clock = VPClock.fit(LinearVP())
    assert (clock.beta_d, clock.beta_min) == pytest.approx((19.9, 0.1), rel=1e-9)
    torch.testing.assert_close(
        grids.vp_time(LinearVP(), 6), grids.uniform(LinearVP(), 6), rtol=1e-10, atol=1e-12
    )


# Not for a flow from pure noise to pure data, whose ratio spans sixteen decades: the clock loses
# its low end there.
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "rectified_flow"])
def test_the_vp_clock_meets_both_ends_inverts_itself(name):
    schedule = SCHEDULES[name]
    clock = VPClock.fit(schedule)
    u = torch.linspace(1e-3, 1, 40, dtype=torch.float64)
    ends = ratio(schedule, torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64))
    torch.testing.assert_close(clock.ratio(u)[[0, -1]], ends, rtol=1e-9, atol=0)
    torch.testing.assert_close(clock.time(clock.ratio(u)), u, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", grids.GRIDS)
def test_no_steps_are_no_grid(name):
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        grids.GRIDS[name](SCHEDULES["rectified_flow_inside"], 0)


def test_listed_times_become_a_grid():
    tau = grids.listed(EDM(), [80, 10.9836, 2, 0.002])
    torch.testing.assert_close(
        tau, torch.tensor([[80, 10.9836, 2, 0.002]], dtype=torch.float64), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([80.0], "at least two"),
        ([80.0, 80.0, 1.0], "strictly decreasing"),
        ([1.0, 2.0], "strictly decreasing"),
        ([80.0, float("nan"), 1.0], "strictly decreasing"),
        ([81.0, 1.0], r"must lie in \[0.002, 80\]"),
        ([80.0, 0.001], r"must lie in \[0.002, 80\]"),
    ],
)
def test_listed_times_that_are_no_grid_are_refused(times, message):
    with pytest.raises(ValueError, match=message):
        grids.listed(EDM(), times)


@pytest.mark.parametrize("name", grids.GRIDS)
def test_names_mean_grids(name):
    torch.testing.assert_close(
        grids.named(name)(RectifiedFlow(0.002, 0.988), 4),
        grids.GRIDS[name](RectifiedFlow(0.002, 0.988), 4),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize(
    ("spec", "grid"),
    [
        ("polynomial:3", grids.polynomial(RectifiedFlow(0.1, 0.9), 4, 3.0)),
        ("vp_time:2", grids.vp_time(RectifiedFlow(0.1, 0.9), 4, 2.0)),
        ("flow_shift:1.5", grids.flow_shift(RectifiedFlow(0.1, 0.9), 4, 1.5)),
        ("resolution:1024", grids.resolution(RectifiedFlow(0.1, 0.9), 4, 1024)),
    ],
)
def test_parameters_in_names_are_used(spec, grid):
    torch.testing.assert_close(grids.named(spec)(RectifiedFlow(0.1, 0.9), 4), grid, rtol=0, atol=0)
    plain = grids.named(spec.partition(":")[0])(RectifiedFlow(0.1, 0.9), 4)
    assert float((plain - grid).abs().max()) > 1e-3


def test_a_list_of_times_is_a_grid_of_its_own_number_of_steps():
    grid = grids.named("list:80,10,1,0.002")
    assert grid(EDM(), 3).tolist() == [[80, 10, 1, 0.002]]
    assert grid(EDM(), 3).dtype == torch.float64
    assert grids.named("list:0.987654,0.5,0.01")(RectifiedFlow(0.002, 80 / 81), 2).shape == (
        1,
        3,
    )  # rounded
    with pytest.raises(ValueError, match="steps must be 3 for a grid of 4 listed times, got 5"):
        grid(EDM(), 5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("list:70,10,1,0.002", "a listed grid must begin at t_max = 80, got 70"),
        ("list:80,10,10,0.002", "strictly decreasing"),
        ("list:80,10,1,0.001", r"times must lie in \[0.002, 80\]"),
        ("list:80,10,0.001,0", r"times must lie in \[0.002, 80\]"),
    ],
)
def test_listed_times_that_no_sampler_can_take_are_refused(spec, message):
    with pytest.raises(ValueError, match=message) as error:
        grids.named(spec)(EDM(), 3)
    sentence(error)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("list", "grid list needs at least two numbers"),
        ("list:80", "grid list needs at least two numbers"),
        ("list:80,ten", "grid list needs at least two numbers"),
        ("list:80,nan,1", "grid list needs at least two numbers"),
        ("cosine", "grid must be one of natural, uniform, log_snr"),
        ("", "grid must be one of"),
        ("uniform:2", "takes no parameter"),
        ("polynomial:7,20,3", "must be a positive number or two, got 'polynomial:7,20,3'"),
        ("flow_shift:3,2", "must be a positive number, got 'flow_shift:3,2'"),
        ("uniform+zeros", r"grid may end in \+zero"),
        ("uniform+", r"grid may end in \+zero"),
        ("polynomial:seven", "must be a positive number"),
        ("polynomial:0", "must be a positive number"),
        ("polynomial:-1", "must be a positive number"),
        ("flow_shift:nan", "must be a positive number"),
        ("vp_time:inf", "must be a positive number"),
    ],
)
def test_names_that_mean_nothing_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        grids.named(spec)


SD_LIST = "14.615,6.475,3.861,2.697,1.886,1.396,0.963,0.652,0.399,0.152,0.029"


@pytest.mark.parametrize("end", ["", ",0.0"])
def test_the_list_that_everybody_copies_for_stable_diffusion_is_taken(end):
    schedule = EDM(0.0291671, 14.6146)
    steps = 10 + bool(end)
    tau = grids.named(f"list:{SD_LIST}{end}")(schedule, steps)
    assert (float(tau[0, 0]), float(tau[0, 10])) == (14.6146, 0.0291671)
    assert tau[0, 1:10].tolist() == [float(t) for t in SD_LIST.split(",")[1:10]]
    assert grids.ends_at_zero(schedule, tau) == bool(end)
    assert float(tau[0, -1]) == (0.0 if end else 0.0291671)


@pytest.mark.parametrize("times", ["14.6,1,0.029", "14.615,1,0.02", "14.62,1,0.03"])
def test_other_ends_are_not_moved_and_refused_with_numbers_to_type(times):
    schedule = EDM(0.029167123456, 14.614642)
    with pytest.raises(ValueError) as error:
        grids.named(f"list:{times}")(schedule, 2)
    text = sentence(error)
    assert "14.614642" in text
    assert "0.029167123456" in text or "must begin at t_max" in text


@pytest.mark.parametrize(
    ("schedule", "spec", "nodes"),
    [
        (EDM(), "list:80,10,0", [80, 10, 0]),
        (EDM(), "list:80,10+zero", [80, 10, 0]),
        (RectifiedFlow(0.002, 0.988), "list:0.988,0.5,0", [0.988, 0.5, 0]),
        (DiscreteVP(), "list:999,500,-1", [999, 500, -1]),
        (DiscreteVP(), "list:999,500,0+zero", [999, 500, 0, -1]),
        (DiscreteVP(t_min=1.0), "list:999,500,0", [999, 500, -1]),
    ],
    ids=str,
)
def test_a_list_may_go_to_no_noise_at_all(schedule, spec, nodes):
    tau = grids.named(spec)(schedule, len(nodes) - 1)
    assert tau.tolist() == [nodes]
    assert grids.ends_at_zero(schedule, tau)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), DiscreteVP()], ids=repr)
def test_a_list_that_ends_in_zero_ends_at_t_min_where_this_is_zero(schedule):
    tau = grids.named(f"list:{schedule.t_max},0.5,0")(schedule, 2)
    assert tau.tolist() == [[schedule.t_max, 0.5, 0]]
    assert not grids.ends_at_zero(schedule, tau)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", ["natural", "uniform", "polynomial:3", "log_snr"])
@pytest.mark.parametrize("schedule", [EDM(), LinearVP(), DiscreteVP()], ids=repr)
def test_the_last_step_of_any_grid_may_go_to_no_noise_at_all(schedule, name, steps):
    tau = grids.named(f"{name}+zero")(schedule, steps)
    assert tau.shape == (1, steps + 1)
    assert float(tau[0, 0]) == schedule.t_max
    assert float(tau[0, -1]) == zero_time(schedule)
    assert grids.ends_at_zero(schedule, tau)
    if steps > 1:
        name = grids.resolve_grid(name, schedule, to_zero=False)
        plain = grids.named(name)(schedule, steps - 1)
        assert torch.equal(tau[:, :-1], plain)
        assert torch.equal(tau, grids.append_zero(schedule, plain))
        assert not grids.ends_at_zero(schedule, plain)
    with pytest.raises(ValueError, match="but it ends there"):
        grids.append_zero(schedule, tau)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        grids.named(f"{name}+zero")(schedule, 0)


def test_a_flow_that_ends_at_its_data_has_no_further_step():
    flow = RectifiedFlow()
    tau = grids.named("uniform+zero")(flow, 4)
    assert torch.equal(tau, grids.uniform(flow, 4))
    assert not grids.ends_at_zero(flow, tau)


def cosine():
    """Nichol & Dhariwal's table of 1000 steps; alpha_bar falls to 2.4e-9."""
    level = (torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * math.pi / 2
    betas = (1 - (level[1:].cos() / level[:-1].cos()) ** 2).clamp_max(0.999)
    return TableVP((1 - betas).cumprod(0))


def test_the_natural_grid_of_a_table_wastes_no_nodes_where_the_state_is_noise():
    table = cosine()
    assert grids.resolve_grid("natural", table) == "polynomial:7,20+zero"
    assert grids.resolve_grid("natural+zero", table) == "polynomial:7,20+zero"
    assert grids.resolve_grid("natural", DiscreteVP()) == "polynomial:7+zero"
    natural = grids.named(grids.resolve_grid("natural", table, to_zero=False))
    tau = natural(table, 20)
    assert (float(tau[0, 0]), float(tau[0, -1])) == (999, 0)
    assert int((ratio(table, tau) > 20).sum()) == 6
    assert int((ratio(table, grids.polynomial(table, 20)) > 20).sum()) == 15
    problem = Gaussian(table, Form.NOISE)
    x = problem.start(64)
    ends = [torch.tensor(t, dtype=torch.float64) for t in (table.t_max, table.t_min)]
    exact = problem.exact(x, *ends)

    def rounded(x, t, condition):
        return problem(x, t, condition).bfloat16().to(x.dtype)

    coarse = Wrapped(rounded, table, problem.shape, "noise")
    cases = [("ipndm:3", 5, 0.2), ("dpmpp:2", 5, 0.5), ("dpmpp:2", 10, 0.2), ("unipc:2", 10, 0.2)]
    for solver, steps, share in cases:
        for denoiser, slack in ((problem, 1), (coarse, 2)):
            errors = []
            for grid in (natural, grids.polynomial):
                plan = Discretization.plain(grid(table, steps))
                end = solve(denoiser, x, plan, solvers.named(solver))
                errors.append(float((end - exact).square().mean().sqrt()))
            assert errors[0] < slack * share * errors[1]


def test_a_polynomial_with_a_knee_runs_where_a_table_ends_at_pure_noise():
    table = TableVP((*cosine().alphas_cumprod[:-1], 0.0))
    assert grids.resolve_grid("natural", table) == "polynomial:7,20+zero"
    tau = grids.polynomial(table, 6, knee=20)
    level = ratio(table, tau) ** (1 / 7)
    gaps = level[0, 1:].diff()
    torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps), rtol=1e-6, atol=0)
    torch.testing.assert_close(20 ** (1 / 7) + gaps[0], level[0, 1], rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="must exceed sigma / alpha at t_min, 0.00"):
        grids.polynomial(table, 3, knee=1e-3)

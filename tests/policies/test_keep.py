"""What a time shift leaves as it is: with ``keep="data"`` the denoised sample that an answer means,
else the answer."""

import pytest
import torch

from indis import INDIS, IPNDM, UNCONDITIONAL, Euler, Fixed, Heun, Sampler, grids, solve
from indis.denoise import Form, Wrapped, convert
from indis.forms import shift_scales
from indis.logits import Bounds
from indis.noise import EDM, LinearVP, RectifiedFlow
from indis.plan import Discretization
from learned import closed, shared
from problems import seeded
from small_cases import TinyClasses
from solvers.cases import each_solver

VP, FLOW = LinearVP(t_min=0.05), RectifiedFlow(0.02, 0.95)
CASES = [
    (EDM(0.05, 5.0), Form.NOISE),
    (EDM(0.05, 5.0), Form.DATA),
    (FLOW, Form.VELOCITY),
    (FLOW, Form.DATA),
    (FLOW, Form.NOISE),
    (VP, Form.NOISE),
    (VP, Form.DATA),
    (VP, Form.VELOCITY),
]
each_case = pytest.mark.parametrize(
    ("schedule", "native"), CASES, ids=lambda v: getattr(v, "value", type(v).__name__)
)
SHIFTS = torch.tensor([[0.4, -0.3, 0.2]], dtype=torch.float64)


def data_of(x, t):
    """A denoised sample that depends on the state and on the time that is told."""
    return 0.5 * torch.tanh(x / (0.3 + t[:, None])) - 0.2 * t[:, None]


def in_form(schedule, native):
    """The denoiser of :func:`data_of` that answers in ``native``."""

    def answer(x, t, condition):
        return convert(data_of(x, t), Form.DATA, native, x=x, schedule=schedule, t=t)

    return Wrapped(answer, schedule, (3,), native)


def shifted(schedule, keep):
    """Three steps, shifted by shares of the log-SNR."""
    tau = grids.log_snr(schedule, 3)
    level = schedule.log_snr(tau[:, :-1])
    dtau = schedule.time(level - SHIFTS) - schedule.time(level)
    return Discretization(tau, dtau, torch.ones_like(dtau), keep=keep)


@each_case
def test_the_same_picture_is_shown_at_another_noise_level_and_its_data_kept(schedule, native):
    plan, x = shifted(schedule, "data"), seeded(4, 3, seed=1)
    end = solve(in_form(schedule, native), x, plan, Euler())
    velocity = native is Form.VELOCITY or (native is Form.DATA and schedule is FLOW)
    scale = (lambda t: schedule.alpha(t) + schedule.sigma(t)) if velocity else schedule.alpha
    for t, dtau, then in zip(plan.tau[0], plan.dtau[0], plan.tau[0, 1:], strict=False):
        data = data_of(x * scale(t + dtau) / scale(t), (t + dtau).expand(4))
        noise = (x - schedule.alpha(t) * data) / schedule.sigma(t)
        x = schedule.alpha(then) * data + schedule.sigma(then) * noise
    torch.testing.assert_close(end, x, rtol=1e-11, atol=1e-11)


@each_case
def test_an_answer_that_is_kept_is_the_network_s_for_the_state_as_it_stands(schedule, native):
    plan, x, denoiser = shifted(schedule, "answer"), seeded(4, 3, seed=1), in_form(schedule, native)
    end = solve(denoiser, x, plan, Euler())
    for t, dtau, then in zip(plan.tau[0], plan.dtau[0], plan.tau[0, 1:], strict=False):
        parts = {"x": x, "schedule": schedule, "t": t[None]}
        answer = denoiser(x, (t + dtau).expand(4), UNCONDITIONAL)
        data, noise = (convert(answer, native, form, **parts) for form in (Form.DATA, Form.NOISE))
        x = schedule.alpha(then) * data + schedule.sigma(then) * noise
    torch.testing.assert_close(end, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("schedule", [EDM(0.05, 5.0), VP], ids=["edm", "vp"])
@pytest.mark.parametrize("afs", [False, True])
@each_solver
def test_where_data_are_kept_the_form_of_the_answers_does_not_matter(solver, afs, schedule):
    """An analytic answer and Heun's trial are given at the node itself, so no shift is undone
    there."""
    options = {"analytic_first": afs}
    plan, x = shifted(schedule, "data"), seeded(4, 3, seed=1)
    noise, data = (
        solve(in_form(schedule, f), x, plan, solver, **options) for f in (Form.NOISE, Form.DATA)
    )
    torch.testing.assert_close(noise, data, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "schedule", [EDM(0.05, 5.0), LinearVP(t_min=0.05, t_max=0.6)], ids=["edm", "vp"]
)
@pytest.mark.parametrize("replan", ["first", "every"])
@pytest.mark.parametrize("solver", [IPNDM(3), Heun()], ids=["ipndm", "heun"])
def test_a_closed_loop_sees_and_uses_what_was_meant_at_the_time_that_was_told(
    solver, replan, schedule
):
    """Its own new shifts are of later questions; noise and data forms of one denoiser are one and
    the same to it."""

    def end(form):
        denoiser, bounds = in_form(schedule, form), Bounds(gamma=0, weights=0.2, keep="data")
        base = grids.log_snr(schedule, 3)
        torch.manual_seed(2)
        network = {"shape": (3,), "width": 8, "order": solver.memory}
        policy = closed(base, schedule, bounds, native=form, replan=replan, **network)
        policy.double()
        torch.nn.init.normal_(policy.logits.head, std=0.7)
        torch.nn.init.normal_(policy.logits.table, std=0.7)
        sampler, noise = Sampler(policy, solver), seeded(4, 3, seed=1)
        plan = sampler.realized_plan(denoiser, noise)
        assert plan.keep == "data" and plan.dtau.abs().amin() > 1e-4 and plan.tau[:, 1].std() > 1e-4
        replayed = Sampler(Fixed(plan.detach()), solver)(denoiser, noise)
        assert torch.equal(replayed, sampler(denoiser, noise))
        return replayed

    torch.testing.assert_close(end(Form.NOISE), end(Form.DATA), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("native", Form)
def test_input_and_output_keep_their_scale_without_a_shift(native):
    tau = torch.tensor([0.3, 0.7], dtype=torch.float64)
    for schedule in (EDM(), FLOW, VP):
        for scale in shift_scales(schedule, native, tau, torch.zeros_like(tau)):
            assert torch.equal(scale, torch.ones_like(tau))


@pytest.mark.parametrize(("schedule", "native"), CASES[:4])
def test_states_of_edm_and_of_flows_are_shown_as_they_are(schedule, native):
    tau = torch.linspace(schedule.t_min, 0.9, 50, dtype=torch.float64)
    assert torch.equal(shift_scales(schedule, native, tau, tau / 30)[0], torch.ones_like(tau))


def test_the_method_keeps_the_data_unless_it_is_told_to_keep_the_answer():
    tiny = TinyClasses()
    assert INDIS(steps=2).bounds(tiny).keep == "data"
    assert INDIS(steps=2, keep="answer").bounds(tiny).keep == "answer"
    for make in (lambda: INDIS(steps=2, keep="both"), lambda: Bounds(keep="both")):
        with pytest.raises(ValueError, match="keep must be data or answer, got 'both'"):
            make()


@pytest.mark.parametrize("keep", ["data", "answer"])
def test_a_policy_of_either_kind_is_rebuilt_as_it_was(keep):
    base, noise = torch.tensor([[80.0, 1.0, 0.002]], dtype=torch.float64), torch.zeros(1, 2)
    learned = shared(base, EDM(), Bounds(keep=keep))
    learned.logits.table.data.normal_(generator=torch.Generator().manual_seed(2))
    for policy in (learned, Fixed(learned(noise).detach())):
        plan = type(policy).rebuild(policy.describe(), policy.state_dict())(noise)
        assert plan.keep == keep and torch.equal(plan.gamma, policy(noise).gamma)

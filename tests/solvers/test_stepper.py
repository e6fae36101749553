"""The public stepper: a loop of somebody else's gives the bits of the library's own."""

import pytest
import torch

from indis import (
    EDM,
    INDIS,
    UNCONDITIONAL,
    Discretization,
    DPMSolverPP,
    Form,
    Heun,
    RectifiedFlow,
    Stepper,
    TableVP,
    UniPC,
    Wrapped,
    grids,
    heuristic,
    models,
    noise_from_seeds,
    solve,
)
from indis.methods import METHODS
from indis.noise import zero_time
from methods.cases import CASES
from problems import Bumpy, Gaussian, Recording, seeded
from small_cases import TinyClasses, sentence, toy
from solvers.cases import PROBLEMS, each_problem, each_solver, plan_for


def driven(stepper, denoiser, condition=UNCONDITIONAL):
    """A loop that knows nothing of plans and solvers."""
    call = denoiser.with_features if stepper.plan.needs_features else denoiser
    while not stepper.done:
        answer = call(stepper.input(), stepper.time, condition)
        stepper.advance(*answer if isinstance(answer, tuple) else (answer,))
    return stepper.x


@pytest.mark.parametrize("afs", [False, True])
@each_problem
@each_solver
def test_another_loop_gives_the_same_bits_with_every_solver(solver, problem, afs):
    plan, x = plan_for(problem, 3, 5, solver.memory), seeded(3, 2, seed=7)
    schedule, native = problem.schedule, problem.native
    stepper = Stepper(schedule, native, solver, plan, x, analytic_first=afs)
    expected = solve(problem, x, plan, solver, analytic_first=afs)
    assert torch.equal(driven(stepper, problem), expected)


@pytest.mark.parametrize("name", CASES)
def test_another_loop_gives_the_same_bits_with_every_method(name):
    sampler = CASES[name].untrained(toy())
    for parameter in sampler.policy.parameters():
        parameter.data += 0.1 * seeded(*parameter.shape, seed=3).to(parameter.dtype)
    noise = noise_from_seeds(range(4), toy().shape)
    with torch.no_grad():
        expected = sampler(toy(), noise)
        assert torch.equal(driven(sampler.stepper(toy(), noise), toy()), expected)


@pytest.mark.parametrize("solver", ["unipc:3", "heun", "ipndm:3"])
def test_another_loop_gives_the_same_bits_where_places_are_corrected(solver):
    tiny = TinyClasses()
    method = METHODS["local"](steps=3, width=8, solver=solver, analytic_first=True)
    sampler = method.untrained(tiny)
    for parameter in sampler.policy.parameters():
        parameter.data += 0.1 * seeded(*parameter.shape, seed=3).to(parameter.dtype)
    noise, condition = noise_from_seeds(range(4), tiny.shape), tiny.condition(list(range(4)))
    with torch.no_grad():
        expected = sampler(tiny, noise, condition)
        stepper = sampler.stepper(tiny, noise, condition)
        assert torch.equal(driven(stepper, tiny, condition), expected)


def test_a_finished_run_takes_no_further_answer():
    problem, x = PROBLEMS["edm"], seeded(2, 2)
    stepper = Stepper(problem.schedule, problem.native, Heun(), plan_for(problem, 1, 2, 1), x)
    driven(stepper, problem)
    with pytest.raises(ValueError, match="advance") as error:
        stepper.advance(x)
    sentence(error)


def test_a_state_of_half_precision_is_kept_in_single():
    model = models.load("toy")
    sampler = INDIS(steps=5, width=8).untrained(model)
    noise = noise_from_seeds(range(64), model.shape)
    with torch.no_grad():
        whole, half = sampler(model, noise), sampler(model, noise.bfloat16())
    assert half.dtype == torch.bfloat16
    # Kept in bf16 the state alone would lose 1 % of itself at every step.
    assert float((half.float() - whole).abs().mean()) < 0.02


# A last step to sigma = 0 (public reports B01).


class Point(Gaussian):
    """Data that are a single point, so that any noise left at the end can be read off."""

    def __init__(self, schedule, native=Form.NOISE):
        super().__init__(schedule, native, variance=(0.0, 0.0, 0.0))


def to_zero(schedule, steps):
    """The usual grid to t_min, and a last step from there to sigma = 0."""
    tau = grids.polynomial(schedule, steps - 1)
    end = torch.full((1, 1), zero_time(schedule), dtype=torch.float64)
    return Discretization.plain(torch.cat([tau, end], dim=1), to_zero=True)


def test_the_plain_solver_of_a_table_ends_without_noise_unless_told_otherwise():
    problem, x = Point(TableVP(ALPHAS)), seeded(4, 3, seed=2)
    ends = [
        heuristic(problem, solver="dpmpp:2", steps=8, to_zero=to_zero)(problem, x)
        for to_zero in (None, False)
    ]
    left = [float((end - problem.mean).abs().max()) for end in ends]
    assert left[0] < 1e-6 and left[1] > 1e-2


ALPHAS = tuple(torch.linspace(0.9991, 0.0047, 1000, dtype=torch.float64).tolist())


@pytest.mark.parametrize("schedule", [EDM(), TableVP(ALPHAS)], ids=["edm", "table"])
@each_solver
def test_a_run_to_sigma_zero_leaves_no_noise_at_no_further_evaluation(solver, schedule):
    problem, steps = Recording(Point(schedule)), 8
    x = seeded(4, 3, seed=2) * float(schedule.sigma(torch.tensor(schedule.t_max).double()))
    end = solve(problem, x, to_zero(schedule, steps), solver)
    torch.testing.assert_close(end, problem.inner.mean.expand(4, 3), rtol=0, atol=1e-6)
    assert len(problem.calls) == (2 * steps - 1 if isinstance(solver, Heun) else steps)
    assert float(problem.calls[-1].times.min()) == schedule.t_min  # no network is asked at zero
    plain = Discretization.plain(grids.polynomial(schedule, steps))
    left = solve(Point(schedule), x, plain, solver) - problem.inner.mean
    assert float(left.abs().max()) > 1e-4


def test_edm_s_published_run_of_18_steps_costs_35_evaluations():
    problem = Recording(Gaussian(EDM(), Form.NOISE))
    plan = to_zero(EDM(), 18)
    solve(problem, seeded(2, 3) * 80, plan, Heun())
    assert len(problem.calls) == 35
    assert float(problem.calls[-1].times[0]) == EDM().t_min


# Ends of log-SNR (B02) and data predictions at pure noise (B24).


@pytest.mark.parametrize(
    "solver", [DPMSolverPP(2, False), DPMSolverPP(3, False), UniPC(3, "bh2", False)], ids=repr
)
def test_errors_fall_where_the_last_step_has_no_end_in_log_snr(solver):
    schedule = RectifiedFlow()
    problem = Gaussian(schedule, Form.VELOCITY)
    x = seeded(16, 3, seed=4)
    one = torch.tensor(1.0, dtype=torch.float64)
    exact = problem.exact(x, one, torch.zeros_like(one))

    def error(steps):
        plan = Discretization.plain(grids.uniform(schedule, steps))
        return float((solve(problem, x, plan, solver) - exact).abs().max())

    errors = [error(steps) for steps in (1, 2, 3, 5, 8, 11, 14)]
    assert max(errors) == errors[0] and errors[-1] < 0.05 and errors[3] < 0.3 * errors[0]


@pytest.mark.parametrize("solver", ["euler", "ipndm:3", "adams_bashforth:2"])
def test_data_predictions_of_a_flow_run_from_pure_noise_as_velocities(solver):
    from indis import solvers

    schedule, x = RectifiedFlow(), seeded(4, 2, seed=1)
    plan = Discretization.plain(grids.uniform(schedule, 6))
    velocity = Bumpy(RectifiedFlow(), Form.VELOCITY)

    class AsData(Bumpy):
        def __call__(self, x, t, condition):
            return x - t[:, None] * velocity(x, t, condition)

    ends = [
        solve(problem, x, plan, solvers.named(solver))
        for problem in (velocity, AsData(schedule, Form.DATA))
    ]
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


def test_steps_that_are_kept_with_a_plan_are_those_of_its_solver_and_of_its_present_numbers():
    problem, x = PROBLEMS["edm"], seeded(2, 2, seed=7)
    plan = plan_for(problem, 1, 4, 1)

    def fresh(solver, **options):
        return solve(problem, x, plan.detach()[:], solver, **options)

    for solver in (Heun(), DPMSolverPP(2), UniPC(2)):
        for options in ({}, {"analytic_first": True}):
            expected = fresh(solver, **options)
            for _ in range(2):
                assert torch.equal(solve(problem, x, plan, solver, **options), expected)
    before = solve(problem, x, plan, Heun())
    plan.gamma.mul_(1.1)
    assert not torch.equal(solve(problem, x, plan, Heun()), before)
    assert torch.equal(solve(problem, x, plan, Heun()), fresh(Heun()))


def test_steps_of_rows_are_not_kept_for_samples_of_another_rank():
    problem, plan = PROBLEMS["flow"], plan_for(PROBLEMS["flow"], 2, 3, 1)
    flat = seeded(2, 8, seed=7)
    expected = solve(problem, flat.view(2, 4, 2), plan.detach()[:], UniPC(2))
    solve(problem, flat, plan, UniPC(2))
    assert torch.equal(solve(problem, flat.view(2, 4, 2), plan, UniPC(2)), expected)


@each_problem
@each_solver
def test_a_replaced_state_is_gone_on_from(solver, problem):
    plan, x = plan_for(problem, 3, 4, solver.memory), seeded(3, 2, seed=7)
    stepper = Stepper(problem.schedule, problem.native, solver, plan, x)
    while not stepper.done:
        shown = 1.1 * stepper.input() + 0.2
        stepper.replace_input(shown)
        torch.testing.assert_close(stepper.input(), shown, rtol=1e-12, atol=1e-12)
        stepper.replace_input(shown)
        stepper.advance(torch.zeros_like(x))
    with pytest.raises(ValueError, match="shown must be in the shape of x, finished"):
        stepper.replace_input(x)


@pytest.mark.parametrize(("solver", "native"), [(Heun(), Form.NOISE), (UniPC(2), Form.DATA)])
def test_a_corrector_leads_to_the_state_that_was_put_in_the_place_of_another(solver, native):
    """Where answers are zero, noise keeps the change as it is, and data shrink it with sigma."""
    tau, ends = grids.log_snr(EDM(), 3), []
    for change in (0.0, 0.5):
        x = seeded(2, 3, seed=1)
        stepper = Stepper(EDM(), native, solver, Discretization.plain(tau), x)
        for _ in range(2):
            stepper.advance(torch.zeros_like(x))
            if stepper.tau[0] > tau[0, 2]:
                stepper.replace_input(stepper.input() + change / 2)
        ends.append(stepper.x)
    shrunk = 0.25 * tau[0, 2] / tau[0, 1] if native is Form.DATA else 0.25
    several = 2 if native is Form.NOISE else 1
    torch.testing.assert_close(ends[1] - ends[0], torch.full_like(ends[0], float(several * shrunk)))


def test_a_plan_that_was_used_in_inference_mode_can_be_differentiated_through():
    problem, x = PROBLEMS["edm"], seeded(2, 2, seed=7)
    timed = Wrapped(lambda x, t, c: x * t[:, None], problem.schedule, (2,), problem.native)
    plan = plan_for(problem, 1, 4, 1)
    with torch.inference_mode():
        solve(timed, x, plan, Heun())
    start = x.requires_grad_()
    solve(timed, start, plan, Heun()).sum().backward()
    assert bool((start.grad != 0).all())

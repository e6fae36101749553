"""The same run by a diffusers scheduler and by this library, on a smooth analytic denoiser.

Schedulers keep their tables in single precision and most of them round the sample to it at every
step, so the tolerance is 2e-5 of the sample's size. What is not compared, and why:

* EDMEulerScheduler, EDMDPMSolverMultistepScheduler: those of EulerDiscrete and DPMSolverMultistep
  behind EDM's preconditioning of the network, which here belongs to the model.
* DEISMultistepScheduler: Lagrange polynomials in log sigma ("logrho"), where DEIS here is "t" (VP
  time).
* IPNDMScheduler: betas and times of its own (sin, atan2), no way to hand it a schedule.
* The final step to sigma = 0 of the Euler, Heun and flow schedulers, where a grid here would end at
  sigma_min: compared up to that step, except for Euler's flow, whose t_min may be 0. DPM-Solver++
  and UniPC, which work in log-SNR, end at 0.01 in use_flow_sigmas too: there UniPC's own
  "sigma_min" repeats its last sigma, and "zero" has an infinite log-SNR.
* FlowMatchHeunDiscrete's grid, which shifts the ends of its range before it shifts every time
  again: its steps are compared on the times that it chose.
"""

from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torch import Tensor

from indis import (
    EDM,
    UNCONDITIONAL,
    Condition,
    DiscreteVP,
    Discretization,
    DPMSolverPP,
    Euler,
    Form,
    Heun,
    NoiseSchedule,
    RectifiedFlow,
    Solver,
    UniPC,
    grids,
    solve,
)
from indis.numerics import broadcast
from problems import Problem, seeded

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
SIGMAS = [14.0, 7.5, 3.4, 1.7, 0.8, 0.3, 0.05]
TIMES = [999.0, 860.0, 733.0, 555.0, 402.0, 250.0, 120.0, 31.0, 0.0]


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    return pytest.importorskip("diffusers")


class Smooth(Problem):
    """A bounded, nonlinear data prediction, on pictures because schedulers insist on channels."""

    name, shape = "smooth", (2, 2, 3)

    def __init__(self, schedule: NoiseSchedule, native: Form) -> None:
        self.schedule, self.native = schedule, native

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = (broadcast(f(t), x) for f in (self.schedule.alpha, self.schedule.sigma))
        scaled = x / (alpha**2 + sigma**2).sqrt()
        data = torch.tanh(1.5 * alpha * scaled + 0.3 * scaled.flip(-1)) + 0.2 * torch.cos(scaled)
        noise = (x - alpha * data) / sigma.clamp_min(1e-3)
        return {Form.DATA: data, Form.NOISE: noise, Form.VELOCITY: noise - data}[self.native]


def ours(problem: Smooth, x: Tensor, times: list[float], solver: Solver) -> Tensor:
    return solve(problem, x, Discretization.plain(grids.listed(problem.schedule, times)), solver)


def theirs(scheduler, problem: Smooth, x: Tensor, times: list[float]) -> Tensor:
    """Their loop: one network call at each of ``times``, whichever stage of whichever step it
    serves."""
    for label, t in zip(scheduler.timesteps, times, strict=False):
        answer = problem(x, torch.full((len(x),), t, dtype=torch.float64), UNCONDITIONAL)
        x = scheduler.step(answer, label, x).prev_sample
    return x


def assert_same(found: Tensor, expected: Tensor, start: Tensor) -> None:
    # The run must have gone somewhere, or parity means nothing.
    assert float((found - start).abs().max()) > 0.3 * float(start.abs().max())
    torch.testing.assert_close(
        found, expected.to(found.dtype), rtol=0, atol=2e-5 * (1 + float(found.abs().max()))
    )


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
def test_the_discrete_schedule_is_the_one_of_diffusers(diffusers, beta_schedule):
    scheduler = diffusers.DDIMScheduler(**{**STABLE_DIFFUSION, "beta_schedule": beta_schedule})
    schedule, t = DiscreteVP(spacing=beta_schedule), torch.arange(1000, dtype=torch.float64)
    alpha_bar = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(schedule.alpha(t), alpha_bar.sqrt(), rtol=0, atol=1e-6)
    torch.testing.assert_close(schedule.sigma(t), (1 - alpha_bar).sqrt(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_euler_in_sigma_space(diffusers, prediction):
    scheduler = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION, prediction_type=prediction)
    scheduler.set_timesteps(sigmas=SIGMAS)
    scheduler.is_scale_input_called = True
    problem = Smooth(EDM(0.01, 20.0), Form.NOISE if prediction == "epsilon" else Form.DATA)
    x = SIGMAS[0] * seeded(3, *problem.shape, seed=1)
    assert_same(ours(problem, x, SIGMAS, Euler()), theirs(scheduler, problem, x, SIGMAS[:-1]), x)


def test_heun_in_sigma_space(diffusers):
    scheduler = diffusers.HeunDiscreteScheduler(**STABLE_DIFFUSION)
    scheduler.set_timesteps(len(SIGMAS))
    pairs = [s for sigma in SIGMAS for s in (sigma, sigma)][1:]
    scheduler.sigmas = torch.tensor([*pairs, 0.0])
    scheduler.timesteps = torch.arange(
        2 * len(SIGMAS) - 1, 0, -1
    ).float()  # labels that tell the stages apart
    problem = Smooth(EDM(0.01, 20.0), Form.NOISE)
    x = SIGMAS[0] * seeded(3, *problem.shape, seed=1)
    stages = [s for pair in zip(SIGMAS, SIGMAS[1:], strict=False) for s in pair]
    assert_same(ours(problem, x, SIGMAS, Heun()), theirs(scheduler, problem, x, stages), x)


def test_heun_without_its_trial_would_not_pass(diffusers):
    problem = Smooth(EDM(0.01, 20.0), Form.NOISE)
    x = SIGMAS[0] * seeded(3, *problem.shape, seed=1)
    difference = ours(problem, x, SIGMAS, Heun()) - ours(problem, x, SIGMAS, Euler())
    assert float(difference.abs().max()) > 0.05


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_ddim_is_euler_on_its_own_time_steps(diffusers, prediction):
    scheduler = diffusers.DDIMScheduler(
        **STABLE_DIFFUSION,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )
    scheduler.set_timesteps(8)  # 876, 751, ..., 1, then step 0 with set_alpha_to_one=False
    times = [*scheduler.timesteps.tolist(), 0]
    problem = Smooth(DiscreteVP(), Form.NOISE if prediction == "epsilon" else Form.DATA)
    x = seeded(3, *problem.shape, seed=1)
    assert_same(ours(problem, x, times, Euler()), theirs(scheduler, problem, x, times[:-1]), x)


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("native", [Form.DATA, Form.NOISE])
def test_dpm_solver_multistep(diffusers, native, order, final):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION,
        solver_order=order,
        algorithm_type="dpmsolver++",
        lower_order_final=final,
        final_sigmas_type="sigma_min",
        prediction_type="sample" if native is Form.DATA else "epsilon",
    )
    scheduler.set_timesteps(timesteps=TIMES[:-1])
    scheduler.sigmas = scheduler.sigmas.double()
    problem = Smooth(DiscreteVP(), native)
    x = seeded(3, *problem.shape, seed=1)
    assert_same(
        ours(problem, x, TIMES, DPMSolverPP(order, final)),
        theirs(scheduler, problem, x, TIMES[:-1]),
        x,
    )


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_multistep(diffusers, variant, order, final):
    scheduler = diffusers.UniPCMultistepScheduler(
        **STABLE_DIFFUSION,
        solver_order=order,
        solver_type=variant,
        lower_order_final=final,
        final_sigmas_type="sigma_min",
        predict_x0=True,
    )
    scheduler.set_timesteps(8)  # evenly spaced: it takes no list of times
    scheduler.sigmas = scheduler.sigmas.double()
    times = [*scheduler.timesteps.double().tolist(), 0.0]
    problem = Smooth(DiscreteVP(), Form.NOISE)
    x = seeded(3, *problem.shape, seed=1)
    assert_same(
        ours(problem, x, times, UniPC(order, variant, final)),
        theirs(scheduler, problem, x, times[:-1]),
        x,
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_euler_down_to_pure_data(diffusers, shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    even = [1.0, 0.8, 0.6, 0.4, 0.2]
    scheduler.set_timesteps(sigmas=even)
    grid = grids.flow_shift(RectifiedFlow(), 5, shift)
    torch.testing.assert_close(scheduler.sigmas.double(), grid[0], rtol=0, atol=1e-6)
    problem = Smooth(RectifiedFlow(), Form.VELOCITY)
    x = seeded(3, *problem.shape, seed=1)
    times = grid[0].tolist()
    assert_same(ours(problem, x, times, Euler()), theirs(scheduler, problem, x, times[:-1]), x)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_heun_on_its_own_time_steps(diffusers, shift):
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(6)  # it takes no list; a first time, then pairs
    times = [scheduler.sigmas[0].item(), *scheduler.sigmas[1:-1:2].tolist()]
    problem = Smooth(RectifiedFlow(), Form.VELOCITY)
    x = seeded(3, *problem.shape, seed=1)
    stages = [t for pair in pairwise(times) for t in pair]
    assert_same(ours(problem, x, times, Heun()), theirs(scheduler, problem, x, stages), x)


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["dpm", "bh1", "bh2"])
def test_multistep_solvers_on_flow_sigmas(diffusers, name, order, final):
    options = {
        "solver_order": order,
        "lower_order_final": final,
        "prediction_type": "flow_prediction",
    }
    # Left at "zero", DPM-Solver++ falls to first order at the end whatever it is told.
    flow = {"use_flow_sigmas": True, "flow_shift": 3.0, "final_sigmas_type": "sigma_min"}
    if name == "dpm":
        scheduler, solver = (
            diffusers.DPMSolverMultistepScheduler(**options, **flow),
            DPMSolverPP(order, final),
        )
    else:
        scheduler = diffusers.UniPCMultistepScheduler(**options, **flow, solver_type=name)
        solver = UniPC(order, name, final)
    scheduler.set_timesteps(8)
    scheduler.sigmas[-1] = 0.01
    scheduler.sigmas = scheduler.sigmas.double()
    times = scheduler.sigmas.tolist()
    problem = Smooth(RectifiedFlow(), Form.VELOCITY)
    x = seeded(3, *problem.shape, seed=1)
    assert_same(ours(problem, x, times, solver), theirs(scheduler, problem, x, times[:-1]), x)


def test_the_dynamic_shift_is_the_resolution_grid(diffusers):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    steps, tokens = 4, 1024
    slope = (1.15 - 0.5) / (4096 - 256)
    scheduler.set_timesteps(
        sigmas=[1 - i / steps for i in range(steps)], mu=0.5 + slope * (tokens - 256)
    )
    expected = grids.resolution(RectifiedFlow(), steps, tokens)[0]
    torch.testing.assert_close(scheduler.sigmas.double(), expected, rtol=0, atol=1e-6)

"""Every family: the pipeline's own scheduler is met, batches are singles, and what happens inside
the unmodified pipeline is our own loop around its network."""

import pytest
import torch

from diffusion_cases import (
    CASES,
    PROMPTS,
    network_of,
    noise_of,
    own_rows,
    packed_like,
    process,
    sampler_for,
)
from indis import Condition, Discretization, Fixed, Sampler, prior, solve, solvers
from indis.diffusers import enable

pytestmark = pytest.mark.parametrize("name", CASES)


def close(one, other, tolerance):
    """Up to a share of the largest number: random networks blow latents up."""
    scale = max(1.0, float(other.abs().max()))
    difference = float((one - other).abs().max()) / scale
    assert difference <= tolerance, f"{difference:.2e} at scale {scale:.3g}"


def test_euler_on_the_scheduler_s_own_times_is_the_scheduler(name):
    case = CASES[name]
    pipe = case.pipe()
    expected = case.run(pipe, PROMPTS, range(2), num_inference_steps=3)
    own, scheduler = process(case), pipe.scheduler
    if own.unit > 1:
        tau, to_zero = scheduler.sigmas.double(), False
    else:
        tau = scheduler.timesteps.double()
        to_zero = bool(getattr(scheduler, "final_alpha_cumprod", 1) == 1)
        tau = torch.cat([tau, torch.tensor([-1.0 if to_zero else 0.0])])
    plan = Discretization.plain(tau[None], to_zero=to_zero)
    with enable(pipe, Sampler(Fixed(plan), solvers.Euler())):
        drawn = case.run(pipe, PROMPTS, range(2), num_inference_steps=3)
    close(drawn, expected, 2e-6)
    assert torch.equal(case.run(pipe, PROMPTS, range(2), num_inference_steps=3), expected)


def test_a_batch_of_plans_is_its_samples_one_by_one(name):
    case = CASES[name]
    pipe = case.pipe()
    with enable(pipe, sampler_for(case, "noise")) as handle:
        both = case.run(pipe, PROMPTS, range(2), num_inference_steps=3)
        times = handle.scheduler.timesteps
        assert not torch.equal(times[1][0], times[1][1])
        for i, prompt in enumerate(PROMPTS):
            alone = case.run(pipe, [prompt], [i], num_inference_steps=3)
            assert handle.scheduler.timesteps.ndim == 1
            close(both[i : i + 1], alone, 1e-5)


@pytest.mark.parametrize("kind", ["noise", "answers", "local"])
def test_the_pipeline_is_our_own_loop_around_its_network(name, kind):
    case = CASES[name]
    pipe, sampler = case.pipe(), sampler_for(case, kind)
    network = network_of(case, PROMPTS, sampler.policy.schedule)
    with torch.no_grad():
        expected = sampler(network, noise_of(case)[1])
    with enable(pipe, sampler):
        drawn = case.run(pipe, PROMPTS, range(2), num_inference_steps=3)
    close(drawn, packed_like(case, expected), 1e-5)


def test_a_plan_with_rows_needs_no_policy(name):
    case = CASES[name]
    pipe, plan = case.pipe(), own_rows(case)
    network = network_of(case, PROMPTS, process(case).schedule)
    start = prior(network.schedule, noise_of(case)[1])
    with torch.no_grad():
        expected = solve(network, start, plan, solvers.Euler(), Condition())
    with enable(pipe, Sampler(Fixed(plan), solvers.Euler())):
        drawn = case.run(pipe, PROMPTS, range(2), num_inference_steps=3)
    close(drawn, packed_like(case, expected), 1e-5)


def test_a_policy_reads_the_prompt(name):
    case = CASES[name]
    pipe = case.pipe()
    found = []
    with enable(pipe, sampler_for(case, "noise", condition_dim=1)) as handle:
        features_of = handle.family.features
        handle.family.features = lambda *given: found.append(features_of(*given)) or found[0][:, :1]
        case.run(pipe, PROMPTS, range(2), num_inference_steps=3)
    features = found[0]
    reading = sampler_for(case, "noise", condition_dim=features.shape[1])
    alike = ["a cat", "a dog"]  # as long: LTXPipeline mixes the masks of several videos a prompt up
    with enable(pipe, reading) as handle:
        two = case.run(pipe, alike, [0, 0], num_inference_steps=3)
        times = handle.scheduler.timesteps.clone()
        twice = {case.copies_word: 2}
        four = case.run(pipe, alike, [0, 0, 0, 0], num_inference_steps=3, **twice)
    assert not torch.equal(times[1, 0], times[1, 1])
    close(four[[0, 2]], two, 1e-5)
    close(four[[1, 3]], two, 1e-5)


def test_latents_of_the_user_s_own_are_left_as_they_are(name):
    case = CASES[name]
    pipe, mine = case.pipe(), noise_of(case)[name == "flux2"]  # which packs what it is given
    kept = mine.clone()
    with enable(pipe, sampler_for(case, "answers", analytic_first=True, steps=4)):
        given = case.run(pipe, PROMPTS, latents=mine, num_inference_steps=3)
        drawn = case.run(pipe, PROMPTS, range(2), num_inference_steps=3)
    close(given, drawn, 1e-6)
    assert torch.equal(mine, kept)


def test_saved_and_loaded_it_samples_the_same(name, tmp_path):
    from indis import artifact
    from indis.diffusers import IndisScheduler

    case = CASES[name]
    pipe, sampler = case.pipe(), sampler_for(case, "noise")
    artifact.save(sampler, tmp_path / "sampler")
    with enable(pipe, tmp_path / "sampler"):
        expected = case.run(pipe, PROMPTS, range(2), num_inference_steps=3)
        pipe.save_pretrained(tmp_path / "pipe")
    again = type(pipe).from_pretrained(tmp_path / "pipe", local_files_only=True)
    again.set_progress_bar_config(disable=True)
    if name == "flux2":
        again.system_message = pipe.system_message
    assert isinstance(again.scheduler, IndisScheduler)
    with pytest.raises(ValueError, match=r"call indis\.diffusers\.enable .* artifact"):
        case.run(again, PROMPTS, range(2), num_inference_steps=3)
    with enable(again):
        close(case.run(again, PROMPTS, range(2), num_inference_steps=3), expected, 1e-6)
    assert type(again.scheduler) is type(pipe.scheduler)
    assert (
        dict(again.scheduler.config).items()
        >= {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}.items()
    )

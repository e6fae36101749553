"""What happens around the loop: solvers, callbacks, embeddings, several numbers of steps, and
everything that is refused."""

import copy

import pytest
import torch

import tiny_language as language
import tiny_pipelines as tiny
from diffusion_cases import (
    CASES,
    PROMPTS,
    grid,
    network_of,
    noise_of,
    own_rows,
    packed_like,
    sampler_for,
)
from indis import Discretization, Fixed, Sampler, artifact, solvers
from indis.diffusers import Family, IndisScheduler, enable
from indis.diffusers import disable as switch_off
from indis.plan import PlanWrapper

FLUX = CASES["flux"]


def run(pipe, prompts=PROMPTS, seeds=(0, 1), **call):
    return FLUX.run(pipe, prompts, seeds, **{"num_inference_steps": 3} | call)


@pytest.mark.parametrize("kind", ["nothing", "noise", "answers", "local"])
@pytest.mark.parametrize(
    ("solver", "steps", "options"),
    [
        ("euler", 4, {"analytic_first": True}),
        ("ipndm:3", 4, {"analytic_first": True}),
        ("unipc:2", 3, {}),
        ("unipc:2", 4, {"analytic_first": True}),
        ("dpmpp:2", 3, {}),
        ("heun", 2, {}),
        ("heun", 2, {"analytic_first": True}),
    ],
)
def test_every_solver_is_our_own_loop(kind, solver, steps, options):
    pipe, sampler = FLUX.pipe(), sampler_for(FLUX, kind, solver, steps, **options)
    schedule = sampler.policy.schedule
    with torch.no_grad():
        expected = sampler(network_of(FLUX, PROMPTS, schedule), noise_of(FLUX)[1])
    with enable(pipe, sampler) as handle:
        drawn = run(pipe, num_inference_steps=sampler.nfe)
        sigmas = handle.scheduler.sigmas
    assert torch.allclose(drawn, packed_like(FLUX, expected), rtol=1e-5, atol=1e-5)
    assert len(sigmas) == sampler.nfe + 1 and sigmas.min() >= 0 and sigmas.max() <= 1


def test_two_passes_of_guidance_are_our_own_loop():
    pipe, sampler = FLUX.pipe(), sampler_for(FLUX, "answers")
    call = {"negative_prompt": ["bad", "worse"], "true_cfg_scale": 2.0}
    network = network_of(FLUX, PROMPTS, sampler.policy.schedule, **call)
    with torch.no_grad():
        expected = sampler(network, noise_of(FLUX)[1])
    with enable(pipe, sampler):
        drawn = run(pipe, **call)
        plain = run(pipe)
    assert torch.allclose(drawn, packed_like(FLUX, expected), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(drawn, plain, atol=1e-3)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.guidance])
def test_without_guidance_the_batch_is_not_doubled(name):
    case = CASES[name]
    pipe = case.pipe()
    off = {"num_inference_steps": 3, "guidance_scale": 0.0 if name == "z-image" else 1.0}
    with enable(pipe, sampler_for(case, "answers")) as handle:
        both = case.run(pipe, PROMPTS, (0, 1), **off)
        assert handle.scheduler.timesteps.shape == (3, 2)
        for i in range(2):
            alone = case.run(pipe, [PROMPTS[i]], [i], **off)
            assert torch.allclose(both[i : i + 1], alone, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_the_negative_prompt_is_not_what_a_policy_reads(name):
    case = CASES[name]
    pipe, sampler = (
        case.pipe(),
        sampler_for(case, "noise", condition_dim=64 if name == "flux" else 8),
    )
    times = []
    for negative in (["bad", "worse"], ["ugly", "x"]):
        call = {"true_cfg_scale": 2.0} if name == "flux" else {}
        with enable(pipe, sampler) as handle:
            call |= {"num_inference_steps": 3, "negative_prompt": negative}
            case.run(pipe, PROMPTS, (0, 1), **call)
            times.append(handle.scheduler.timesteps)
    assert torch.equal(*times)


@pytest.mark.parametrize("name", ["flux", "qwen"])
def test_two_passes_of_guidance_in_a_batch_are_its_samples_one_by_one(name):
    case = CASES[name]
    pipe, bad = case.pipe(), ["bad", "worse"]
    with enable(pipe, sampler_for(case, "answers")):
        call = {"num_inference_steps": 3, "true_cfg_scale": 3.0}
        both = case.run(pipe, PROMPTS, (0, 1), negative_prompt=bad, **call)
        for i in range(2):
            alone = case.run(pipe, [PROMPTS[i]], [i], negative_prompt=[bad[i]], **call)
            assert torch.allclose(both[i : i + 1], alone, rtol=1e-5, atol=2e-5)


def test_prompt_embeddings_are_read_and_their_padding_is_told():
    pipe, sampler = FLUX.pipe(), sampler_for(FLUX, "noise", condition_dim=64)
    with enable(pipe, sampler):
        # Nothing that the user encodes himself is taken for the prompt of a call.
        tokens, vector, _ = pipe.encode_prompt(["one", "other"], None, max_sequence_length=16)
        given = {"prompt_embeds": tokens, "pooled_prompt_embeds": vector}
        with pytest.warns(UserWarning, match="padding included"):
            one = run(pipe, None, **given)
        pipe.encode_prompt(PROMPTS, None, max_sequence_length=16)
        with pytest.warns(UserWarning, match="padding included"):
            assert torch.equal(run(pipe, None, **given), one)


@pytest.mark.parametrize("solver", ["euler", "ipndm:2", "unipc:2", "heun"])
@pytest.mark.parametrize("inside", [False, True])
def test_what_a_callback_makes_of_the_latents_is_gone_on_with(solver, inside):
    pipe = FLUX.pipe()
    sampler = sampler_for(FLUX, "answers", solver, 2 if solver == "heun" else 3)
    network = network_of(FLUX, PROMPTS, sampler.policy.schedule)
    noise, change = noise_of(FLUX)[1], 0.3 * torch.randn(noise_of(FLUX)[0].shape)

    def callback(_, i, t, given):
        if i == 1 and inside:
            given["latents"].add_(change)
        elif i == 1:
            given["latents"] = given["latents"] + change
        return given

    with torch.no_grad():
        stepper, calls = sampler.stepper(network, noise), 0
        while not stepper.done:
            stepper.advance(network(stepper.input(), stepper.time))
            calls += 1
            if calls == 2:
                unpacked = pipe._unpack_latents(change, 8, 8, pipe.vae_scale_factor)
                stepper.replace_input(stepper.input() + unpacked)
    with enable(pipe, sampler):
        drawn = run(pipe, num_inference_steps=sampler.nfe, callback_on_step_end=callback)
        plain = run(pipe, num_inference_steps=sampler.nfe)
    assert torch.allclose(drawn, packed_like(FLUX, stepper.x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(drawn, plain, atol=1e-3)


def test_a_callback_that_changes_nothing_sees_the_times():
    pipe, seen = FLUX.pipe(), []

    def callback(_, i, t, given):
        seen.append(t.clone())
        return given

    with enable(pipe, sampler_for(FLUX, "noise")) as handle:
        plain = run(pipe)
        assert torch.equal(run(pipe, callback_on_step_end=callback), plain)
        assert torch.equal(torch.stack(seen), handle.scheduler.timesteps)


def test_half_precision_keeps_its_state_in_float32():
    pipe = copy.deepcopy(tiny.flux()).to(torch.bfloat16)
    with enable(pipe, sampler_for(FLUX, "answers")):
        drawn = run(pipe)
    assert drawn.dtype == torch.bfloat16 and bool(drawn.isfinite().all())


def test_several_numbers_of_steps_in_one_pipeline(tmp_path):
    pipe = FLUX.pipe()
    some = {3: sampler_for(FLUX, "noise"), 4: sampler_for(FLUX, "nothing", steps=4)}
    with enable(pipe, some):
        run(pipe), run(pipe, num_inference_steps=4)
        with pytest.raises(ValueError, match="num_inference_steps must be one of 3, 4, .* got 28"):
            run(pipe, num_inference_steps=28)
        run(pipe)
    with pytest.raises(ValueError, match="artifact for 5 network calls must make them, got 3"):
        enable(pipe, {5: some[3]})
    for calls, sampler in some.items():
        artifact.save(sampler, tmp_path / str(calls))
    with enable(pipe, {calls: tmp_path / str(calls) for calls in some}) as handle:
        assert handle.scheduler.config.artifact == {c: str(tmp_path / c) for c in ("3", "4")}


def test_disabling_gives_everything_back():
    pipe = tiny.flux()
    expected = run(pipe)
    before, scheduler = dict(vars(pipe)), pipe.scheduler
    enable(pipe, sampler_for(FLUX, "noise"))
    enable(pipe, sampler_for(FLUX, "answers"))
    assert not torch.allclose(run(pipe), expected)
    switch_off(pipe)
    switch_off(pipe)
    assert pipe.scheduler is scheduler and vars(pipe).keys() == before.keys()
    assert torch.equal(run(pipe), expected)


def test_another_pipeline_with_the_scheduler_is_told_to_be_enabled():
    pipe = FLUX.pipe()
    with enable(pipe, sampler_for(FLUX, "noise")):
        other = type(pipe)(**pipe.components)
        other.set_progress_bar_config(disable=True)
        with pytest.raises(RuntimeError, match=r"enable on this very pipeline"):
            run(other)
        run(pipe)


def test_times_of_the_user_s_own_are_refused():
    pipe = FLUX.pipe()
    with enable(pipe, sampler_for(FLUX, "noise")), pytest.raises(ValueError, match="left out"):
        run(pipe, sigmas=[1.0, 0.4, 0.2])


def test_a_scheduler_with_a_plan_needs_nothing_else():
    pipe = tiny.flux()
    stock, expected = pipe.scheduler, run(pipe)
    pipe.scheduler = IndisScheduler.from_config(stock.config).set_plan(stock.sigmas[None])
    assert torch.allclose(run(pipe), expected, atol=1e-6)
    plan = own_rows(FLUX)
    pipe.scheduler.set_plan(plan, solvers.named("ipndm:2"))
    drawn = run(pipe)
    assert pipe.scheduler.timesteps.shape == (3, 2)
    with enable(pipe, Sampler(Fixed(plan), solvers.named("ipndm:2"))):
        assert torch.allclose(run(pipe), drawn, atol=1e-6)
    with pytest.raises(ValueError, match="known before the noise"):
        pipe.scheduler.set_plan(sampler_for(FLUX, "noise"))


def test_a_modular_pipeline_takes_the_scheduler_too():
    from diffusers.modular_pipelines.flux.modular_blocks_flux import FluxCoreDenoiseStep

    plan, noise = own_rows(FLUX), noise_of(FLUX)[0]
    tokens, vector = torch.randn(2, 8, 32), torch.randn(2, 32)

    def drawn(rows):
        pipe = FluxCoreDenoiseStep().init_pipeline()
        scheduler = IndisScheduler.from_config(FLUX.pipe().scheduler.config)
        scheduler.set_plan(plan[rows], solvers.named("ipndm:2"))
        pipe.update_components(transformer=FLUX.pipe().transformer, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe(
            prompt_embeds=tokens[rows],
            pooled_prompt_embeds=vector[rows],
            latents=noise[rows],
            height=64,
            width=64,
            num_inference_steps=3,
            output="latents",
        )

    singles = torch.cat([drawn(slice(i, i + 1)) for i in range(2)])
    assert torch.allclose(drawn(slice(None)), singles, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_network_is_compiled_once():
    from torch._dynamo.utils import counters

    pipe = tiny.flux()
    with enable(pipe, sampler_for(FLUX, "answers")):
        expected = run(pipe)
        counters.clear()
        pipe.transformer.compile(fullgraph=True, backend="eager")
        assert torch.allclose(run(pipe), expected, rtol=1e-5, atol=1e-5)
        run(pipe)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_a_plan_with_rows_is_shown_twice_for_classic_guidance():
    case, pipe = CASES["sd3"], tiny.stable_diffusion_3()
    plan = own_rows(case)
    with enable(pipe, Sampler(Fixed(plan), solvers.Euler())):
        expected = case.run(pipe, PROMPTS, (0, 1), num_inference_steps=3)
    pipe.scheduler = IndisScheduler.from_config(pipe.scheduler.config).set_plan(plan, copies=2)
    drawn = case.run(pipe, PROMPTS, (0, 1), num_inference_steps=3)
    assert torch.allclose(drawn, expected, rtol=1e-6, atol=1e-5)


def test_guidance_that_ends_on_the_way_is_refused_in_a_batch_alone():
    from diffusers.callbacks import SDCFGCutoffCallback

    case, pipe = CASES["sd"], tiny.stable_diffusion()
    cut = {"callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.3)}
    with enable(pipe, sampler_for(case, "noise")):
        case.run(pipe, PROMPTS[:1], (0,), num_inference_steps=3, **cut)
        with pytest.raises(ValueError, match="one sample at a time"):
            case.run(pipe, PROMPTS, (0, 1), num_inference_steps=3, **cut)


def test_caches_that_compare_times_are_refused_in_a_batch_alone():
    from diffusers import PyramidAttentionBroadcastConfig

    pipe = tiny.flux()
    cached = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    pipe.transformer.enable_cache(cached)
    with enable(pipe, sampler_for(FLUX, "noise")):
        with pytest.raises(ValueError, match="PyramidAttentionBroadcastConfig .* one sample at a"):
            run(pipe)
        run(pipe, PROMPTS[:1], (0,))
    with enable(pipe, sampler_for(FLUX, "nothing")):
        run(pipe)


def test_times_that_a_pipeline_compares_are_refused():
    def refused(name, match, count=2, kind="noise", **call):
        case = CASES[name]
        pipe = case.pipe()
        with enable(pipe, sampler_for(case, kind)), pytest.raises(ValueError, match=match):
            case.run(pipe, PROMPTS[:count], range(count), num_inference_steps=3, **call)

    refused("z-image", "cfg_truncation must be None", cfg_truncation=1.0)
    refused("z-image", "cfg_truncation must be None", 1, cfg_truncation=0.7)
    refused("sdxl", "denoising_end must be None", 1, "nothing", denoising_end=0.8)
    case = CASES["wan"]
    pipe = language.wan(boundary_ratio=0.5)
    pipe.transformer_2 = pipe.transformer
    with enable(pipe, sampler_for(case, "noise")):
        with pytest.raises(ValueError, match="boundary_ratio .* one sample at a time"):
            case.run(pipe, PROMPTS, (0, 1), num_inference_steps=3)
        alone = case.run(pipe, PROMPTS[:1], (0,), num_inference_steps=3)
    with enable(case.pipe(), sampler_for(case, "noise")):
        one = case.run(case.pipe(), PROMPTS[:1], (0,), num_inference_steps=3)
    assert torch.allclose(alone, one, atol=1e-5)


def test_a_plan_that_reads_features_of_the_network_is_refused():
    class Reading(Fixed):
        def forward(self, noise, features=None, index=None):
            plan = PlanWrapper(self.shared_plan())
            plan.needs_features = True
            return plan

    pipe = FLUX.pipe()
    with (
        enable(pipe, Sampler(Reading(grid(FLUX, 3)), solvers.Euler())),
        pytest.raises(ValueError, match="with_features.* 'FluxPipeline' lacks"),
    ):
        run(pipe)


def test_a_scheduler_of_flows_and_tables_is_a_flow_where_it_says_so():
    from diffusers import EDMEulerScheduler, UniPCMultistepScheduler

    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    pipe = language.wan()
    case, own = CASES["wan"], sampler_for(CASES["wan"], "noise")
    drawn = []
    for scheduler in (pipe.scheduler, UniPCMultistepScheduler(**flow)):
        pipe.scheduler = scheduler
        with enable(pipe, own):
            drawn.append(case.run(pipe, PROMPTS, (0, 1), num_inference_steps=3))
        assert pipe.scheduler is scheduler
    assert torch.equal(*drawn)
    pipe.scheduler = EDMEulerScheduler()
    with pytest.raises(ValueError, match="preconditions its network as EDM does"):
        enable(pipe, own)


def test_pictures_to_begin_at_are_refused():
    from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline

    parts = FLUX.pipe().components
    for kind in (FluxImg2ImgPipeline, FluxInpaintPipeline):
        with pytest.raises(ValueError, match="begins at a given picture"):
            enable(kind(**parts), sampler_for(FLUX, "noise"))
    scheduler = IndisScheduler()
    with pytest.raises(NotImplementedError, match="begins at noise"):
        scheduler.scale_noise(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="begin_index must be 0"):
        scheduler.set_begin_index(2)


def test_an_unknown_pipeline_is_told_what_it_lacks():
    class OtherPipeline(type(FLUX.pipe()).__mro__[1]):
        pass

    other = object.__new__(OtherPipeline)
    object.__setattr__(other, "scheduler", FLUX.pipe().scheduler)
    with pytest.raises(ValueError, match="must be one of FluxPipeline.* OtherPipeline.* family="):
        enable(other, sampler_for(FLUX, "noise"))


def test_a_family_of_the_user_s_own_is_used():
    class Own(Family):
        def unpack(self, pipe, latents, given):
            return latents.transpose(1, 2).unflatten(2, (4, 4))

        def pack(self, pipe, latents, given):
            return latents.flatten(2).transpose(1, 2)

    pipe, plan = FLUX.pipe(), own_rows(FLUX)
    sampler = Sampler(Fixed(plan), solvers.Euler())
    with enable(pipe, sampler, family=Own()):
        own = run(pipe)
    with enable(pipe, sampler):
        assert torch.allclose(run(pipe), own, atol=1e-6)


def test_another_noise_schedule_than_the_pipeline_s_is_refused():
    pipe = FLUX.pipe()
    with (
        enable(pipe, sampler_for(CASES["sd"], "noise")),
        pytest.raises(ValueError, match="fitted on the noise schedule of the pipeline"),
    ):
        run(pipe)
    with pytest.raises(ValueError, match="artifact must be given"):
        enable(pipe)


def test_a_table_that_ends_in_noise():
    case = CASES["sd-v"]
    pipe = tiny.stable_diffusion(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    expected = case.run(pipe, PROMPTS, (0, 1), num_inference_steps=4)
    tau = torch.tensor([[*pipe.scheduler.timesteps.tolist(), -1.0]])
    assert tau[0, 0] == 999
    with enable(pipe, Sampler(Fixed(Discretization.plain(tau, to_zero=True)), solvers.Euler())):
        drawn = case.run(pipe, PROMPTS, (0, 1), num_inference_steps=4)
    assert torch.allclose(drawn, expected, rtol=1e-5, atol=1e-5)


def test_the_grid_of_tests_begins_at_pure_noise():
    assert grid(FLUX, 3)[0].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0])

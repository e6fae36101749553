"""A pipeline's network as a denoiser: the same samples as inside the pipeline, and fits on them."""

import warnings

import pytest
import torch

import tiny_pipelines as tiny
from diffusion_cases import CASES, PROMPTS, noise_of, packed_like, sampler_for
from indis import artifact, losses
from indis.diffusers import enable
from indis.diffusers.denoiser import PipelineDenoiser
from indis.diffusers.described import warn_of_size
from indis.endpoints import noise_from_seeds


def denoiser_of(name, **options):
    case = CASES[name]
    return case, PipelineDenoiser(case.pipe(), PROMPTS, case.call, **options)


@pytest.mark.parametrize("name", CASES)
def test_it_draws_what_the_unmodified_pipeline_draws(name):
    case, denoiser = denoiser_of(name)
    noise, condition = noise_of(case)[1], denoiser.condition([0, 1])
    dim = condition.features.shape[1]
    sampler = sampler_for(case, "noise", condition_dim=dim)
    with torch.no_grad():
        own = sampler(denoiser, noise, condition)
        pictures = (denoiser.decode(own) / 2 + 0.5).clamp(0, 1)
    pipe, call = case.pipe(), {"num_inference_steps": 3}
    with enable(pipe, sampler):
        theirs = case.run(pipe, PROMPTS, (0, 1), **call)
        shown = case.run(pipe, PROMPTS, (0, 1), **call, output_type="pt")
    if pictures.ndim == 5:
        pictures = pictures.transpose(1, 2)
    scale = theirs.abs().max()
    assert (packed_like(case, own) - theirs).abs().max() <= 1e-5 * scale
    assert (pictures - shown).abs().max() <= 1e-5


@pytest.mark.parametrize(("name", "scale"), [("flux", 2.0), ("qwen", 3.0)])
def test_two_passes_of_guidance_are_those_of_the_pipeline(name, scale):
    case = CASES[name]
    extra = {"true_cfg_scale": scale, "negative_prompt": "bad"}
    denoiser = PipelineDenoiser(case.pipe(), PROMPTS, case.call | extra)
    sampler = sampler_for(case, "noise")
    with torch.no_grad():
        own = sampler(denoiser, noise_of(case)[1], denoiser.condition([0, 1]))
    extra["negative_prompt"] = ["bad", "bad"]
    with enable(case.pipe(), sampler):
        theirs = case.run(case.pipe(), PROMPTS, (0, 1), num_inference_steps=3, **extra)
    assert (packed_like(case, own) - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_an_unconditional_pipeline_has_no_prompts_and_gradients_pass_its_codes():
    pipe = tiny.ldm()
    denoiser = PipelineDenoiser(pipe)
    noise = noise_from_seeds([0, 1], denoiser.shape).requires_grad_()
    answer = denoiser(noise, torch.tensor([900.0, 20.0]), denoiser.condition([0, 1]))
    expected = pipe.unet(noise, torch.tensor([900.0, 20.0])).sample
    assert torch.equal(answer, expected)
    denoiser.decode(answer).sum().backward()
    assert noise.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["flux", "sd", "ltx"])
def test_recomputed_calls_give_the_same_gradients_and_save_no_activations(name):
    case, denoiser = denoiser_of(name)
    noise, condition = noise_of(case)[1], denoiser.condition([0, 1])

    def run(steps, recompute):
        sampler = sampler_for(case, "noise", steps=steps)
        sampler.policy.requires_grad_(True)
        kept = {}

        def keep(tensor):
            if tensor.device.type == "cpu":
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            end = sampler(denoiser, noise, condition, recompute=recompute)
        end.square().mean().backward()
        return [p.grad for p in sampler.policy.parameters() if p.grad is not None], sum(
            kept.values()
        )

    plain, much = run(3, False)
    again, little = run(3, True)
    assert len(plain) == len(again) > 3
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert little < 0.5 * much
    more = run(7, True)[1] - little
    assert more <= 4 * 40 * noise.nbytes  # states and answers, no activations


def test_half_precision_weights_have_plans_and_states_of_their_own_precision():
    case = CASES["flux"]
    pipe = tiny.flux().to(torch.bfloat16)
    denoiser = PipelineDenoiser(pipe, PROMPTS, case.call)
    sampler = sampler_for(case, "noise")
    sampler.policy.requires_grad_(True)
    noise = noise_of(case)[1]
    end = sampler(denoiser, noise, denoiser.condition([0, 1]), recompute=True)
    end.square().mean().backward()
    assert end.dtype == torch.float32
    assert sampler.policy(noise).tau.dtype == torch.float64
    whole = sampler(denoiser_of("flux")[1], noise, denoiser.condition([0, 1]))
    assert 1e-6 < (end - whole).abs().max() / whole.abs().max() < 0.1
    assert sampler.policy.logits.table.grad.abs().sum() > 0


def test_a_prompt_is_encoded_once_and_stored_once(tmp_path):
    case, first = denoiser_of("flux", bank=tmp_path / "bank")
    for _ in range(2):
        first.condition([0, 1, 2, 3])
    files = sorted((tmp_path / "bank").iterdir())
    assert len(files) == 2
    again = denoiser_of("flux", bank=tmp_path / "bank")[1]
    again.bank.encode = None  # must not be called
    x, t = noise_of(case)[1], torch.tensor([0.9, 0.4])
    one, two = (d(x, t, d.condition([0, 1])) for d in (first, again))
    assert torch.equal(one, two)
    assert sorted((tmp_path / "bank").iterdir()) == files


def test_prompts_whose_encodings_differ_in_length_are_asked_one_by_one():
    case, denoiser = denoiser_of("qwen")
    prompts = ["a", "a much longer prompt"]
    mixed = denoiser.prompted(prompts)
    x, t = noise_of(case)[1], torch.tensor([0.9, 0.4])
    both = mixed(x, t, mixed.condition([0, 1]))
    for i, prompt in enumerate(prompts):
        row, alone = slice(i, i + 1), denoiser.prompted([prompt])
        expected = alone(x[row], t[row], alone.condition([0]))
        assert torch.allclose(both[row], expected, atol=1e-6)


def test_a_denoiser_without_prompts_says_so_and_refuses_unknown_arguments():
    case = CASES["flux"]
    denoiser = PipelineDenoiser(case.pipe(), [], case.call)
    with pytest.raises(ValueError, match="prompts must be given"):
        denoiser.condition([0])
    with pytest.raises(ValueError, match="takes, got frames"):
        PipelineDenoiser(case.pipe(), [], {"frames": 3})


def test_another_pipeline_than_that_of_the_fit_is_told(tmp_path):
    case, denoiser = denoiser_of("flux")
    made = {"pipeline": denoiser.describe()}
    artifact.save(sampler_for(case, "noise"), tmp_path / "a", made)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enable(case.pipe(), tmp_path / "a").disable()
    with pytest.warns(UserWarning, match="fitted on dtype float32, got bfloat16"):
        enable(tiny.flux().to(torch.bfloat16), tmp_path / "a").disable()


def test_latents_beyond_twice_the_fitted_size_are_told():
    with pytest.warns(UserWarning, match="beyond twice the size"):
        warn_of_size((4, 8, 8), (4, 16, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_size((4, 8, 8), (4, 8, 16))
        warn_of_size(None, (4, 64, 64))


def test_lpips_of_a_video_is_the_mean_over_its_frames():
    judge = object.__new__(losses.LPIPS)
    torch.nn.Module.__init__(judge)
    judge.network = lambda a, b: (a - b).abs().mean((1, 2, 3), keepdim=True)
    one, two = torch.randn(2, 2, 3, 5, 8, 8).unbind(0)
    expected = (one - two).abs().mean((1, 2, 3, 4))
    assert torch.allclose(judge(one, two), expected, atol=1e-6)

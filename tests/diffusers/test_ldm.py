"""Unconditional latent diffusion: the scheduler itself sees the noise."""

from types import SimpleNamespace

import pytest
import torch

import tiny_pipelines as tiny
from indis import Bounds, Discretization, Fixed, Form, Sampler, Wrapped, solvers
from indis.diffusers import enable
from indis.diffusers.process import process_of
from learned import closed, phi


def run(pipe, seeds, steps=3):
    """Latents: the decoder chooses codes, which jump."""
    latents = []
    pipe.vqvae.decode = lambda z: latents.append(z) or SimpleNamespace(sample=z)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    call = {"generator": generators, "num_inference_steps": steps, "output_type": "np"}
    pipe(batch_size=len(seeds), **call)
    return latents[0] * pipe.vqvae.config.scaling_factor


def same(one, other, tolerance):
    """Up to a share of the largest number, which is above 100 with random weights."""
    return float((one - other).abs().max()) <= tolerance * float(other.abs().max())


def noise(seeds):
    draws = [torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.cat(draws)


def sampler(pipe, kind):
    from diffusion_cases import perturbed

    torch.manual_seed(1)
    schedule = process_of(pipe.scheduler.config).schedule
    base, bounds = torch.tensor([[999.0, 600, 250, 0]]), Bounds.natural(schedule, dtau=0.2)
    make = {"noise": phi, "answers": closed}[kind]
    own = {"native": Form.NOISE} if kind == "answers" else {}
    policy = make(base, schedule, bounds, shape=(3, 8, 8), width=8, **own)
    return Sampler(perturbed(policy), solvers.named("ipndm:2"))


def test_euler_is_ddim():
    pipe = tiny.ldm()
    expected = run(pipe, [0, 1], 4)
    tau = torch.tensor([[*pipe.scheduler.timesteps.tolist(), -1.0]])
    plan = Discretization.plain(tau, to_zero=True)
    with enable(pipe, Sampler(Fixed(plan), solvers.Euler())):
        assert same(run(pipe, [0, 1], 4), expected, 2e-6)


@pytest.mark.parametrize("kind", ["noise", "answers"])
def test_a_batch_is_its_samples_and_our_own_loop(kind):
    pipe = tiny.ldm()
    own = sampler(pipe, kind)
    schedule = own.policy.schedule
    network = Wrapped(lambda x, t, _: pipe.unet(x, t.float())[0], schedule, (3, 8, 8), Form.NOISE)
    with torch.no_grad():
        expected = own(network, noise([0, 1]))
    with enable(pipe, own) as handle:
        both = run(pipe, [0, 1])
        last = handle.scheduler.timesteps[2]
        assert last.shape == (2,) and not torch.equal(last[0], last[1])
        singles = torch.cat([run(pipe, [0]), run(pipe, [1])])
    assert same(both, expected, 1e-5)
    assert same(both, singles, 1e-5)

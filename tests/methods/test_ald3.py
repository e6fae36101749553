"""ALD3's one-shot predictor: softplus fractions of a sample's own, monotone whatever the network
says."""

import math

import pytest
import torch

from indis import (
    EDM,
    Discretization,
    Recipe,
    RectifiedFlow,
    artifact,
    grids,
    prior,
    solve,
    solvers,
)
from indis.logits import Bounds
from indis.losses import squared_distance
from indis.methods import ALD3
from indis.methods.ald3 import OneShot
from problems import Bumpy, GoldenMixture, seeded
from small_cases import sentence, toy, toy_pairs

GOLDEN = GoldenMixture()
STEPS = 4
FLOOR = Bounds().floor


def one_shot(base="log_snr", domain="log_snr", schedule=None, shape=(3,), seed=0, std=0.0):
    schedule = schedule or EDM()
    torch.manual_seed(seed)
    policy = OneShot(
        grids.named(base)(schedule, STEPS), schedule, Bounds(domain=domain), shape=shape, width=16
    )
    if std:
        torch.nn.init.normal_(policy.head.weight, std=std)
    return policy


@pytest.mark.parametrize("grid", ["log_snr", "polynomial:7", "uniform"])
@pytest.mark.parametrize("domain", ["log_snr", "time"])
@pytest.mark.parametrize("problem", [GOLDEN, Bumpy(RectifiedFlow())], ids=["edm", "flow"])
def test_untrained_it_is_its_base_solver_bit_for_bit(problem, domain, grid):
    if problem is not GOLDEN and grid == "polynomial:7":
        grid = "flow_shift"
    sampler = ALD3(STEPS, grid=grid, domain=domain, width=16).untrained(problem)
    noise = seeded(6, *problem.shape, seed=1, dtype=torch.float32)
    base = Discretization.plain(grids.named(grid)(problem.schedule, STEPS))
    plain = solve(problem, prior(problem.schedule, noise), base, solvers.named("unipc:3:bh1"))
    assert torch.equal(sampler(problem, noise), plain)


@pytest.mark.parametrize("base", ["log_snr", "polynomial:7"])
def test_fractions_are_normalised_softplus_of_outputs_about_the_base(base):
    policy, outputs = one_shot(base), [0.4, -1.3, 2.0, 0.1]
    with torch.no_grad():
        policy.head.bias.copy_(torch.tensor(outputs))
    tau = policy(seeded(1, 3)).tau[0].detach()
    level = [-math.log(t) for t in grids.named(base)(EDM(), STEPS)[0].tolist()]
    span = level[-1] - level[0]
    even = [(b - a) / span for a, b in zip(level, level[1:], strict=False)]
    own = [
        math.log(math.expm1(STEPS * f)) for f in even
    ]  # the z at which softplus gives the base's fractions
    share = [math.log1p(math.exp(o + z)) for o, z in zip(outputs, own, strict=True)]
    kept = FLOOR * STEPS
    share = [(1 - kept) * s / sum(share) + kept * f for s, f in zip(share, even, strict=True)]
    expected = [math.exp(-(level[0] + span * sum(share[:k]))) for k in range(STEPS + 1)]
    torch.testing.assert_close(tau, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
@pytest.mark.parametrize("problem", [GOLDEN, Bumpy(RectifiedFlow())], ids=["edm", "flow"])
def test_extreme_outputs_leave_a_sound_plan_and_finite_gradients(problem, size):
    schedule = problem.schedule
    policy = one_shot("uniform", schedule.domain, schedule, problem.shape)
    signs = [[1, -1, 1, -1], [-1, -1, -1, -1], [1, 1, 1, 1], [-1, 1, 1, 1], [1, -1, -1, -1]]
    for row in signs:
        policy.zero_grad()
        with torch.no_grad():
            policy.head.bias.copy_(size * torch.tensor(row))
        plan = policy(seeded(2, *problem.shape, dtype=torch.float32)).check(schedule)
        assert torch.equal(plan.tau[:, [0, -1]], policy.base[:, [0, -1]].expand(2, 2))
        end = solve(
            problem, prior(schedule, seeded(2, *problem.shape)), plan, solvers.named("unipc:3:bh1")
        )
        end.sum().backward()
        assert end.isfinite().all()
        assert all(p.grad.isfinite().all() for p in policy.parameters())


def test_timesteps_are_all_that_it_moves():
    plan = one_shot(std=1.0)(seeded(5, 3, seed=3)).detach()
    assert float((plan.tau[0] - plan.tau[1]).abs().max()) > 1e-3
    assert torch.equal(plan.dtau, torch.zeros(5, STEPS, dtype=torch.float64))
    assert torch.equal(plan.gamma, torch.ones(5, STEPS, dtype=torch.float64))
    assert plan.weights is None


@pytest.mark.parametrize("shape", [(3,), (1, 16, 16)])
def test_a_sample_gets_the_same_plan_in_any_batch(shape):
    policy, noise = one_shot(shape=shape, std=0.5), seeded(4, *shape, seed=3, dtype=torch.float32)
    together = policy(noise).tau.detach()
    for i in range(4):
        torch.testing.assert_close(
            policy(noise[i : i + 1]).tau.detach(), together[i : i + 1], rtol=1e-5, atol=0
        )
    assert float(together.diff(dim=0)[:, 1:-1].abs().min()) > 1e-6


def test_it_comes_back_from_disk_as_it_was(tmp_path):
    sampler = ALD3(STEPS, grid="polynomial:7", width=16, depth=2).untrained(GOLDEN)
    torch.nn.init.normal_(sampler.policy.head.weight, std=0.5)
    artifact.save(sampler, tmp_path / "a")
    back, noise = artifact.load(tmp_path / "a"), seeded(4, 3, seed=3)
    assert isinstance(back.policy, OneShot)
    assert (back.policy.depth, back.policy.width, back.policy.bounds.domain) == (2, 16, "log_snr")
    assert torch.equal(back(GOLDEN, noise), sampler(GOLDEN, noise).detach())


def test_its_weights_are_drawn_from_the_fits_seed_and_disturb_nobodys_random_numbers():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (
        ALD3(3, recipe=Recipe(seed=s)).untrained(GOLDEN).policy for s in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.encoder.mix.weight, second.encoder.mix.weight)
    assert not torch.equal(first.encoder.mix.weight, other.encoder.mix.weight)


def test_all_of_the_network_learns_at_the_published_rate():
    method = ALD3(
        3, grid="uniform", width=16, recipe=Recipe(iterations=1, batch=64, lr=5e-4, holdout=0)
    )
    process = method.tuning(toy(), toy_pairs(), squared_distance)
    before = {k: v.clone() for k, v in process.sampler.policy.state_dict().items()}
    list(process.run())
    moved = {
        k: (v - before[k]).abs().max().item()
        for k, v in process.sampler.policy.state_dict().items()
    }
    assert moved["head.weight"] == pytest.approx(5e-4, rel=1e-2)
    assert moved["head.bias"] == pytest.approx(5e-4, rel=1e-2)


@pytest.mark.parametrize("field", ["steps", "width", "depth"])
def test_settings_that_make_no_sense_are_refused(field):
    least = {"steps": 2}.get(field, 1)
    with pytest.raises(ValueError) as error:
        ALD3(**{field: least - 1})
    assert sentence(error) == f"{field} must be at least {least}, got {least - 1}"


def test_an_unknown_domain_is_refused():
    with pytest.raises(ValueError) as error:
        ALD3(3, domain="lambda").untrained(toy())
    assert sentence(error) == "domain must be time or log_snr, got 'lambda'"

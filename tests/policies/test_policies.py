"""Where plans come from; an untrained policy is its base solver."""

import pytest
import torch
from torch import Tensor

from indis import (
    DEIS,
    EDM,
    IPNDM,
    AdamsBashforth,
    Bounds,
    Condition,
    Counted,
    Discretization,
    DPMSolverPP,
    Euler,
    Fixed,
    Heun,
    LearnedPolicy,
    RectifiedFlow,
    Sampler,
    UniPC,
    grids,
    prior,
    solve,
)
from indis.policies.encoders import ConvTrunk, VectorTrunk, trunk_for
from learned import per_sample, phi, shared
from problems import Bumpy, GoldenMixture, seeded

PROBLEM = GoldenMixture()
FLOW = Bumpy(RectifiedFlow())
SOLVERS = [
    Euler(),
    Heun(),
    IPNDM(3),
    AdamsBashforth(3),
    DEIS(3),
    DPMSolverPP(2),
    DPMSolverPP(3, False),
    UniPC(2),
    UniPC(3, "bh1"),
]
STEPS = 5


def base_for(problem) -> Tensor:
    return grids.named("polynomial" if problem is PROBLEM else "flow_shift")(
        problem.schedule, STEPS
    )


def policy_for(kind: str, problem, order: int, bounds: Bounds | None = None):
    base, schedule = base_for(problem), problem.schedule
    bounds = bounds or Bounds.natural(schedule, weights=0.2)
    if kind == "global":
        return shared(base, schedule, bounds, order)
    if kind == "per_sample":
        return per_sample(6, base, schedule, bounds, order)
    torch.manual_seed(0)
    return phi(base, schedule, bounds, shape=problem.shape, width=16, order=order)


def instance(shape: tuple[int, ...] = (3,), seed: int = 0, **fields) -> LearnedPolicy:
    """An INDIS network whose last layer is not zero, as after some training."""
    torch.manual_seed(seed)
    policy = phi(grids.polynomial(EDM(), 4), EDM(), Bounds(), shape=shape, width=16, **fields)
    torch.nn.init.normal_(policy.logits.head, std=0.5)
    return policy


@pytest.mark.parametrize("kind", ["instance", "global", "per_sample"])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_an_untrained_policy_is_its_base_solver_bit_for_bit(solver, kind):
    for problem in (PROBLEM, FLOW):
        if problem is FLOW and isinstance(solver, DEIS):
            continue  # refuses a flow from pure noise
        noise = seeded(6, *problem.shape, seed=1, dtype=torch.float32)
        sampler = Sampler(policy_for(kind, problem, solver.memory), solver)
        plain = solve(
            problem, prior(problem.schedule, noise), Discretization.plain(base_for(problem)), solver
        )
        assert torch.equal(sampler(problem, noise), plain)


@pytest.mark.parametrize("kind", ["instance", "global", "per_sample"])
@pytest.mark.parametrize("domain", ["time", "log_snr"])
@pytest.mark.parametrize("shift", ["relative", "gap", "additive"])
def test_an_untrained_policy_is_its_base_solver_whatever_its_bounds(shift, domain, kind):
    bounds = Bounds(dtau=0.3, weights=0.2, shift=shift, domain=domain)
    noise = seeded(6, 3, seed=1)
    sampler = Sampler(policy_for(kind, PROBLEM, 3, bounds), IPNDM(3))
    plain = solve(PROBLEM, prior(EDM(), noise), Discretization.plain(base_for(PROBLEM)), IPNDM(3))
    assert torch.equal(sampler(PROBLEM, noise), plain)


def test_a_policy_that_has_moved_is_no_longer_its_base_solver():
    noise, policy = seeded(6, 3, seed=1), instance()
    plain = Sampler(Fixed(policy.base), IPNDM(3))(PROBLEM, noise)
    moved = Sampler(policy, IPNDM(3))(PROBLEM, noise).detach()
    assert float((moved - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("size", [28, 64])
def test_the_convolutional_trunk_reads_pictures_of_any_size(size):
    policy = instance((3, size, size))
    noise = seeded(4, 3, size, size, seed=2, dtype=torch.float32)
    plan = policy(noise).check(EDM()).detach()
    assert plan.tau.shape == (4, 5)
    assert plan.tau.dtype == torch.float64
    assert float((plan.tau[0] - plan.tau[1])[1:-1].abs().min()) > 1e-6  # each picture has its own


def test_the_same_convolutional_weights_serve_two_sizes():
    policy = instance((1, 28, 28))
    for size in (28, 64):
        policy(seeded(2, 1, size, size, dtype=torch.float32)).check(EDM())


def test_the_convolutional_trunk_knows_where_in_the_picture_the_noise_leans():
    torch.manual_seed(0)
    trunk = ConvTrunk(1, 16).requires_grad_(False)
    patch, moved = torch.zeros(2, 1, 1, 32, 32)
    patch[..., 8:12, 8:12] = moved[..., 16:20, 16:20] = (
        3.0  # whole strides apart: equal on average, not by cell
    )
    torch.testing.assert_close(
        trunk.convolutions(patch).mean((2, 3)), trunk.convolutions(moved).mean((2, 3))
    )
    assert float((trunk(patch) - trunk(moved)).abs().max()) > 1e-4


@pytest.mark.parametrize(("shape", "kind"), [((5,), VectorTrunk), ((3, 8, 8), ConvTrunk)])
def test_trunks_suit_their_shapes(shape, kind):
    trunk = trunk_for(shape, 16, 2)
    assert isinstance(trunk, kind)
    assert trunk(torch.zeros(2, *shape)).shape == (2, 16)


@pytest.mark.parametrize("shape", [(), (4, 4), (1, 2, 3, 4)])
def test_shapes_that_no_trunk_reads_are_refused(shape):
    with pytest.raises(ValueError, match="shape must be"):
        trunk_for(shape, 16, 2)


@pytest.mark.parametrize("shape", [(3,), (1, 28, 28)])
def test_a_sample_gets_the_same_plan_in_any_batch(shape):
    policy = instance(shape, condition_dim=2)
    noise, features = (
        seeded(5, *shape, seed=3, dtype=torch.float32),
        seeded(5, 2, seed=4, dtype=torch.float32),
    )
    together = policy(noise, features)
    order = torch.tensor([4, 2, 0, 1, 3])
    permuted = policy(noise[order], features[order])
    for i in range(5):
        alone = policy(noise[i : i + 1], features[i : i + 1])
        torch.testing.assert_close(together.tau[i : i + 1], alone.tau, rtol=1e-5, atol=0)
        torch.testing.assert_close(together.gamma[i : i + 1], alone.gamma, rtol=1e-5, atol=0)
    torch.testing.assert_close(permuted.tau, together.tau[order], rtol=1e-5, atol=0)


def test_the_condition_changes_the_plan():
    policy = instance(condition_dim=2)
    noise = seeded(1, 3, seed=3).expand(2, 3)
    plan = policy(noise, torch.tensor([[1.0, 0.0], [0.0, 1.0]])).detach()
    assert float((plan.gamma[0] - plan.gamma[1]).abs().max()) > 1e-3
    same = policy(noise, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(same.gamma[0], same.gamma[1], rtol=1e-6, atol=0)


def test_the_sampler_hands_the_features_of_the_condition_to_the_policy():
    policy, noise = instance(condition_dim=2), seeded(2, 3, seed=3)
    ends = []
    for features in (torch.zeros(2, 2), torch.ones(2, 2)):
        plan = policy(noise, features).detach()
        end = Sampler(policy, Euler())(PROBLEM, noise, Condition(features=features)).detach()
        torch.testing.assert_close(
            end, solve(PROBLEM, 80 * noise, plan, Euler()), rtol=1e-12, atol=1e-12
        )
        ends.append(end)
    assert float((ends[0] - ends[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("features", [None, torch.zeros(2, 3), torch.zeros(2, 1)])
def test_features_of_the_wrong_width_are_refused(features):
    with pytest.raises(ValueError, match=r"features must be \(batch, 2\), got"):
        instance(condition_dim=2)(seeded(2, 3), features)


def test_a_policy_without_condition_ignores_features():
    policy, noise = instance(), seeded(2, 3, seed=3)
    assert torch.equal(policy(noise, torch.ones(2, 7)).gamma, policy(noise).gamma)


def test_double_precision_noise_gives_the_plan_of_its_single_precision_copy():
    policy, noise = instance(), seeded(2, 3, seed=3)
    assert torch.equal(policy(noise).tau, policy(noise.float()).tau)


def test_parameter_counts_are_the_numbers_that_are_learned():
    base, bounds = grids.polynomial(EDM(), 4), Bounds()
    assert Fixed(base).parameter_count() == 0
    assert shared(base, EDM(), bounds).parameter_count() == 3 * 4
    assert shared(base, EDM(), Bounds(weights=0.1), 3).parameter_count() == 6 * 4
    assert per_sample(7, base, EDM(), bounds).parameter_count() == 7 * 3 * 4
    # A bound of zero leaves a row of logits without effect.
    assert shared(base, EDM(), Bounds(dtau=0.0, gamma=0.0)).parameter_count() == 4
    assert shared(base, EDM(), Bounds(dtau=0.0, weights=0.1), 3).parameter_count() == 5 * 4
    assert per_sample(7, base, EDM(), Bounds(gamma=0.0)).parameter_count() == 7 * 2 * 4
    # 3 hidden layers, the condition, the mixing layer, the head
    expected = (3 * 16 + 16) + 2 * (16 * 16 + 16) + (2 * 16 + 16) + (16 * 16 + 16) + (16 * 12 + 12)
    assert instance(condition_dim=2).parameter_count() == expected


def test_weights_are_corrected_only_within_a_positive_bound():
    base = grids.polynomial(EDM(), 4)
    noise = seeded(1, 3)
    assert shared(base, EDM(), Bounds(), order=3)(noise).weights is None
    assert shared(base, EDM(), Bounds(weights=0.1), order=3)(noise).weights.shape == (1, 4, 3)
    assert shared(base, EDM(), Bounds(weights=0.1))(noise).weights is None


def test_a_fixed_policy_hands_out_its_plan():
    plan = Discretization.plain(grids.polynomial(EDM(), 4))
    assert all(
        a is b
        for a, b in zip(vars(Fixed(plan)(seeded(5, 3))).values(), vars(plan).values(), strict=True)
    )
    assert torch.equal(Fixed(plan.tau)(seeded(5, 3)).tau, plan.tau)
    assert Fixed(plan).steps == 4


def test_a_global_policy_shares_one_plan_and_a_per_sample_policy_looks_its_rows_up():
    base = grids.polynomial(EDM(), 4)
    one, own = shared(base, EDM(), Bounds()), per_sample(6, base, EDM(), Bounds())
    with torch.no_grad():
        own.logits.table.copy_(seeded(6, 3, 4, seed=5))
    assert one(seeded(5, 3)).tau.shape == (1, 5)
    everything = own(seeded(6, 3))
    some = own(seeded(2, 3), index=torch.tensor([4, 1]))
    torch.testing.assert_close(some.tau, everything.tau[[4, 1]], rtol=1e-14, atol=0)
    torch.testing.assert_close(some.gamma, everything.gamma[[4, 1]], rtol=1e-14, atol=0)


def test_per_sample_plans_without_index_need_all_samples():
    policy = per_sample(6, grids.polynomial(EDM(), 4), EDM(), Bounds())
    with pytest.raises(
        ValueError, match="index must be given for a policy of 6 samples.* got 5 samples without"
    ):
        policy(seeded(5, 3))


def test_the_sampler_hands_the_index_on():
    policy, noise = per_sample(6, grids.polynomial(EDM(), 4), EDM(), Bounds()), seeded(6, 3, seed=1)
    with torch.no_grad():
        policy.logits.table.copy_(seeded(6, 3, 4, seed=5))
    sampler, index = Sampler(policy, IPNDM(2)), torch.tensor([5, 0])
    together = sampler(PROBLEM, noise)
    torch.testing.assert_close(
        sampler(PROBLEM, noise[index], index=index), together[index], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("shape", [(5,), (2, 5), (1, 1)])
def test_base_grids_must_be_shared_by_all(shape):
    with pytest.raises(ValueError, match="base must be a shared grid"):
        shared(torch.ones(shape), EDM(), Bounds())


@pytest.mark.parametrize("analytic_first", [False, True])
@pytest.mark.parametrize("solver", [Euler(), Heun(), UniPC(3)], ids=repr)
def test_a_sampler_makes_the_number_of_network_calls_that_it_says(solver, analytic_first):
    counted = Counted(PROBLEM)
    sampler = Sampler(Fixed(base_for(PROBLEM)), solver, analytic_first)
    sampler(counted, seeded(2, 3))
    assert counted.calls == sampler.nfe == solver.nfe(STEPS) - analytic_first


def test_a_sampler_reproduces_the_golden_end_points():
    end = Sampler(Fixed(grids.polynomial(EDM(), 5)), IPNDM(3))(PROBLEM, PROBLEM.noise)
    torch.testing.assert_close(end, PROBLEM.golden["ipndm3_polynomial_5"], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", [(2, 4), (3,), (2, 3, 1)])
def test_noise_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match="noise must be"):
        Sampler(Fixed(base_for(PROBLEM)), Euler())(PROBLEM, torch.zeros(shape))


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_reach_every_parameter_but_those_behind_the_zero_layer_at_the_start(recompute):
    noise = seeded(4, 3, seed=6)
    untrained = policy_for("instance", PROBLEM, 3)
    Sampler(untrained, IPNDM(3))(PROBLEM, noise, recompute=recompute).square().sum().backward()
    reached = (untrained.logits.head.grad != 0).any(1)
    # Corrections of older weights in steps 0 (two) and 1 (one) have no answers to weigh.
    assert int((~reached).sum()) == 3
    assert torch.equal((untrained.logits.table.grad != 0).flatten(), reached)
    assert float(untrained.encoder.mix.weight.grad.abs().max()) == 0
    moved = instance()
    Sampler(moved, IPNDM(3))(PROBLEM, noise, recompute=recompute).square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in moved.parameters())


def test_one_gradient_step_lowers_the_error_to_a_better_end_point():
    noise = seeded(16, 3, seed=6)
    target = Sampler(Fixed(grids.polynomial(EDM(), 60)), Heun())(PROBLEM, noise)
    policy = shared(grids.polynomial(EDM(), 5), EDM(), Bounds())
    sampler = Sampler(policy, Euler())
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.05)
    errors = []
    for _ in range(20):
        optimiser.zero_grad()
        error = (sampler(PROBLEM, noise) - target).square().mean()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < 0.7 * errors[0]


def test_plans_survive_saving_and_loading():
    policy, other = instance(seed=0), instance(seed=1)
    noise = seeded(2, 3, seed=3)
    assert not torch.equal(policy(noise).tau, other(noise).tau)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(policy(noise).tau, other(noise).tau)


def test_an_instance_policy_that_starts_at_a_global_plan_is_that_plan():
    base, schedule, bounds = grids.polynomial(EDM(), 4), EDM(), Bounds(weights=0.3)
    plan = shared(base, schedule, bounds, order=2)
    with torch.no_grad():
        plan.logits.table.copy_(torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(3)))
    policy = phi(base, schedule, bounds, shape=(3,), width=8, order=2)
    policy.start_at(plan)
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(4))
    found, expected = policy(noise), plan(noise)
    for name in ("tau", "dtau", "gamma", "weights"):
        value = getattr(expected, name)
        torch.testing.assert_close(
            getattr(found, name), value.expand(5, *value.shape[1:]), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize(
    "change", [{"bounds": Bounds(dtau=0.1)}, {"base": grids.polynomial(EDM(), 3)}]
)
def test_an_instance_policy_refuses_to_start_at_a_plan_of_another_kind(change):
    own = {"base": grids.polynomial(EDM(), 4), "schedule": EDM(), "bounds": Bounds()}
    with pytest.raises(ValueError, match="start must be a shared plan on the same base grid"):
        phi(**own, shape=(3,), width=8).start_at(shared(**own | change))

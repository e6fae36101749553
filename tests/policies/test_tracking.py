"""Time tracking: nodes lie where corrected weights lead, by DyWeight's rule, for every policy of
logits."""

import pytest
import torch

from indis import (
    EDM,
    INDIS,
    IPNDM,
    Bounds,
    Discretization,
    Euler,
    Fixed,
    Form,
    Global,
    Instance,
    RectifiedFlow,
    Sampler,
    artifact,
    grids,
    prior,
    solve,
)
from indis.methods.dyweight import ipndm_rows
from indis.policies import ClosedLoop
from indis.policies.dyweight import DyWeightPolicy
from indis.policies.tracking import effective, stride
from problems import Bumpy, GoldenMixture, seeded
from small_cases import sentence

PROBLEMS = {"edm": GoldenMixture(), "flow": Bumpy(RectifiedFlow(0.02, 0.95))}
EVERYWHERE = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
STEPS = 4


def bounds_of(problem, **fields):
    form = IPNDM(3).form(problem.native).value
    return Bounds.natural(problem.schedule, track=form, **{"weights": 0.3} | fields)


def base_of(problem):
    return grids.named("polynomial" if problem is PROBLEMS["edm"] else "uniform")(
        problem.schedule, STEPS
    )


def policies(problem, *, seed=None, scale=0.5):
    """One of each kind, with logits of zero, or random under ``seed``."""
    base, schedule, bounds = base_of(problem), problem.schedule, bounds_of(problem)
    torch.manual_seed(seed or 0)
    network = {"shape": problem.shape, "width": 16, "order": 3}
    made = {
        "global": Global(base, schedule, bounds, 3),
        "instance": Instance(base, schedule, bounds, **network),
        "look first": ClosedLoop(
            base, schedule, bounds, native=problem.native, look="first", **network
        ),
        "look every": ClosedLoop(
            base, schedule, bounds, native=problem.native, look="every", **network
        ),
    }
    if seed is not None:
        for policy in made.values():
            for parameter in (
                [policy.free] if isinstance(policy, Global) else policy.head.parameters()
            ):
                torch.nn.init.normal_(parameter, std=scale)
    return made


def hand(grid, sums):
    """The rule for the EDM time, which is its own clock."""
    reached = [float(grid[0])]
    for goal, total in zip(grid[1:], sums, strict=True):
        reached.append(reached[-1] + (float(goal) - reached[-1]) * total)
    return reached


def test_the_rule_by_hand():
    grid, sums = torch.tensor([[10.0, 4.0, 1.0]], dtype=torch.float64), [1.1, 0.8]
    nodes = effective(grid, torch.tensor([sums], dtype=torch.float64), EDM(), Form.NOISE)
    assert nodes[0].tolist() == pytest.approx([10.0, 3.4, 1.48]) == hand(grid[0], sums)
    assert stride(grid, nodes, EDM(), Form.NOISE)[0].tolist() == pytest.approx([1 / 1.1, 1 / 0.8])


@EVERYWHERE
def test_a_global_plan_with_tracked_weights_is_dyweights(problem):
    """Same weights, no time scales: the same nodes and the same end, though DyWeight's policy says
    it otherwise."""
    form, base = IPNDM(3).form(problem.native), base_of(problem)
    ours = Global(base, problem.schedule, bounds_of(problem, dtau=0.0, gamma=0.0), 3)
    ours.free.data[:, 3:] = seeded(1, 3, STEPS, seed=2)
    rows = ipndm_rows(STEPS, 3)
    theirs = DyWeightPolicy(base, rows, problem.schedule, form=form, native=problem.native)
    plan = ours(seeded(1, *problem.shape)).detach()
    theirs.weights.data.add_(plan.weights[0])
    noise = seeded(5, *problem.shape, seed=3)
    ends = [Sampler(policy, IPNDM(3))(problem, noise) for policy in (ours, theirs)]
    assert torch.allclose(plan.tau, theirs(noise).tau, rtol=1e-12, atol=0)
    assert torch.allclose(*ends, rtol=1e-10, atol=1e-10)
    moved = (plan.tau - base).abs()[:, 1:-1] / base[:, 1:-1]
    assert float(moved.min()) > 1e-3


@EVERYWHERE
@pytest.mark.parametrize("kind", ["global", "instance", "look first", "look every"])
def test_untrained_it_is_its_base_solver_bit_for_bit(problem, kind):
    noise = seeded(6, *problem.shape, seed=1, dtype=torch.float32)
    plain = solve(
        problem, prior(problem.schedule, noise), Discretization.plain(base_of(problem)), IPNDM(3)
    )
    assert torch.equal(Sampler(policies(problem)[kind], IPNDM(3))(problem, noise), plain)


@EVERYWHERE
@pytest.mark.parametrize("kind", ["global", "instance", "look first", "look every"])
@pytest.mark.parametrize("scale", [0.5, 1e3])
def test_any_logits_give_a_sound_plan_that_replays(problem, kind, scale):
    sampler = Sampler(policies(problem, seed=4, scale=scale)[kind], IPNDM(3))
    noise = seeded(6, *problem.shape, seed=5)
    plan = sampler.realized_plan(problem, noise).check(problem.schedule)
    assert plan.stretch is not None
    assert float((plan.stretch.detach() - 1).abs().max()) > 1e-3
    replayed = solve(problem, prior(problem.schedule, noise), plan, IPNDM(3))
    assert torch.equal(replayed, sampler(problem, noise))


def test_weights_of_answers_that_do_not_exist_yet_move_no_node():
    problem = PROBLEMS["edm"]
    policy = policies(problem)["global"]
    policy.free.data[0, 4:, 0] = policy.free.data[0, 5:, 1] = 3.0
    assert torch.equal(policy(seeded(1, *problem.shape)).tau, base_of(problem))


def test_gradients_reach_weights_through_the_nodes():
    problem = PROBLEMS["edm"]
    policy = policies(problem)["global"]
    policy(seeded(1, *problem.shape)).tau.sum().backward()
    slope = policy.free.grad[0]
    assert float(slope[3].abs().min()) > 0 and float(slope[5, 2:].abs().min()) > 0
    assert float(slope[4, 0].abs()) == float(slope[5, :2].abs().sum()) == 0
    schedule, inputs = (
        EDM(),
        (base_of(problem), (1 + 0.1 * seeded(3, STEPS, seed=6)).requires_grad_()),
    )
    assert torch.autograd.gradcheck(
        lambda base, sums: effective(base, sums, schedule, Form.NOISE), inputs
    )


def test_a_frozen_plan_and_its_rows_keep_the_stretch():
    problem = PROBLEMS["edm"]
    plan = policies(problem, seed=7)["instance"](seeded(4, *problem.shape, seed=8)).detach()
    assert torch.equal(plan[:2].stretch, plan.stretch[:2])
    noise = seeded(1, *problem.shape, seed=9)
    fixed = Fixed(plan[:1])
    rebuilt = Fixed.rebuild(fixed.describe(), fixed.state_dict())
    first, second = (Sampler(policy, IPNDM(3))(problem, noise) for policy in (fixed, rebuilt))
    assert torch.equal(first, second)


def test_a_tracked_sampler_survives_its_artifact(tmp_path):
    problem, noise = PROBLEMS["edm"], seeded(3, *PROBLEMS["edm"].shape, seed=1, dtype=torch.float32)
    sampler = INDIS(steps=STEPS, weights=0.3, track=True).untrained(problem)
    torch.nn.init.normal_(sampler.policy.head.weight, std=0.5)
    artifact.save(sampler, tmp_path, {})
    assert torch.equal(artifact.load(tmp_path)(problem, noise), sampler(problem, noise))


@pytest.mark.parametrize(
    "fields", [{"weights": 0.0}, {"weights": 0.3, "solver": "dpmpp:2"}], ids=str
)
def test_tracking_without_weights_of_ipndm_is_refused(fields):
    with pytest.raises(ValueError, match="track must be False without weights on ipndm:1") as error:
        INDIS(track=True, **fields)
    sentence(error)


def test_tracking_is_a_freedom_by_name():
    assert INDIS(weights=0.3, track=True).freedoms.endswith("weights+tracking")


def test_euler_has_one_weight_and_may_be_tracked():
    problem = PROBLEMS["edm"]
    bounds = Bounds.natural(problem.schedule, weights=0.3, track="noise")
    policy = Global(base_of(problem), problem.schedule, bounds, 1)
    policy.free.data[:, 3] = 1.0
    plan = policy(seeded(1, *problem.shape))
    assert float(plan.tau[0, 1].detach()) < float(base_of(problem)[0, 1])
    assert torch.isfinite(Sampler(policy, Euler())(problem, seeded(2, *problem.shape))).all()

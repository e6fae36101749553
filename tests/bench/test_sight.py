"""What a policy could foresee: gradients of a sample's own, the views on it, and shares that are
known beforehand."""

import pytest
import torch

from indis import INDIS, Sampler, losses, methods, prior, solve, solvers
from indis.bench.foresight import SightConfig, Wishes, gathered, observe, shares
from indis.cli.main import run
from indis.plan import PlanWrapper
from indis.policies.closed import observation
from indis.sensitivity import balancing_scale, per_sample_gradients, sensitivity
from indis.solvers import Euler
from indis.storage import load_json
from small_cases import toy, toy_pairs

CONFIG = SightConfig(epochs=30, batch=64, lr=5e-3, width=32)


def explained(wishes):
    return {row["view"]: row["explained"] for row in shares(wishes, CONFIG)}


def made(gradients_of, count=1500):
    generator = torch.Generator().manual_seed(0)
    noise, label = (
        torch.randn(count, 2, generator=generator),
        torch.randint(3, (count,), generator=generator),
    )
    features = torch.nn.functional.one_hot(label, 3).float()
    return Wishes(gradients_of(noise, label, generator), {"noise": noise}, features)


def test_what_the_noise_decides_is_seen_in_the_noise_alone():
    found = explained(
        made(lambda x, label, g: torch.stack([x[:, 0] * x[:, 1], x[:, 0].abs()], dim=1))
    )
    assert found["noise"] > 0.8 and abs(found["condition"]) < 0.1


def test_what_the_condition_decides_is_seen_by_all():
    found = explained(made(lambda x, label, g: label[:, None] ** 2.0))
    assert found["condition"] > 0.95 and found["noise"] > 0.95


def test_half_of_the_variance_that_nothing_tells_stays_unexplained():
    found = explained(made(lambda x, label, g: x[:, :1] + torch.randn(len(x), 1, generator=g)))
    assert 0.35 < found["noise"] < 0.6


def test_one_sample_of_enormous_gradient_does_not_decide():
    def wild(x, label, g):
        gradients = x[:, :1].clone()
        gradients[7] = 1e6
        return gradients

    assert explained(made(wild))["noise"] > 0.8


def global_plan():
    sampler = INDIS(steps=3, reads="nothing").untrained(toy())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        table = sampler.policy.logits.table
        table.copy_(0.3 * torch.randn(table.shape, generator=generator))
        sampler.policy.logits.scale.uniform_(0.5, 1.0, generator=generator)
    return sampler


def test_gradients_of_all_samples_sum_to_that_of_the_plan_they_share():
    data, sampler = toy_pairs(16), global_plan()
    own = per_sample_gradients(sampler, toy(), data, losses.squared_distance)
    student = sampler(toy(), data.noise, data.condition)
    losses.squared_distance(student, data.target).sum().backward()
    # free acts through scale, own gradients are taken behind it.
    torch.testing.assert_close(
        (own.sum(0, keepdim=True) * sampler.policy.logits.scale), sampler.policy.logits.table.grad
    )
    rms = sensitivity(sampler, toy(), data, losses.squared_distance)
    torch.testing.assert_close(rms, own.square().mean(0, keepdim=True).sqrt())
    parts = per_sample_gradients(sampler, toy(), data, losses.squared_distance, batch=5)
    torch.testing.assert_close(parts, own)


def test_views_are_the_noise_and_what_a_closed_loop_sees():
    data, sampler, asked = toy_pairs(130), global_plan(), []

    class Heard:
        def __getattr__(self, name):
            return getattr(toy(), name)

        def __call__(self, x, t, condition):
            asked.append((x, toy()(x, t, condition), t))
            return asked[-1][1]

    parts = list(observe(sampler, toy(), data, losses.squared_distance))
    wishes = gathered(parts)
    assert [len(part) for part in parts] == [100, 30] and len(wishes) == 130
    assert list(wishes.views) == ["noise", "answer 0", "answer 1", "answer 2"]
    assert torch.equal(wishes.views["noise"], data.noise)
    with torch.no_grad():
        sampler(Heard(), data.noise, data.condition)
    for k, (x, answer, t) in enumerate(asked):
        expected = observation(x, answer, t, toy().schedule, toy().native).float()
        torch.testing.assert_close(wishes.views[f"answer {k}"], expected, rtol=1e-4, atol=1e-5)
    # The last node is where it ends, so every other logit acts: 2 of tau, 3 of dtau, 3 of gamma at
    # most.
    assert wishes.gradients.shape[1] <= 3 * 3


@pytest.mark.parametrize(
    ("solver", "afs"), [("ipndm:3", True), ("heun", False), ("heun", True), ("unipc:2", False)]
)
def test_answers_are_named_after_the_node_at_which_a_closed_loop_has_them(solver, afs):
    """An analytic step asks nothing, a trial is no node's: what a loop is told at node k counts."""
    data, plain = toy_pairs(8), global_plan()
    sampler = Sampler(plain.policy, solvers.named(solver), analytic_first=afs)
    heard = {}

    class Loop(PlanWrapper):
        def decide(self, k, x, answer, features=None):
            heard[k] = x
            return super().decide(k, x, answer)

    with torch.no_grad():
        plan = Loop(plain.policy(data.noise, data.condition.features, None))
        start = prior(toy().schedule, data.noise)
        solve(toy(), start, plan, sampler.solver, data.condition, analytic_first=afs)
    (wishes,) = observe(sampler, toy(), data, losses.squared_distance)
    assert list(wishes.views) == ["noise", *(f"answer {k}" for k in range(afs, 3))]
    tau, dtau = (
        getattr(sampler.realized_plan(toy(), data.noise, data.condition), part)
        for part in ("tau", "dtau")
    )
    for k in range(afs, 3):
        t = (tau[:, k] + dtau[:, k]).expand(8)
        expected = (
            observation(
                heard[k], toy()(heard[k], t, data.condition), t, toy().schedule, toy().native
            )
            .detach()
            .float()
        )
        torch.testing.assert_close(wishes.views[f"answer {k}"], expected, rtol=1e-4, atol=1e-5)


def test_a_solver_whose_calls_are_no_node_s_is_refused():
    class Odd(Euler):
        def nfe(self, steps):
            return 2 * steps - 1

    sampler = Sampler(global_plan().policy, Odd())
    with pytest.raises(ValueError, match="as many calls in every step, got Odd with 5 for 3 steps"):
        list(observe(sampler, toy(), toy_pairs(8), losses.squared_distance))


def test_a_plan_without_freedoms_is_refused():
    sampler = INDIS(steps=1, reads="nothing", dtau=0.0, gamma=0.0).untrained(toy())
    with pytest.raises(ValueError, match="logit that acts"):
        gathered(list(observe(sampler, toy(), toy_pairs(8), losses.squared_distance)))


def test_a_policy_without_logits_is_refused():
    sampler = methods.heuristic(toy(), solver="euler", grid="uniform", steps=2)
    with pytest.raises(TypeError, match="logits"):
        per_sample_gradients(sampler, toy(), toy_pairs(8), losses.squared_distance)


def test_the_command_writes_a_row_a_view(tmp_path, capsys):
    teach = ["teach", "--model", "toy", "--count", "60", "--out", str(tmp_path / "data")]
    assert run(teach) == 0
    fit = [
        "fit",
        "--method",
        "god",
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "god"),
        "--steps",
        "2",
    ]
    small = [
        "--loss",
        "mse",
        "--iterations",
        "2",
        "--batch",
        "8",
        "--holdout",
        "8",
    ]
    assert run(fit + small) == 0
    data = str(tmp_path / "data")
    sight = ["bench", "foresight", "--data", data, "--loss", "mse", "--epochs", "2"]
    assert (
        run([*sight, "--artifact", str(tmp_path / "god"), "--json", str(tmp_path / "sight.json")])
        == 0
    )
    rows = load_json(tmp_path / "sight.json")["rows"]
    assert [row["view"] for row in rows] == ["noise", "answer 0", "answer 1"]
    assert all(row["samples"] == 60 and row["explained"] < 1 for row in rows)
    assert run([*sight, "--artifact", str(tmp_path / "god"), "--count", "3"]) == 2
    assert run([*sight, "--artifact", "nobody"]) == 2
    assert run([*sight, "--artifact", "fashion-nfe3"]) == 2
    assert "global plan" in capsys.readouterr().err


def test_even_scale_makes_strong_logits_as_weak_as_the_weakest_and_leaves_idle_ones():
    rms = torch.tensor([[[0.0, 1.0, 1.0, 2.0, 100.0]]])
    torch.testing.assert_close(balancing_scale(rms), torch.tensor([[[1.0, 1.0, 1.0, 0.5, 0.01]]]))
    assert balancing_scale(torch.zeros(1, 1, 2)).eq(1).all()

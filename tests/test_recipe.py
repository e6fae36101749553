"""What a recipe says of a fit, and how a fit tells that nothing improved."""

from dataclasses import replace

import pytest
import torch

from fits import finish, start
from indis import GOD, INDIS, Recipe, losses
from indis.methods import EPD, Local
from indis.methods.method import heuristic
from indis.recipe import descend
from small_cases import TinyClasses, sentence, toy, toy_pairs


def rates(method, denoiser):
    """Learning rates by group, of an untrained policy."""
    policy = method.untrained(denoiser).policy
    return method.recipe.optimizer(policy, tuple(denoiser.shape)).param_groups


@pytest.mark.parametrize(
    ("changes", "lr"),
    [
        ({}, 0.3),
        ({"dtau": 0.0}, 0.3),
        ({"dtau": 0.0, "gamma": 0.0}, 0.1),
        ({"dtau": 0.0, "gamma": 0.0, "weights": 0.1}, 0.3),
    ],
)
@pytest.mark.parametrize("method", [GOD, INDIS])
def test_timesteps_alone_learn_at_a_lower_rate(method, changes, lr):
    policy = method(**changes).untrained(toy()).policy
    assert method().recipe.rate(policy) == lr
    assert Recipe(lr=0.02).rate(policy) == 0.02


def test_a_short_fit_of_timesteps_alone_does_not_overshoot():
    """At 0.3, the default before, it ends a fifth above what it reaches at 0.1."""
    data, unseen = toy_pairs(600), toy_pairs(1000, first=5000)

    def reached(lr):
        found = []
        for seed in (0, 1, 2):
            recipe = Recipe(60, 8, lr, holdout=100, validate_every=20, seed=seed)
            method = GOD(4, "ipndm:2", "uniform", dtau=0.0, gamma=0.0, recipe=recipe)
            process = finish(method.tuning(toy(), data, losses.named("squared")))
            with torch.no_grad():
                found.append(process.losses(process.sampler, unseen).mean().item())
        return sum(found)

    assert reached(None) < 0.9 * reached(0.3)


def test_networks_and_correctors_have_rates_of_their_own():
    groups = rates(Local(steps=3, width=8), TinyClasses())
    assert [group["rate"] for group in groups] == [1.0, 0.007, 0.02]
    assert [group["delay"] for group in groups] == [0.0, 100.0, 100.0]  # a fifth of 500
    method = INDIS(steps=3, width=8).with_recipe(network_rate=0.5, settle=0.0)
    assert [group["rate"] for group in rates(method, toy())] == [1.0, 0.5]
    assert [group["rate"] for group in rates(INDIS(steps=3, width=8), toy())] == [1.0, 0.03]


def test_a_recipe_is_changed_by_the_config_that_has_it():
    method = EPD(steps=2).with_recipe(iterations=7, batch=3)
    assert method.recipe == replace(EPD().recipe, iterations=7, batch=3)
    assert method.recipe.lr == 0.2  # the method's own
    with pytest.raises(ValueError, match="recipe has iterations, .* got epochs") as error:
        method.with_recipe(epochs=2)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        method.with_recipe(batch=0)


def test_a_fit_knows_whether_it_improved():
    good, bad = start(lr=0.1, iterations=20), start(lr=1e3, iterations=3, validate_every=1)
    assert not good.improved
    assert finish(good).improved and good.best < good.initial_loss
    assert not finish(bad).improved and bad.best == bad.initial_loss
    assert not finish(start(holdout=0)).improved


def test_there_is_nothing_to_validate_on_without_held_out_end_points():
    with pytest.raises(ValueError, match="holdout must be above 0 to validate") as error:
        start(holdout=0).validate()
    sentence(error)


def test_a_descent_reaches_a_minimum_and_goes_on_where_it_was():
    target = torch.tensor([1.0, -2.0])

    def descent(x, first=0):
        optimizer = torch.optim.Adam([x])
        objective = lambda step: (x - target).square().sum()  # noqa: E731
        return descend(optimizer, objective, iterations=200, lr=0.1, warmup=10, first=first)

    x = torch.zeros(2, requires_grad=True)
    steps = list(descent(x))
    assert [step for step, _ in steps] == list(range(1, 201))
    torch.testing.assert_close(x.detach(), target, rtol=0, atol=1e-2)
    assert [step for step, _ in descent(x, first=198)] == [199, 200]


def test_a_descent_takes_no_step_that_is_not_finite():
    x = torch.ones(1, requires_grad=True)
    objective = lambda step: (x * float("nan") if step == 2 else x).sum()  # noqa: E731
    run = descend(torch.optim.SGD([x]), objective, iterations=5, lr=0.1)
    with pytest.raises(FloatingPointError, match="not finite at iteration 3"):
        for _ in run:
            last = x.detach().clone()
    assert torch.equal(x.detach(), last)


def test_a_base_that_goes_to_zero_noise_is_kept():
    tiny = TinyClasses()
    noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    condition = tiny.condition([0, 1, 2])
    plain = heuristic(tiny, solver="euler", grid="polynomial", steps=4, to_zero=True)
    assert plain.policy.to_zero and plain.nfe == 4
    for method in (GOD, INDIS, Local):
        sampler = method(4, "euler", "polynomial+zero", **small(method)).untrained(tiny)
        assert sampler.policy.to_zero
        assert torch.equal(sampler(tiny, noise, condition), plain(tiny, noise, condition))
    with pytest.raises(ValueError, match="grid must end at t_min for EPD") as error:
        EPD(steps=2, grid="polynomial+zero").untrained(tiny)
    sentence(error)
    with pytest.raises(ValueError, match="to_zero must be True or None for grid"):
        heuristic(tiny, grid="polynomial+zero", to_zero=False)


def small(method):
    return {} if method is GOD else {"width": 8, "depth": 1}

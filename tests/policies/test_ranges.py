"""One phi for every N: the base solver at each N before tuning, one network after it, and the
choice is kept."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from indis import IPNDM, Bounds, Fixed, Recipe, Sampler, grids, losses
from indis.methods import EveryN
from indis.methods.indis import turns
from indis.policies import LearnedPolicy
from learned import phi
from problems import GoldenMixture, seeded
from small_cases import TinyClasses, sentence, toy, toy_pairs

PROBLEM = GoldenMixture()
COUNTS = (3, 4, 6)


def policy(seed=None, weights=0.2):
    bases = [grids.polynomial(PROBLEM.schedule, n) for n in COUNTS]
    torch.manual_seed(seed or 0)
    bounds = Bounds.natural(PROBLEM.schedule, weights=weights)
    made = phi(bases, PROBLEM.schedule, bounds, shape=PROBLEM.shape, width=16, order=3)
    if seed is not None:
        for own in made.by_steps.values():
            torch.nn.init.normal_(own.head, std=0.3)
    return made


@pytest.mark.parametrize("steps", COUNTS)
def test_untrained_it_is_the_base_solver_at_every_n(steps):
    noise = seeded(4, *PROBLEM.shape, dtype=torch.float32)
    plain = Sampler(Fixed(grids.polynomial(PROBLEM.schedule, steps)), IPNDM(3))(PROBLEM, noise)
    assert torch.equal(Sampler(policy().at(steps), IPNDM(3))(PROBLEM, noise), plain)


@pytest.mark.parametrize("steps", COUNTS)
def test_one_network_plans_any_of_its_numbers(steps):
    made, noise = policy(seed=1).at(steps), seeded(5, *PROBLEM.shape, seed=2)
    plan = made(noise).check(PROBLEM.schedule)
    assert plan.tau.shape == (5, steps + 1) and plan.weights.shape == (5, steps, 3)
    assert (plan.tau[0] - plan.tau[1])[1:-1].abs().min() > 0
    assert Sampler(made, IPNDM(3)).nfe == steps


def test_numbers_it_was_not_made_for_are_refused():
    with pytest.raises(ValueError) as error:
        policy().at(5)
    assert sentence(error) == "steps must be one of 3, 4, 6, got 5"
    with pytest.raises(ValueError, match="different numbers of steps"):
        phi([policy().at(3).base] * 2, PROBLEM.schedule, Bounds(), shape=(3,))


def test_gradients_reach_the_network_and_only_the_head_and_table_in_use():
    made = policy(seed=3).at(4)
    Sampler(made, IPNDM(3))(PROBLEM, seeded(6, *PROBLEM.shape)).square().sum().backward()
    used = ("encoder.trunk.layers.0.weight", "encoder.mix.weight")
    for name in (*used, "by_steps.4.table", "by_steps.4.head"):
        assert made.get_parameter(name).grad.abs().sum() > 0, name
    for other in (3, 6):
        for name in ("table", "head"):
            assert made.get_parameter(f"by_steps.{other}.{name}").grad is None


def test_the_choice_survives_storage():
    made = policy(seed=4).at(4)
    back = LearnedPolicy.rebuild(made.describe(), made.state_dict())
    noise = seeded(3, *PROBLEM.shape)
    assert back.steps == 4 and torch.equal(back(noise).tau, made(noise).tau)


def test_each_iteration_tunes_one_number_and_the_validation_sees_all():
    fit = Recipe(iterations=4, batch=8, lr=0.05, holdout=16, validate_every=2, probes=8)
    method = EveryN(steps=4, fewest=3, solver="euler", grid="uniform", width=8, depth=1, recipe=fit)
    process = method.tuning(toy(), toy_pairs(48), losses.named("squared"))
    own = process.sampler.policy.by_steps
    tables = [own[n].table.detach().clone() for n in "34"]
    next(process.descent())
    moved = [not torch.equal(own[n].table, t) for n, t in zip("34", tables, strict=True)]
    assert moved == [True, False]
    separate = [process.heldout_loss(process.sampler.at(n)) for n in (3, 4)]
    assert process.validate() == pytest.approx((separate[0] * separate[1]) ** 0.5)
    assert own["3"].scale.max() == 1 and own["3"].scale.min() < 1


@pytest.mark.parametrize("emphasis", [0.0, 1.0, 2.0])
def test_turns_are_spread_in_proportion_to_a_power_of_n(emphasis):
    counts, iterations = (3, 4, 5, 6), 1000
    order = turns(counts, emphasis, iterations)
    whole = sum(n**-emphasis for n in counts)
    for end in (40, 500, iterations):  # at any time, not only in the end
        assert all(abs(order[:end].count(n) - end * n**-emphasis / whole) < 2 for n in counts)
    assert order[:300] == turns(counts, emphasis, 300)  # what comes later changes nothing


def test_without_emphasis_the_numbers_take_turns():
    assert turns((3, 4, 5), 0.0, 7) == [3, 4, 5, 3, 4, 5, 3]


def test_condition_features_are_needed_where_it_reads_them():
    method = EveryN(steps=3, fewest=2, solver="euler", width=8)
    sampler = method.untrained(TinyClasses())
    with pytest.raises(ValueError, match="features must be .batch, 10., got None"):
        sampler.policy(torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fewest": 0}, "fewest must be in 1"),
        ({"fewest": 11}, "fewest must be in 1"),
        ({"reads": "answers"}, "reads must be nothing or noise for a range"),
        ({"emphasis": -1.0}, "emphasis must be in 0"),
    ],
)
def test_ranges_that_are_none_are_refused(changes, words):
    with pytest.raises(ValueError) as error:
        EveryN(**changes)
    assert words in sentence(error)


def test_views_of_one_policy_serve_several_threads_at_once():
    """A number of steps is no state: no view changes what another one plans."""
    made, noise = policy(seed=5), seeded(4, *PROBLEM.shape, dtype=torch.float32)
    sampler = Sampler(made, IPNDM(3))
    alone = {n: sampler.at(n)(PROBLEM, noise) for n in COUNTS}
    with ThreadPoolExecutor(4) as pool:
        wanted = COUNTS * 8
        found = list(pool.map(lambda n: sampler.at(n)(PROBLEM, noise), wanted))
    assert all(torch.equal(alone[n], end) for n, end in zip(wanted, found, strict=True))
    assert made.steps == 6 and made.at(3).at(4).steps == 4
    made.at(3).logits.table.data.add_(1.0)
    assert made.at(3).logits.table.min() == 1.0  # one set of parameters


def test_a_range_reads_no_answers():
    bases = [grids.polynomial(PROBLEM.schedule, n) for n in (3, 4)]
    with pytest.raises(ValueError, match="bases must be one grid") as error:
        LearnedPolicy(
            bases, PROBLEM.schedule, Bounds(), reads="answers", shape=(3,), native=PROBLEM.native
        )
    sentence(error)


def test_parameters_of_a_range_are_those_that_act():
    bases = [grids.polynomial(PROBLEM.schedule, n) for n in (3, 4)]
    bounds = Bounds(dtau=0.0)
    assert LearnedPolicy(bases, PROBLEM.schedule, bounds).parameter_count() == 6 + 8
    one = [LearnedPolicy(base, PROBLEM.schedule, bounds) for base in bases]
    assert [policy.parameter_count() for policy in one] == [6, 8]

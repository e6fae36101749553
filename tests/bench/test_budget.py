"""Budgets: the price meets the mean, samples keep their own number whatever the batch, and it pays
on the toy."""

import pytest
import torch

from indis import Recipe, Wrapped, artifact, losses
from indis.bench import budget
from indis.bench.budget import BudgetConfig, BudgetSampler, allocate, price_for
from indis.bench.error_predictor import ErrorPredictor, deviance
from indis.denoise import Counted
from indis.methods import INDIS, EveryN
from indis.storage import load_json
from small_cases import contents, reseal, same_tensors, sentence, toy, toy_pairs

COUNTS = (2, 3, 5)


@pytest.fixture(scope="module")
def fitted():
    fit = Recipe(iterations=30, batch=64, lr=0.1, holdout=32, validate_every=15)
    method = EveryN(
        steps=4, fewest=2, solver="euler", grid="uniform", width=16, depth=2, recipe=fit
    )
    process = method.tuning(toy(), toy_pairs(256), losses.named("squared"))
    list(process.run())
    return process.sampler


@pytest.fixture(scope="module")
def measured(fitted):
    data = toy_pairs(1500)
    table = dict(budget.measure(fitted, toy(), data, losses.named("squared")))
    return data, torch.stack(list(table.values()), dim=1)


@pytest.fixture(scope="module")
def own(fitted, measured):
    predictor = budget.foresee(
        fitted, *measured, BudgetConfig(iterations=400, batch=256, width=32, depth=2)
    )
    foreseen = predictor(measured[0].noise)
    return BudgetSampler(fitted, predictor, price_for(foreseen, predictor.counts, 3.0), 3.0)


def test_the_allocation_is_that_of_brute_force():
    generator = torch.Generator().manual_seed(0)
    expected = torch.rand(40, 3, generator=generator, dtype=torch.float64)
    for price in (0.0, 0.05, 0.3, 10.0):
        picked = allocate(expected.log(), COUNTS, price)
        best = [
            min(range(3), key=lambda j: row[j] + price * COUNTS[j]) for row in expected.tolist()
        ]
        assert picked.tolist() == best


@pytest.mark.parametrize("mean", [2.0, 2.7, 3.5, 5.0])
def test_the_price_meets_the_mean_from_below(mean):
    generator = torch.Generator().manual_seed(1)
    logs = torch.randn(500, 3, generator=generator).sort(descending=True).values
    steps = torch.tensor(COUNTS, dtype=torch.float64)[
        allocate(logs, COUNTS, price_for(logs, COUNTS, mean))
    ]
    assert mean - 0.05 < steps.mean() <= mean


def test_rows_that_are_foreseen_alike_move_together_and_may_stay_below_the_mean():
    logs = (
        torch.tensor([[1.0, 0.9, 0.1]]).log().expand(40, 3)
    )  # three steps are never the cheapest way
    price = price_for(logs, COUNTS, 4.0)
    assert budget.mean_nfe(logs, COUNTS, price) == 2.0
    assert budget.mean_nfe(logs, COUNTS, price_for(logs, COUNTS, 5.0)) == 5.0
    picked = allocate(
        torch.rand(40, 3, generator=torch.Generator().manual_seed(3)).log(), COUNTS, 0.1
    )
    expected = sum(COUNTS[i] for i in picked.tolist()) / 40
    again = torch.rand(40, 3, generator=torch.Generator().manual_seed(3)).log()
    assert budget.mean_nfe(again, COUNTS, 0.1) == pytest.approx(expected)


def test_a_mean_that_no_mixture_has_is_refused():
    with pytest.raises(ValueError) as error:
        price_for(torch.zeros(4, 3), COUNTS, 6.0)
    assert sentence(error) == "mean must be in 2 ... 5 evaluations, got 6.0"


def test_a_budget_counts_evaluations_and_not_steps():
    data = toy_pairs(300)
    method = EveryN(
        steps=6,
        fewest=3,
        solver="euler",
        grid="uniform",
        analytic_first=True,
        width=8,
        depth=1,
        recipe=Recipe(iterations=1, batch=8, holdout=0),
    )
    sampler = method.untrained(toy())
    costs = budget.evaluations(sampler)
    assert costs == (2, 3, 4, 5)  # of 3, 4, 5 and 6 steps, the first of which asks nothing
    predictor = ErrorPredictor(sampler.policy.counts, shape=(2,), width=8, depth=1)
    foreseen = -torch.rand(300, 4, generator=torch.Generator().manual_seed(0)).sort(1).values
    predictor.forward = lambda noise, features=None: foreseen
    own = BudgetSampler(sampler, predictor, price_for(foreseen, costs, 4.0), 4.0)
    counter = Counted(toy())
    own(counter, data.noise)
    assert 3.9 < counter.samples / 300 <= 4.0


def test_the_deviance_is_least_at_the_mean():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(2)) ** 6  # heavy tails
    log_mean = torch.tensor(0.0, requires_grad=True)
    for _ in range(400):
        (slope,) = torch.autograd.grad(deviance(log_mean, values).mean(), log_mean)
        log_mean = (log_mean - 0.5 * slope).detach().requires_grad_()
    assert log_mean.exp().item() == pytest.approx(values.mean().item(), rel=1e-3)


def test_measuring_says_what_each_number_costs_and_leaves_the_choice_alone(fitted, measured):
    assert fitted.policy.steps == 4
    data, table = measured
    assert table.shape == (1500, 3)
    with torch.no_grad():
        ends = fitted.at(3)(toy(), data.noise[:500])
        expected = losses.named("squared")(ends, data.target[:500])
    assert fitted.policy.steps == 4
    torch.testing.assert_close(table[:500, 1], expected)


def test_each_sample_keeps_its_number_whatever_the_batch(own):
    noise = toy_pairs(40, first=9000).noise
    together = own.steps(noise)
    assert len(together.unique()) > 1
    assert together.tolist() == [own.steps(noise[i : i + 1]).item() for i in range(40)]
    with torch.no_grad():
        alone = torch.cat([own(toy(), noise[i : i + 1]) for i in range(40)])
        torch.testing.assert_close(own(toy(), noise), alone, rtol=1e-4, atol=1e-5)


def test_it_counts_what_it_asks_for(own):
    noise, counter = toy_pairs(64, first=9000).noise, Counted(toy())
    with torch.no_grad():
        own(counter, noise)
    assert counter.samples == own.steps(noise).sum()


def test_it_beats_the_same_number_for_all_at_no_more_evaluations(own, fitted):
    unseen, loss = toy_pairs(1500, first=20_000), losses.named("squared")
    fixed = dict(budget.measure(fitted, toy(), unseen, loss))[3].mean()
    with torch.no_grad():
        mean = loss(own(toy(), unseen.noise), unseen.target).mean()
    assert own.steps(unseen.noise).double().mean() < 3.1
    assert mean < 0.95 * fixed


def test_it_comes_back_from_disk(own, tmp_path):
    budget.save(own, tmp_path / "b")
    back, noise = budget.load(tmp_path / "b"), toy_pairs(30, first=9000).noise
    assert (back.price, back.mean) == (own.price, own.mean)
    with torch.no_grad():
        assert torch.equal(back(toy(), noise), own(toy(), noise))
    reseal(tmp_path / "b" / "budget.json", {"price": 1})
    with pytest.raises(ValueError, match="is not a complete budget"):
        budget.load(tmp_path / "b")
    artifact.read(tmp_path / "b")  # it is still an artifact for every N


def test_a_budget_that_was_half_overwritten_is_told_from_a_good_one(own, tmp_path):
    dearer = BudgetSampler(own.sampler, ErrorPredictor(COUNTS[:2], shape=(2,), width=8), 0.5, 2.5)
    for name in ("a", "b"):
        budget.save(own, tmp_path / name)
    budget.save(dearer, tmp_path / "other", {"model": "toy"})
    for name, broken in (("a", "config.json"), ("b", "budget.safetensors")):
        (tmp_path / name / broken).write_bytes((tmp_path / "other" / broken).read_bytes())
        with pytest.raises(ValueError) as error:
            budget.load(tmp_path / name)
        assert sentence(error).endswith(
            f"{name} is damaged: {broken} is not the one that budget.json was written with"
        )


def test_a_budget_without_its_checksums_is_refused(own, tmp_path):
    budget.save(own, tmp_path)
    config = load_json(tmp_path / "budget.json")
    assert list(config["files"]) == ["config.json", "budget.safetensors"]
    bare = {name: config[name] for name in ("price_per_evaluation", "mean", "predictor")}
    for damaged in (bare, config | {"files": []}):
        reseal(tmp_path / "budget.json", damaged)
        with pytest.raises(ValueError, match=r"is not a complete budget: it lacks the checksums"):
            budget.load(tmp_path)
    reseal(tmp_path / "budget.json", config)
    assert budget.load(tmp_path).price == own.price
    (tmp_path / "budget.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="budget.safetensors does not exist"):
        budget.load(tmp_path)


def test_drawing_changes_nothing_that_is_saved(own, tmp_path):
    def broken(x, t, condition):
        raise KeyboardInterrupt

    budget.save(own, tmp_path / "before")
    with torch.no_grad():
        own(toy(), toy_pairs(40, first=9000).noise)
    with pytest.raises(KeyboardInterrupt):
        own(Wrapped(broken, toy().schedule, (2,), "velocity"), toy_pairs(40, first=9000).noise)
    budget.save(own, tmp_path / "after")
    assert contents(tmp_path / "before") == contents(tmp_path / "after")


def test_a_measurement_that_fails_leaves_the_choice_alone(fitted):
    def broken(student, target):
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError):
        next(budget.measure(fitted, toy(), toy_pairs(8), broken))
    assert fitted.policy.steps == 4


def test_an_artifact_of_a_budget_is_not_read_as_one_without(own, tmp_path):
    budget.save(own, str(tmp_path))
    with pytest.raises(ValueError) as error:
        artifact.load(tmp_path)
    assert sentence(error).endswith(
        "holds a budget, each sample its own number of steps: use indis.bench.budget.load"
    )
    assert budget.load(str(tmp_path)).mean == own.mean


def test_a_sampler_for_one_n_is_refused():
    sampler = INDIS(steps=3, solver="euler", width=8).untrained(toy())
    with pytest.raises(ValueError) as error:
        budget.any_steps(sampler)
    assert "indis fit --steps 3-10" in sentence(error)


@pytest.mark.parametrize("name", ["iterations", "batch", "width", "depth", "lr", "holdout"])
def test_settings_out_of_range_are_named(name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        BudgetConfig(**{name: 0})


def test_a_predictor_that_reads_a_condition_asks_for_it():
    predictor = ErrorPredictor(COUNTS, shape=(1, 8, 8), condition_dim=4, width=8)
    assert predictor(torch.zeros(2, 1, 8, 8), torch.zeros(2, 4)).shape == (2, 3)
    with pytest.raises(ValueError, match="features must be"):
        predictor(torch.zeros(2, 1, 8, 8))


def test_a_predictor_needs_something_to_learn_from(fitted, measured):
    with pytest.raises(ValueError) as error:
        budget.foresee(fitted, *measured, BudgetConfig(holdout=0.9999))
    assert "holdout must leave one of the 1500 end points to fit on, got 0.9999" in sentence(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_refused_and_located(fitted, measured, value):
    data, table = measured
    table = table.clone()
    table[[3, 1400], 1] = value
    with pytest.raises(ValueError) as error:
        budget.foresee(fitted, data, table, BudgetConfig(iterations=1))
    assert sentence(error) == "losses must be finite, got 2 that are not, with [3] steps"


def test_a_fit_that_blows_up_stops_and_leaves_its_best_state(measured):
    data, table = measured
    predictor = ErrorPredictor(COUNTS, shape=(2,), width=8, depth=1)
    before = {name: value.clone() for name, value in predictor.state_dict().items()}
    with pytest.raises(FloatingPointError) as error:
        budget._descend(
            predictor, data, table, 1400, BudgetConfig(iterations=40, batch=64, lr=1e30)
        )
    assert "not finite at iteration" in sentence(error)
    assert same_tensors(predictor.state_dict(), before)


def test_a_fit_that_only_makes_it_worse_returns_where_it_began(fitted, measured):
    data, table = measured
    predictor = budget.foresee(
        fitted, data, table, BudgetConfig(iterations=1, batch=2, lr=5.0, width=8, depth=1)
    )
    foreseen = predictor(data.noise[:3])
    torch.testing.assert_close(foreseen, table.mean(0).log().expand(3, -1))


@pytest.mark.parametrize("iterations", [50, 51, 120])
def test_the_state_that_is_returned_is_the_best_held_out_one(
    fitted, measured, monkeypatch, iterations
):
    data, table = measured
    seen, heldout = [], budget._heldout
    monkeypatch.setattr(budget, "_heldout", lambda *given: seen.append(heldout(*given)) or seen[-1])
    config = BudgetConfig(iterations=iterations, batch=16, lr=0.3, width=8, depth=1)
    predictor = budget.foresee(fitted, data, table, config)
    assert heldout(predictor, data[1350:], table[1350:]) == min(seen) and len(seen) >= 2

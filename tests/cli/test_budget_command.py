"""What `indis budget` writes is what `sample` and `evaluate` then run: each sample its own number
of evaluations."""

import pytest
import torch

from cli.lines import FIT, refused
from indis import models, noise_from_seeds
from indis.bench import budget
from indis.bench.error_predictor import ErrorPredictor
from indis.denoise import Counted
from indis.storage import load_json, load_tensors
from small_cases import same_tensors

SIZES = "--loss squared --iterations 60 --batch 32"
BUDGET = f"bench budget --artifact every --data data --heldout test {SIZES}"


@pytest.fixture
def every(indis, work):
    assert indis(f"fit --data data --out every {FIT.replace('--steps 3', '--steps 2-4')}")[0] == 0
    return work


def test_an_artifact_with_a_budget_spends_it(indis, every):
    assert indis(f"{BUDGET} --mean 3 --out bought --json rows.json")[0] == 0
    priced = load_json(every / "rows.json")["rows"][-1]
    assert (
        indis("evaluate --artifact bought/mean3 --heldout test --loss squared --json row.json")[0]
        == 0
    )
    row = load_json(every / "row.json")["rows"][0]
    assert row["calls"] == row["nfe"]
    assert (row["nfe"], row["heldout_loss"]) == (
        priced["nfe"],
        pytest.approx(priced["heldout_loss"]),
    )

    code, said = indis("sample --model toy --artifact bought/mean3 --count 20 --out s.safetensors")
    drawn, _ = load_tensors(every / "s.safetensors")
    counter = Counted(models.load("toy"))
    expected = budget.load(every / "bought" / "mean3")(counter, noise_from_seeds(range(20), (2,)))
    assert code == 0 and f"{counter.samples / 20:g} evaluations on average" in said
    assert same_tensors({"samples": drawn["samples"]}, {"samples": expected})


def test_a_budget_of_another_model_is_refused(indis, every):
    assert indis(f"{BUDGET} --mean 3 --out bought")[0] == 0
    for steps in ("", "--steps 2"):
        said = refused(
            indis, f"sample --model toy:AB --artifact bought/mean3 {steps} --out s.safetensors"
        )
        assert "bought/mean3 was fitted to model toy, got toy-AB" in said


def test_endpoints_of_another_model_than_the_artifact_s_are_refused(indis, every, monkeypatch):
    for name, seed in (("data-ab", 0), ("test-ab", 100)):
        line = "teach --model toy:AB --solver euler --grid uniform --steps 4 --count 20"
        assert indis(f"{line} --first-seed {seed} --out {name}")[0] == 0
    monkeypatch.setattr(budget, "measure", None)
    line = BUDGET.replace("--data data --heldout test", "--data data-ab --heldout test-ab")
    assert "every was fitted to model toy, got toy-AB" in refused(
        indis, f"{line} --mean 3 --out bought"
    )


@pytest.mark.parametrize(
    ("teacher", "part"),
    [
        ("--model toy:AB --steps 12", "got model toy:AB in other and toy in data"),
        ("--model toy --steps 13", "got steps 13 in other and 12 in data"),
    ],
)
def test_heldout_endpoints_of_another_teacher_are_refused(indis, every, monkeypatch, teacher, part):
    line = "teach --solver euler --grid uniform --count 20 --first-seed 100 --out other"
    assert indis(f"{line} {teacher}")[0] == 0
    monkeypatch.setattr(budget, "measure", None)
    said = refused(
        indis, f"{BUDGET.replace('--heldout test', '--heldout other')} --mean 3 --out bought"
    )
    assert f"heldout must be of the same model and teacher as data, {part}" in said


def test_a_budget_is_not_timed_as_if_it_had_none(indis, every):
    assert indis(f"{BUDGET} --mean 3 --out bought")[0] == 0
    said = refused(indis, "bench overhead --model toy --artifact bought/mean3")
    assert (
        "artifact must have one number of steps for all samples, got the budget in bought/mean3"
        in said
    )
    assert "artifact must be a global plan" in refused(
        indis, "bench foresight --loss mse --data data --artifact bought/mean3"
    )


def test_a_number_of_steps_overrides_the_budget(indis, every):
    assert indis(f"{BUDGET} --mean 3 --out bought")[0] == 0
    evaluate = "evaluate --artifact bought/mean3 --steps 2 --heldout test --loss squared"
    assert indis(f"{evaluate} --json row.json")[0] == 0
    assert load_json(every / "row.json")["rows"][0]["nfe"] == 2


def test_heldout_endpoints_that_were_measured_are_refused(indis, every):
    said = refused(
        indis, f"{BUDGET.replace('--heldout test', '--heldout data')} --out bought --mean 3"
    )
    assert "heldout must hold other seeds than data" in said


def test_heldout_endpoints_that_the_artifact_was_fitted_on_are_refused(indis, every):
    line = BUDGET.replace("--data data", "--data test").replace("--heldout test", "--heldout data")
    assert "every was fitted on 0 ... 47" in refused(indis, f"{line} --out bought --mean 3")


def test_a_budget_remembers_the_seeds_of_both_fits(indis, every):
    assert indis(f"{BUDGET} --mean 3 --out bought")[0] == 0
    evaluate = "evaluate --artifact bought/mean3 --loss squared --heldout data"
    assert "bought/mean3 was fitted on 0 ... 47" in refused(indis, evaluate)


@pytest.mark.parametrize(
    ("mean", "part"), [("", "mean must be at least one number"), ("9", "mean must be in 2 ... 4")]
)
def test_means_out_of_range_are_refused_before_anything_is_measured(
    indis, every, monkeypatch, mean, part
):
    monkeypatch.setattr(budget, "measure", None)
    assert part in refused(indis, f"{BUDGET} --out bought --mean {mean}")


def test_a_mean_that_no_price_reaches_is_said_and_so_is_what_beats_it(indis, every, monkeypatch):
    def alike(sampler, data, losses, config):
        """Three steps are foreseen to be hardly better than two, whatever the sample."""
        predictor = ErrorPredictor((2, 3, 4), shape=(2,), width=8, depth=1)
        predictor.head.bias.data.copy_(torch.tensor([1.0, 0.9, 0.1]).log())
        return predictor

    monkeypatch.setattr(budget, "foresee", alike)
    code, said = indis(f"{BUDGET} --mean 3 4 --out bought --json rows.json")
    assert (
        code == 0
        and "\nasked for 3, reached 2.00: the predictor tells samples too little apart"
        in f"\n{said}"
    )
    assert "asked for 4, reached" not in said
    rows = load_json(every / "rows.json")["rows"]
    assert [row["nfe"] for row in rows] == [2, 3, 4, 2, 4]
    told = [line for line in said.splitlines() if line.startswith("budget")]
    assert (
        "; asked for 3, the same 3 for all has a lower loss" in told[0] and "asked" not in told[1]
    )
    assert not [line for line in said.splitlines() if line.startswith("fixed") and "asked" in line]

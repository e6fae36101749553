"""`indis plan`: what a sampler does, step by step."""

from pathlib import Path

import pytest

from cli.lines import refused
from indis import artifact, models, noise_from_seeds
from indis.storage import load_json


def shown(indis, capsys, line):
    assert indis(f"plan {line} --json plan.json")[0] == 0
    return load_json(Path("plan.json"))


def test_a_shared_plan_is_shown_once_with_its_sigmas(indis, work, capsys):
    told = shown(indis, capsys, "--model toy --steps 3 --solver euler --grid uniform --seed 4 5")
    (plan,) = told["plans"]
    assert plan["seed"] is None
    model = models.load("toy")
    first, last = model.schedule.t_max, model.schedule.t_min
    expected = [first + (last - first) * k / 3 for k in range(4)]
    assert plan["tau"] == pytest.approx(expected)
    assert plan["asked_at"] == plan["tau"][:-1] == plan["sigma"][:-1]
    assert plan["shift"] == [0, 0, 0] and plan["scale"] == [1, 1, 1]


def test_a_fitted_plan_of_each_sample_is_the_one_it_gets(indis, work, capsys):
    told = shown(indis, capsys, "--artifact fitted --seed 3 8")
    sampler, model = artifact.load("fitted"), models.load("toy")
    own = sampler.realized_plan(model, noise_from_seeds([3, 8], (2,)))
    assert [plan["seed"] for plan in told["plans"]] == [3, 8]
    for row, plan in enumerate(told["plans"]):
        assert plan["tau"] == pytest.approx(own.tau[row].tolist(), abs=1e-9)
        assert plan["shift"] == pytest.approx(own.dtau[row].tolist(), abs=1e-9)
        assert plan["scale"] == pytest.approx(own.gamma[row].tolist(), abs=1e-9)
        assert plan["asked_at"] == pytest.approx((own.tau[row, :-1] + own.dtau[row]).tolist())


def test_one_seed_alone_does_not_make_a_plan_shared(indis, work, capsys):
    assert [plan["seed"] for plan in shown(indis, capsys, "--artifact fitted")["plans"]] == [0]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--model toy --seed", "seed must be 1 to 100 numbers, got 0"),
        ("--model toy --seed -1", "seeds must be whole numbers in 0"),
        ("--artifact nowhere", "artifact must be a folder or one of"),
    ],
)
def test_what_is_no_plan_is_refused(indis, work, line, part):
    assert part in refused(indis, f"plan {line}")

"""`indis plan`: what a sampler does, and the sigmas that other tools take."""

import math
from pathlib import Path

import pytest
import torch

from cli.lines import FIT, refused
from indis import artifact, models, noise_from_seeds
from indis.storage import load_json


def shown(indis, capsys, line):
    assert indis(f"plan {line} --json plan.json")[0] == 0
    return load_json(Path("plan.json"))


def test_a_shared_plan_is_shown_once_with_its_sigmas(indis, work, capsys):
    told = shown(indis, capsys, "--model toy --steps 3 --solver euler --grid uniform --seed 4 5")
    (plan,) = told["plans"]
    assert plan["seed"] is None and told["lost"] == []
    model = models.load("toy")
    first, last = model.schedule.t_max, model.schedule.t_min
    expected = [first + (last - first) * k / 3 for k in range(4)]
    assert plan["tau"] == pytest.approx(expected)
    assert plan["asked_at"] == plan["tau"][:-1] == plan["sigma"][:-1]
    assert plan["shift"] == [0, 0, 0] and plan["scale"] == [1, 1, 1]
    assert told["sigmas"] == {"diffusers": plan["tau"][:-1], "comfyui": plan["tau"]}


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
    assert told["sigmas"] is None
    assert {"time shifts", "scales of the network's output"} <= set(told["lost"])
    assert "differences between samples" in told["lost"]


def test_one_seed_alone_does_not_make_a_plan_shared(indis, work, capsys):
    assert [plan["seed"] for plan in shown(indis, capsys, "--artifact fitted")["plans"]] == [0]


def test_timesteps_alone_fit_into_a_list(indis, work, capsys):
    global_plan = "--method god --dtau 0 --gamma 0"
    line = f"fit {global_plan} --data data --out god {FIT.replace('--width 8 --depth 1', '')}"
    assert indis(line)[0] == 0
    told = shown(indis, capsys, "--artifact god")
    assert told["lost"] == [] and told["sigmas"]["comfyui"] == told["plans"][0]["tau"]


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, math.exp(1.15)])
def test_unshifted_sigmas_shifted_again_are_the_plan_s(indis, work, capsys, shift):
    line = f"--model toy --steps 4 --solver euler --unshift {shift}"
    told = shown(indis, capsys, line)
    # As FlowMatchEulerDiscreteScheduler does it, with shift or with mu = log(shift).
    given = torch.tensor(told["sigmas"]["diffusers"], dtype=torch.float64)
    by_shift = shift * given / (1 + (shift - 1) * given)
    by_mu = math.exp(math.log(shift)) / (math.exp(math.log(shift)) + (1 / given - 1))
    for again in (by_shift, by_mu):
        assert again.tolist() == pytest.approx(told["plans"][0]["sigma"][:-1], rel=1e-12)
    assert told["sigmas"]["comfyui"] == told["plans"][0]["sigma"]  # which shifts nothing


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--unshift 3", "shift must be left out for EDM"),
        ("--model toy --unshift 0", "shift must be positive and finite, got 0"),
        ("--model toy --unshift nan", "shift must be positive and finite, got nan"),
        ("--model toy --seed", "seed must be 1 to 100 numbers, got 0"),
        ("--model toy --seed -1", "seeds must be whole numbers in 0"),
        ("--artifact nowhere", "artifact must be a folder or one of"),
    ],
)
def test_what_is_no_plan_is_refused(indis, work, line, part):
    assert part in refused(indis, f"plan {line}")

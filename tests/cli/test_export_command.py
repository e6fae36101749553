"""`indis export`: sigmas as other tools take them, and what a list drops."""

import math
import re
from pathlib import Path

import pytest
import torch

from cli.lines import FIT, refused
from indis import artifact, models
from indis.cli.export import text
from indis.storage import load_json


def exported(indis, line):
    assert indis(f"export {line} --json export.json")[0] == 0
    return load_json(Path("export.json"))


def test_every_tool_gets_the_times_of_a_flow_and_diffusers_all_but_the_last(indis, work):
    told = exported(indis, "--model toy --steps 4 --solver euler --grid uniform")
    values = told["sigmas"]["comfyui"]
    model = models.load("toy").schedule
    span = model.t_min - model.t_max
    assert values == pytest.approx([model.t_max + span * k / 4 for k in range(5)])
    for tool in ("sd.cpp", "mflux", "forge"):
        assert told["sigmas"][tool] == values
    assert told["sigmas"]["diffusers"] == values[:-1]
    assert told["lost"] == [] and told["seed"] is None
    by_tool = {row["tool"]: row for row in told["rows"]}
    assert by_tool["comfyui"]["solver"] == "euler"
    assert by_tool["sd.cpp"]["shift"] == "applied; the tool must not shift again"


def test_a_pattern_without_exponents_reads_a_list_as_it_is():
    values = [80.0, 1.0, 0.5, 0.00002, 0.0]
    read = [float(part) for part in re.findall(r"[-+]?(?:\d*\.*\d+)", text(values))]
    assert read == values


@pytest.mark.parametrize("name", artifact.shipped_names())
def test_a_shipped_artifact_has_lists_and_says_what_they_drop(indis, work, name):
    told = exported(indis, f"--artifact {name}")
    values = told["sigmas"]["comfyui"]
    assert values[0] == pytest.approx(80) and values[-1] == pytest.approx(0.002)
    assert len(values) == artifact.load(name).policy.steps + 1
    assert {"time shifts", "scales of the network's output"} <= set(told["lost"])
    assert ("differences between samples" in told["lost"]) is not name.endswith("god")
    assert (told["seed"] is None) is name.endswith("god")


def test_timesteps_alone_fit_into_a_list(indis, work):
    line = f"fit --method god --dtau 0 --gamma 0 --data data --out god {FIT}"
    assert indis(line.replace("--width 8 --depth 1", ""))[0] == 0
    plan = artifact.load("god").policy.shared_plan()
    told = exported(indis, "--artifact god")
    assert told["lost"] == []
    assert told["sigmas"]["comfyui"] == pytest.approx(plan.tau[0].tolist())


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, math.exp(1.15)])
def test_unshifted_sigmas_shifted_again_are_the_plan_s(indis, work, shift):
    told = exported(indis, f"--model toy --steps 4 --solver euler --unshift {shift}")
    # As FlowMatchEulerDiscreteScheduler does it, with shift or with mu = log(shift).
    given = torch.tensor(told["sigmas"]["diffusers"], dtype=torch.float64)
    by_shift = shift * given / (1 + (shift - 1) * given)
    by_mu = math.exp(math.log(shift)) / (math.exp(math.log(shift)) + (1 / given - 1))
    for again in (by_shift, by_mu):  # ComfyUI shifts nothing
        assert again.tolist() == pytest.approx(told["sigmas"]["comfyui"][:-1], rel=1e-12)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--unshift 3", "shift must be left out for EDM"),
        ("--model toy --unshift 0", "shift must be positive and finite, got 0"),
        ("--model toy --unshift nan", "shift must be positive and finite, got nan"),
    ],
)
def test_a_shift_that_makes_no_sense_is_refused(indis, work, line, part):
    assert part in refused(indis, f"export {line}")

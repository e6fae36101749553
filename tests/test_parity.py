"""Numbers of commit 999ab87 that must not change: its artifacts, upgraded, draw what they drew."""

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch

from indis import LinearVP, artifact, models, noise_from_seeds
from indis.storage import describe, load_json, load_tensors, save_json
from small_cases import TinyClasses, sentence, toy

DATA = Path(__file__).parent / "data"
TRACKING = "indis-track"  # exists no more
FOLDERS = sorted(p.name for p in (DATA / "format2").iterdir() if p.name != TRACKING)
SEEDS = list(range(5000, 5008))


@cache
def golden():
    return load_tensors(DATA / "golden_999ab87.safetensors")[0]


def draw(sampler, denoiser, seeds):
    with torch.no_grad():
        noise = noise_from_seeds(seeds, denoiser.shape)
        return sampler(denoiser, noise, denoiser.condition(seeds))


def upgraded(name, folder):
    shutil.copytree(DATA / "format2" / name, folder)
    artifact.upgrade(folder)
    return artifact.load(folder)


@pytest.mark.parametrize("name", FOLDERS)
def test_an_upgraded_artifact_draws_what_it_drew(tmp_path, name):
    sampler = upgraded(name, tmp_path / "a")
    tiny = name.startswith("tiny-")
    key = f"tiny/{name.removeprefix('tiny-')}" if tiny else f"method/{name}"
    found = draw(sampler, TinyClasses() if tiny else toy(), SEEDS)
    # Single precision amplifies the order of additions in these, on EDM whose noise is of 80; in
    # double precision all agree to 1e-13.
    tolerance = 2e-5 if name == "local-weights" or tiny else 1e-6
    torch.testing.assert_close(found, golden()[key], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", artifact.shipped_names())
def test_a_shipped_artifact_draws_what_it_drew(name):
    found = draw(artifact.load(name), models.load("fashion"), [100, 101, 102, 103])
    torch.testing.assert_close(found, golden()[f"shipped/{name}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FOLDERS)
def test_learned_numbers_keep_their_bits(tmp_path, name):
    upgraded(name, tmp_path / "a")
    before, after = (
        load_tensors(folder / "policy.safetensors")[0]
        for folder in (DATA / "format2" / name, tmp_path / "a")
    )
    contents = [
        sorted((v.numel(), v.flatten().tolist()) for v in state.values())
        for state in (before, after)
    ]
    if name.endswith("ald3"):  # its scale was one, and had no effect
        contents[0].remove((before["scale"].numel(), [1.0] * before["scale"].numel()))
    assert contents[0] == contents[1]


def test_an_artifact_of_format_two_says_how_it_is_converted():
    with pytest.raises(ValueError, match="format 2, .*run `indis upgrade ") as error:
        artifact.load(DATA / "format2" / "indis")
    sentence(error)


def test_a_plan_that_tracked_time_is_not_converted(tmp_path):
    with pytest.raises(ValueError, match="tracks time, which only DyWeight does now") as error:
        upgraded(TRACKING, tmp_path / "a")
    sentence(error)
    assert (tmp_path / "a" / "policy.safetensors").read_bytes() == (
        DATA / "format2" / TRACKING / "policy.safetensors"
    ).read_bytes()


def test_what_is_upgraded_is_not_upgraded_again(tmp_path):
    upgraded("god", tmp_path / "a")
    with pytest.raises(ValueError, match="must have format 2, got 3"):
        artifact.upgrade(tmp_path / "a")


def test_a_schedule_of_format_two_begins_with_the_noise_of_its_marginal(tmp_path):
    shutil.copytree(DATA / "format2" / "god", tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    config = load_json(path)
    schedule = LinearVP(t_max=0.9876543209876543)
    config["policy"]["schedule"] = describe(schedule)
    del config["policy"]["schedule"]["prior"]  # was no choice
    save_json(path, config)
    artifact.upgrade(tmp_path / "a")
    assert artifact.load(tmp_path / "a").policy.schedule == schedule

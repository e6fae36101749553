"""The blocks of docs/diffusers.md and the example run as they stand."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import tiny_pipelines as tiny
from diffusion_cases import CASES, sampler_for
from indis import artifact
from indis.diffusers import FAMILIES

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "diffusers.md").read_text()


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case, pipe = CASES["flux"], tiny.flux()
    artifact.save(sampler_for(case, "noise", steps=5), "my-artifact")
    artifact.save(sampler_for(case, "answers", steps=3), "artifact-of-3-calls")
    names = {"pipe": pipe, "sampler": sampler_for(case, "noise")}
    pipe.default_sample_size = 8
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, "docs/diffusers.md", "exec"), names)
    assert names["again"].scheduler.config.artifact == "my-artifact"


def test_the_page_names_every_family():
    for name in ("XL", "3", "FLUX.1", "FLUX.2", "LTX", "Wan", "Qwen-Image", "Z-Image", "LDM"):
        assert name in PAGE
    assert len(set(FAMILIES.values())) == PAGE.count("\n| ", *rows("family"))


def rows(head):
    start = PAGE.index(f"| {head} |")
    return start, PAGE.index("\n\n", start)


@pytest.mark.parametrize("steps", ["3", "5"])
def test_the_example_draws_inside_the_pipeline(tmp_path, monkeypatch, steps, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["flux.py", "--tiny", "--steps", steps])
    assert len((ROOT / "examples" / "flux.py").read_text().splitlines()) < 60
    torch.manual_seed(0)
    names = runpy.run_path(str(ROOT / "examples" / "flux.py"))
    times = names["handle"].scheduler.timesteps
    assert times.shape == (int(steps), 2) and not torch.equal(times[:, 0], times[:, 1])
    assert len(list(tmp_path.glob("picture-*.png"))) == 2


@pytest.mark.parametrize(("name", "made"), [("sd_lsun", "picture-*.png"), ("ltx", "video.gif")])
def test_an_example_teaches_fits_and_samples_inside_the_pipeline(name, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--tiny"])
    path = ROOT / "examples" / f"{name}.py"
    assert len(path.read_text().splitlines()) < 60
    torch.manual_seed(0)
    names = runpy.run_path(str(path))
    assert names["state"].step == 4 and names["process"].best <= names["process"].initial_loss
    assert len(list(tmp_path.glob(made))) in (1, 2)

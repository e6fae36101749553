"""docs/edm.md and the example: their commands run, on a small file in place of NVIDIA's."""

import runpy
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import indis
import lookalike_edm
from indis.cli import main as entry
from indis.metrics import fid
from indis.storage import load_json
from test_docs_commands import commands

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "edm.md").read_text(encoding="utf-8")
SIZES = "--methods god --steps 3 --afs False --loss mse --endpoints 16 --heldout 4 --samples 8"
FEW = shlex.split(f"{SIZES} --iterations 2 --batch 4 --holdout 4 --json rows.json")
DIM = 5  # features of the network in Inception's place


class Extractor(torch.nn.Module):
    """A stand-in for torch-fidelity's Inception, which needs its weights."""

    def __init__(self, name, features, feature_extractor_weights_path):
        super().__init__()
        assert Path(feature_extractor_weights_path).name == fid.WEIGHTS

    def forward(self, images):
        assert images.dtype == torch.uint8
        return (images.float().flatten(2).mean(2).repeat(1, 2)[:, :DIM],)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the files that the page asks for."""
    small = {"model_channels": 4, "channel_mult": [1, 1, 1]}
    lookalike_edm.write(tmp_path / "edm-cifar10-32x32-uncond-vp.pkl", resolution=32, **small)
    (tmp_path / fid.WEIGHTS).touch()
    np.savez(tmp_path / "cifar10-32x32.npz", mu=np.zeros(DIM), sigma=np.eye(DIM))
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(fid, "INCEPTION", DIM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_page_s_commands_lead_from_a_checkpoint_to_the_paper_s_rows(place, capsys):
    lines = [words for words in commands(PAGE) if words[:2] != ["bench", "speed"]]  # of full size
    for words in lines:
        whole_table = words[:2] == ["bench", "paper"] and "--plan-only" not in words
        assert entry.run([*words, *(FEW if whole_table else [])]) == 0, words
    said = capsys.readouterr().err
    assert "64 endpoints of 30 evaluations" in said and "heldout_loss" in said
    assert (place / "samples.png").stat().st_size > 1000
    every, each = (indis.artifact.load(name).policy for name in ("n3-global", "n3"))
    assert every.parameter_count() == 3 * 3 < each.parameter_count()
    rows = load_json(place / "rows.json")["rows"]
    assert all(row["fid"] > 0 for row in rows) and "ours is FID" in said


def test_the_example_beats_the_plain_solver(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "examples" / "edm_cifar10.py"
    assert len(path.read_text().splitlines()) < 60
    monkeypatch.setattr(sys, "argv", [path.name, "--tiny"])
    runpy.run_path(str(path))
    text = [line.split() for line in capsys.readouterr().out.splitlines() if "unseen" in line]
    scores = {words[0]: float(words[1]) for words in text}
    assert max(scores["god"], scores["indis"]) < 0.9 * scores["plain"]
    assert (tmp_path / "cifar10-n3.png").exists()

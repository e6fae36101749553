"""Sharing: a folder or a repository holds several samplers, a card and a plot, and no token."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fake_hub
from indis import artifact, hub, models, noise_from_seeds

NAMES = ["fashion-nfe3", "fashion-nfe5-god"]
TOKEN = "hf_" + "0123456789" * 3


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("shared")
    return hub.save_pretrained(NAMES, folder, models.load("fashion"), base_model="user/clothes")


def bits(sampler, model):
    noise = noise_from_seeds([3, 4], model.shape)
    with torch.no_grad():
        return sampler(model, noise, model.condition([3, 4]))


def test_a_sampler_from_a_folder_gives_the_same_bits(shared):
    model = models.load("fashion")
    for nfe, name in zip((3, 5), NAMES, strict=True):
        again = bits(hub.from_pretrained(shared, nfe), model)
        assert torch.equal(again, bits(artifact.load(name), model))


def test_only_json_safetensors_card_and_plot_are_written(shared):
    files = {path.relative_to(shared).as_posix() for path in shared.rglob("*") if path.is_file()}
    each = {f"nfe-{n}/{name}" for n in (3, 5) for name in ("config.json", "policy.safetensors")}
    assert files == {"README.md", "plan.png"} | each
    assert (shared / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_tells_model_licence_solver_and_the_recorded_losses(shared):
    text = (shared / "README.md").read_text()
    assert "base_model: user/clothes" in text and "\nlicense:" not in text
    assert "none was given; ask the author" in text and "(plan.png)" in text
    assert "| 3 | indis | IPNDM(order=3) | 0.1295 (fashion) |" in text
    assert "| 5 | god | IPNDM(order=3) | 0.04063 (fashion) |" in text


def test_a_sampler_comes_back_from_a_server_at_a_pinned_commit_and_no_token_is_left(
    shared, tmp_path
):
    stray = shared / "secret.txt"
    stray.write_text("not to be uploaded")
    code = f"""
from indis import hub
old = hub.push_to_hub({str(shared)!r}, "user/clothes")
print(old, hub.from_pretrained("user/clothes", 5, revision=old).nfe)
"""
    with fake_hub.running() as (address, server):
        home = tmp_path / "hf"
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_TOKEN": TOKEN}
        env = {**os.environ, **settings, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]
        sha, nfe = done.stdout.split()[-2:]
        files = server.commits[sha]
        assert nfe == "5" and server.latest["user/clothes"] == sha
        assert f"Bearer {TOKEN}" in server.tokens
    stray.unlink()
    assert "secret.txt" not in files
    weights = (shared / "nfe-3" / "policy.safetensors").read_bytes()
    assert files["nfe-3/policy.safetensors"] == weights
    everywhere = [path for root in (home, shared) for path in root.rglob("*") if path.is_file()]
    assert any("nfe-5" in str(path) for path in everywhere if home in path.parents)
    assert [path for path in everywhere if TOKEN.encode() in path.read_bytes()] == []


def test_what_cannot_be_shared_or_found_is_refused(shared, tmp_path):
    model = models.load("fashion")
    with pytest.raises(ValueError, match="revision must be given for the repository user/repo"):
        hub.from_pretrained("user/repo")
    with pytest.raises(ValueError, match="revision must be left out for a folder, got 'main'"):
        hub.from_pretrained(shared, 3, revision="main")
    with pytest.raises(ValueError, match="nfe must be one of 3, 5, got None"):
        hub.from_pretrained(shared)
    with pytest.raises(FileNotFoundError, match="holds no artifact"):
        hub.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got 3 twice"):
        hub.save_pretrained(["fashion-nfe3", "fashion-nfe3-god"], tmp_path / "x", model)
    with pytest.raises(FileNotFoundError, match=r"has no README\.md"):
        hub.push_to_hub(tmp_path, "user/repo")
    assert not (tmp_path / "x").exists() and Path(shared).exists()


def test_a_smaller_set_leaves_nothing_of_the_one_before(tmp_path):
    pytest.importorskip("matplotlib")
    model = models.load("fashion")
    hub.save_pretrained(["fashion-nfe3-god", "fashion-nfe5-god"], tmp_path / "a", model)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    hub.save_pretrained(["fashion-nfe5-god"], tmp_path / "a", model)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"nfe-5", "plan.png", "README.md", "notes.txt"}
    assert hub.from_pretrained(tmp_path / "a").nfe == 5


def test_another_kind_of_model_is_refused_before_anything_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError):
        hub.save_pretrained(["fashion-nfe3"], tmp_path / "a", models.load("toy"))
    assert not (tmp_path / "a").exists()


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    page = (Path(__file__).parent.parent / "docs" / "share.md").read_text(encoding="utf-8")
    names = {}
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
    plan = names["phi"](names["noise"], names["model"].condition([0, 1, 2, 3]).features)
    torch.testing.assert_close(names["gamma"], plan.gamma)
    assert names["sampler"].nfe == 5

"""Learning curves on a tiny bench: what begins where, what a row says, and that it resumes."""

from dataclasses import replace

import pytest
import torch

from indis import artifact
from indis.bench.curves import Curves, CurvesConfig, Line
from indis.bench.suite import ToyBench
from indis.pixels import to_bytes
from indis.storage import load_json, load_tensors

DRAWN = ("god", "phi", "look", "local")

CONFIG = CurvesConfig(
    steps=(2,),
    pairs=(24, 48),
    rates=(0.002,),
    widths=(8,),
    iterations=6,
    shared_iterations=20,
    closed_iterations=2,
    batch=12,
    holdout=16,
    heldout=20,
    oracle=8,
    oracle_iterations=8,
)


def small(folder, config=CONFIG):
    return Curves(config, ToyBench(), folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves")
    curves = small(folder)
    assert all(state.done <= state.total for state in curves.run())
    return curves


def test_every_line_has_a_row_that_says_who_made_it(finished):
    rows = {row["name"]: row for row in load_json(finished.folder / "curves/curves.json")["rows"]}
    phi = ["phi-24-w8-r0.002-nfe2", "phi-48-w8-r0.002-nfe2"]
    assert list(rows) == ["grid-nfe2", "god-nfe2", "oracle-nfe2", *phi, "look-nfe2", "local-nfe2"]
    for row in rows.values():
        assert row["version"] and row["commit"]
        assert row["least"] <= row["median"] <= row["largest"]
    assert rows["god-nfe2"]["loss"] < rows["grid-nfe2"]["loss"]
    assert rows["god-nfe2"]["iteration"] == [20] and len(rows[phi[0]]["heldout"]) == 1


def test_own_plans_are_never_worse_than_the_shared_one_they_begin_at(finished):
    line = Line("oracle", 2, 48)
    own = finished._own_plans(line)
    before = finished._losses(finished._god(line), finished.heldout[:8])
    assert (
        own.shape == (8,) and bool((own <= before).all()) and float(own.mean() / before.mean()) < 1
    )


def test_a_rate_that_is_too_large_leaves_the_shared_plan_and_the_row_says_so(tmp_path, finished):
    config = replace(CONFIG, lines=("god", "phi"), pairs=(48,), rates=(50.0,))
    curves = small(tmp_path, config)
    list(curves.run())
    god, phi = curves.rows()
    assert phi["fell_back"] and phi["loss"] == pytest.approx(god["loss"], rel=1e-5)
    assert not any(row.get("fell_back") for row in finished.rows() if row["kind"] != "phi")


def test_phi_begins_at_the_converged_plan(finished):
    line = Line("phi", 2, 48, 8, 0.002)
    process = finished._fit(line)
    shared = artifact.load(finished.folder / "curves/god-nfe2").policy.shared_plan()
    plan = process.sampler.policy(finished.heldout.noise[:3])
    assert torch.allclose(plan.tau, shared.tau.expand(3, -1))


def test_finished_lines_are_not_made_again(finished, monkeypatch):
    again = small(finished.folder)
    monkeypatch.setattr(again, "_make", lambda line, doing: pytest.fail(f"{doing} made again"))
    list(again.run())
    other = small(finished.folder, replace(CONFIG, oracle_iterations=9))
    names = [line.name for line in other.lines()]
    assert {row["name"] for row in other.rows()} == set(names) - {"oracle-nfe2"}


def test_the_drawn_samples_are_those_that_the_shared_plan_fits_best_and_worst(finished):
    finished.draw(2, count=6)
    rows, meta = load_tensors(finished.folder / "curves/samples-nfe2/samples.safetensors")
    assert meta["order"] == ["teacher, 100 NFE", *(f"{k}, 2 NFE" for k in DRAWN)]
    losses = finished._losses(finished._god(Line("god", 2, 48)), finished.heldout)
    order = losses.argsort()
    target = finished.heldout.target[torch.cat([order[:3], order[-3:]])]
    assert torch.equal(rows["teacher, 100 NFE"], to_bytes(target))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"lines": ("god", "ours")}, "among grid, god, oracle, phi, look, local, got ours"),
        ({"lines": ("phi",)}, "lines must have god"),
        ({"pairs": ()}, "pairs must be positive"),
        ({"oracle": 0}, "oracle must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, part):
    with pytest.raises(ValueError, match=part):
        replace(CONFIG, **changes)

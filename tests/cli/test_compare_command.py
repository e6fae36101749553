"""``indis compare``: what is computed again, and that a refusal costs nothing of what was computed
before."""

import pytest

from indis.bench.suite import ToyBench
from indis.storage import load_json
from small_cases import reseal

RECIPE = "--iterations 2 --batch 8 --holdout 8 --validate-every 1"
SIZES = f"--endpoints 64 --heldout 64 --samples 64 {RECIPE}"
LINE = f"bench compare --steps 2 --grids uniform --out run {SIZES}"


@pytest.fixture
def compared(indis, tmp_path, monkeypatch):
    """A finished comparison, every row of which is marked as an old one."""
    monkeypatch.chdir(tmp_path)
    # The exact distances take most of a minute.
    monkeypatch.setattr(ToyBench, "_distances", lambda self, samples: {"kl": 0.5, "w1": 0.1})
    assert indis(f"{LINE} --model toy --methods god gits")[0] == 0
    for path in (cells := tmp_path / "run" / "toy" / "cells").glob("*.json"):
        stored = load_json(path)
        reseal(path, stored | {"row": stored["row"] | {"old": True}})
    return cells


def old(cells):
    return {path.stem for path in cells.glob("*.json") if "old" in load_json(path)["row"]}


def test_finished_cells_are_computed_again_where_asked_for_and_no_others(indis, compared):
    assert indis(f"{LINE} --model toy --methods god")[0] == 0
    assert old(compared) == {"god-nfe2-s0", "gits-nfe2-s0", "uniform-nfe2", "teacher-nfe100"}
    assert indis(f"{LINE} --model toy --methods god --no-resume")[0] == 0
    assert old(compared) == {"gits-nfe2-s0"} and len(list(compared.iterdir())) == 4


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("--model toy fashon", "got 'fashon'"),
        ("--model toy --bf16", "bf16 must be left out for toy"),
        ("--model toy --methods nobody", "nobody"),
        ("--model toy --endpoints 32", "holds endpoints with another config"),
    ],
)
def test_a_refusal_costs_no_finished_cell(indis, compared, arguments, part):
    before = {path: path.read_bytes() for path in compared.parent.rglob("*") if path.is_file()}
    code, said = indis(f"{LINE} {arguments} --no-resume")
    assert code == 2 and part in said
    assert {
        path: path.read_bytes() for path in compared.parent.rglob("*") if path.is_file()
    } == before


def test_without_a_holdout_a_comparison_runs_to_its_end(indis, compared):
    line = LINE.replace("--holdout 8", "--holdout 0")
    assert indis(f"{line} --model toy --methods god")[0] == 0
    assert (
        load_json(compared.parent / "artifacts/god-nfe2-s0/config.json")["provenance"][
            "validation_loss"
        ]
        is None
    )

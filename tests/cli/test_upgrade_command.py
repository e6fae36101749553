"""`indis upgrade`: an artifact of the previous format in place, or one sentence."""

import shutil
from pathlib import Path

import pytest

from cli.lines import refused
from indis import artifact

OLD = Path(__file__).parent.parent / "data" / "format2"


def test_an_old_artifact_says_how_to_convert_it_and_then_serves(indis, work):
    shutil.copytree(OLD / "indis", "old")
    sample = "sample --model toy --artifact old --count 2 --out s.safetensors"
    assert "run `indis upgrade old`" in refused(indis, sample)
    code, said = indis("upgrade old")
    assert code == 0 and said == f"old has format {artifact.FORMAT} now\n"
    assert indis(sample)[0] == 0


@pytest.mark.parametrize(
    ("folder", "part"),
    [
        ("nowhere", "nowhere is not an artifact: there is no such folder"),
        ("fit.json", "fit.json is not an artifact: there is no such folder"),
        ("data", "data is not an artifact"),
        ("fitted", "must have format 2, got 3"),
    ],
)
def test_what_is_no_old_artifact_is_refused(indis, work, folder, part):
    assert part in refused(indis, f"upgrade {folder}")

"""``--json`` is written over nothing that the command itself writes, nor over what is no file."""

import os
from argparse import Namespace

import pytest

from cli.lines import FIT, TEACH, refused
from indis.bench import budget


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("sample --model toy --out s.safetensors --json {}", "s.safetensors"),
        (f"fit --data data --out fitted {FIT} --json {{}}", "fitted/config.json"),
        (
            f"fit --data data --out fitted {FIT} --json {{}}",
            "data/../fitted/checkpoint.safetensors",
        ),
        (f"{TEACH} --count 48 --out data --json {{}}", "data/meta.json"),
        (f"{TEACH} --count 48 --out data --json {{}}", "data/endpoints-00001.safetensors"),
        (
            "bench budget --artifact fitted --data data --heldout test --out x --json {}",
            "x/mean5/budget.json",
        ),
        ("bench compare --model toy --out x --json {}", "x/toy/results.json"),
        ("bench compare --model toy --out x --json {}", "x/toy/cells/god-nfe3-s0.json"),
        ("bench toy --quick --out x --json {}", "x/toy.json"),
        ("demo --out x --json {}", "x/report.html"),
        ("bench train --out x --json {}", "x/fashion.safetensors"),
        ("bench report --run . --json {}", "report.html"),
        ("bench report --run . --figures x --json {}", "x/picture.png"),
        ("bench report --run . --json {}", "toy/results.json"),
    ],
)
def test_json_is_not_written_over_what_the_command_writes_itself(
    indis, work, monkeypatch, line, path
):
    monkeypatch.setattr(budget, "any_steps", lambda sampler: Namespace(counts=(3, 5)))
    monkeypatch.setattr(budget, "evaluations", lambda sampler: (3, 5))
    said = refused(indis, line.format(path))
    other = "json must be another file than those that the command writes itself"
    assert said == f"indis: error: {other}, got {path}\n"


def test_a_link_is_not_replaced_by_a_file(indis, work):
    (work / "linked.json").symlink_to("fit.json")
    for line in ("evaluate --heldout test --loss mse --json", "sample --model toy --json"):
        assert "linked.json is a link or a device, a plain file is expected" in refused(
            indis, f"{line} linked.json"
        )
    os.mkfifo(work / "pipe.json")
    code, said = indis("evaluate --heldout test --loss mse --json pipe.json")
    assert code == 2 and "pipe.json is a link or a device" in said

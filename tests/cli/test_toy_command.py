"""The toy study from the command line: its cells, its scatter and its report."""

import pytest
import torch

from indis import noise_from_seeds
from indis.cli import main as entry
from indis.storage import load_json, load_tensors

NAMES = ("uniform", "global", "instance", "oracle")
FEW = "--global-iterations 3 --instance-iterations 3"
SMALL = f"--priors 40 --reference 500 --width 8 --depth 1 {FEW}"


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    sizes = "--priors 200 --reference 2000 --width 32 --depth 2 --oracle-iterations 8"
    rates = "--global-iterations 60 --instance-iterations 100 --instance-batch 100"
    files = f"--out {folder}/run --json {folder}/cells.json"
    line = f"bench toy --steps 3 --freedoms tau+dtau+gamma {sizes} {rates} {files}"
    assert entry.run(line.split()) == 0
    return folder


def test_the_toy_study_orders_the_policies(toy_run):
    cells = load_json(toy_run / "cells.json")["cells"]
    distance = {(c["policy"], c["split"]): c["squared_distance"] for c in cells}
    assert len(distance) == len(cells) == 7
    for split in ("train", "heldout"):
        assert distance["instance", split] < 0.7 * distance["global", split]
        assert distance["global", split] < 0.7 * distance["uniform", split]
    assert distance["oracle", "train"] < distance["instance", "train"]


def test_the_toy_study_writes_the_documented_cells(toy_run):
    result = load_json(toy_run / "cells.json")
    assert result == load_json(toy_run / "run" / "toy.json")
    assert result["study"] == "toy" and result["config"]["priors"] == 200
    judged = ["squared_distance", "kl", "kl_floor", "w1", "w1_floor"]
    made = ["priors", "classes", "tree_seed", "seed", "parameters", "fit_seconds"]
    keys = ["policy", "freedoms", "steps", "nfe", "split", *judged, *made]
    learned = "tau+dtau+gamma"
    rows = [("uniform", "tau", 0), ("global", learned, 9), ("instance", learned, None)]
    expected = [(p, f, s) for p, f, _ in rows for s in ("train", "heldout")] + [
        ("oracle", learned, "train")
    ]
    assert [(c["policy"], c["freedoms"], c["split"]) for c in result["cells"]] == expected
    for cell in result["cells"]:
        assert list(cell) == keys
        assert (cell["steps"], cell["nfe"], cell["priors"], cell["classes"]) == (3, 3, 200, "A")
        assert 0 < cell["w1_floor"] < cell["w1"] and cell["kl_floor"] > 0
    parameters = {c["policy"]: c["parameters"] for c in result["cells"]}
    assert (parameters["uniform"], parameters["global"], parameters["oracle"]) == (0, 9, 200 * 9)


def test_the_toy_study_prints_what_it_stores(capsys):
    sizes = SMALL
    assert entry.run(f"bench toy --steps 3 --freedoms tau --probes 20 {sizes}".split()) == 0
    head, *rows = [
        line.split()
        for line in capsys.readouterr().err.splitlines()
        if line.startswith(("policy", *NAMES))
    ]
    assert head[-1] == "params"
    counts = {row[0]: int(row[-1]) for row in rows}
    # phi: one hidden layer, the mixing layer, the head of three logits of tau.
    assert counts == {"uniform": 0, "global": 3, "instance": 24 + 72 + 27, "oracle": 40 * 3}


def test_two_processes_find_what_one_finds(tmp_path):
    sizes = SMALL
    found = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        line = f"bench toy --steps 2 3 --freedoms tau+dtau --probes 20 {sizes} --out {folder}"
        line = f"{line} --workers {workers}"
        assert entry.run(line.split()) == 0
        cells = load_json(folder / "toy.json")["cells"]
        found.append([{k: v for k, v in cell.items() if k != "fit_seconds"} for cell in cells])
    assert found[0] == found[1] and [c["steps"] for c in found[0]] == [2] * 7 + [3] * 7
    (one, _), (two, _) = (
        load_tensors(tmp_path / name / "toy_scatter.safetensors") for name in "12"
    )
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_no_worker_is_refused(capsys):
    assert entry.run(["bench", "toy", "--quick", "--workers", "0"]) == 2
    assert "workers must be at least 1, got 0" in capsys.readouterr().err


def test_the_scatter_of_the_toy_study_averages_to_its_cells(toy_run):
    tensors, _ = load_tensors(toy_run / "run" / "toy_scatter.safetensors")
    for cell in load_json(toy_run / "cells.json")["cells"]:
        errors = tensors[f"error {cell['policy']} {cell['freedoms']} {cell['split']}"]
        assert errors.mean().item() == pytest.approx(cell["squared_distance"], rel=1e-4)
    assert torch.equal(tensors["noise_heldout"], noise_from_seeds(range(200, 400), (2,)))


def test_a_report_of_the_toy_study_names_its_policies(indis, toy_run):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    code, said = indis(f"bench report --run {toy_run}/run --out {toy_run}/report.html")
    assert code == 0 and "toy" in said
    page = (toy_run / "report.html").read_text()
    assert all(name in page for name in ("uniform", "global", "instance", "oracle"))


def test_a_study_without_three_steps_has_no_scatter_and_a_report_all_the_same(indis, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    sizes = f"{SMALL} --probes 20"
    for steps, files in (("3", ["toy.json", "toy_scatter.safetensors"]), ("2", ["toy.json"])):
        assert (
            indis(f"bench toy --steps {steps} --freedoms tau {sizes} --out {tmp_path}/run")[0] == 0
        )
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == files
    code, said = indis(f"bench report --run {tmp_path}/run --figures {tmp_path}/figures")
    assert code == 0 and "report.html: toy\n" in said

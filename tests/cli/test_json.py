"""What the commands that make files say in JSON: counts, paths and numbers, none of which is left
to be guessed."""

from pathlib import Path

import pytest
import torch

from cli.lines import TEACH
from indis.bench.report import page
from indis.bench.train_fashion import Trainer
from indis.bench.train_features import FeatureTrainer
from indis.cli.bench import demo
from indis.cli.bench import train as train_model
from indis.storage import checksum, load_json


def test_a_teacher_tells_its_seeds_and_its_cost(indis, work):
    assert indis(f"{TEACH} --count 4 --first-seed 7 --out few --json teach.json")[0] == 0
    told = load_json(work / "teach.json")
    assert (told["out"], told["count"], told["first_seed"], told["nfe"]) == ("few", 4, 7, 12)
    assert told["model"] == "toy" and told["solver"] == {"type": "Euler"}


def test_samples_tell_which_they_are_and_what_they_cost(indis, work):
    plain = "--solver midpoint:2 --grid uniform --steps 6"
    assert (
        indis(
            f"sample --model toy {plain} --count 3 --first-seed 5 --out s.safetensors --json s.json"
        )[0]
        == 0
    )
    assert load_json(work / "s.json") == {
        "out": "s.safetensors",
        "model": "toy",
        "first_seed": 5,
        "count": 3,
        "label": [],
        "solver": "midpoint:2",
        "grid": "uniform",
        "steps": 6,
        "analytic_first": False,
        "nfe": 4,
        "calls": 6,
    }
    assert (
        indis("sample --model toy --artifact fitted --count 3 --out s.safetensors --json s.json")[0]
        == 0
    )
    told = load_json(work / "s.json")
    assert (told["artifact"], told["nfe"], told["calls"]) == (
        "fitted",
        3,
        3,
    ) and "solver" not in told


def test_an_evaluation_tells_what_it_is_of(indis, work):
    assert indis("evaluate --artifact fitted --heldout test --loss squared --json row.json")[0] == 0
    (told,) = load_json(work / "row.json")["rows"]
    assert (told["artifact"], told["heldout"], told["loss"], told["features"]) == (
        "fitted",
        "test",
        "squared",
        None,
    )
    assert told["pairs"] == 20 and "solver" not in told
    plain = "--solver euler --grid uniform --steps 4"
    assert indis(f"evaluate --heldout test --loss mse {plain} --json row.json")[0] == 0
    (told,) = load_json(work / "row.json")["rows"]
    assert (told["artifact"], told["solver"], told["grid"], told["steps"]) == (
        None,
        "euler",
        "uniform",
        4,
    )
    assert (told["analytic_first"], told["loss"]) == (False, "mse")


def test_a_report_shows_an_evaluation_like_a_comparison(indis, work):
    short = "--iterations 2 --holdout 8 --batch 8 --seed 3"
    fit = f"fit --method epd --data data --out epd --steps 2 --grid uniform --loss squared {short}"
    assert indis(fit)[0] == 0
    assert (
        indis("evaluate --artifact epd --heldout test --loss squared --json epd/results.json")[0]
        == 0
    )
    (row,) = load_json(work / "epd" / "results.json")["rows"]
    assert (row["method"], row["steps"], row["nfe"], row["calls"]) == ("epd", 2, 3, 5)
    assert (row["afs"], row["seed"], row["parameters"] > 4) == (True, 3, True)
    assert indis("bench report --run epd")[0] == 0
    assert "epd, AFS" in (work / "epd" / "report.html").read_text()
    plain = "--solver euler --grid uniform --steps 4"
    assert indis(f"evaluate --heldout test --loss mse {plain} --json fitted/results.json")[0] == 0
    (row,) = load_json(work / "fitted" / "results.json")["rows"]
    assert (row["method"], row["seed"], row["parameters"], row["steps"]) == ("uniform", None, 0, 4)
    assert (
        indis("bench report --run fitted")[0] == 0
        and "uniform" in (work / "fitted" / "report.html").read_text()
    )


def test_many_batches_of_samples_say_where_they_are(indis, work, monkeypatch):
    monkeypatch.setattr("indis.cli.console.Reporting.INTERVAL", 0.0)
    code, said = indis(
        "sample --model toy --steps 1 --solver euler --grid uniform --count 600 --out s.safetensors"
    )
    assert code == 0
    assert [line for line in said.splitlines() if line.startswith("samples: ")] == [
        f"samples: {done} of 600" for done in (250, 500, 600)
    ]


def test_a_report_tells_its_sections_and_figures(indis, work, monkeypatch):
    monkeypatch.setattr(page, "write_report", lambda folder, out: ["plans", "samples"])
    monkeypatch.setattr(page, "write_figures", lambda folder, out: [out / "picture.png"])
    assert indis("bench report --run fitted --json r.json")[0] == 0
    assert load_json(work / "r.json") == {
        "page": "fitted/report.html",
        "sections": ["plans", "samples"],
        "figures": [],
    }
    assert indis("bench report --run fitted --out r.html --figures drawn --json r.json")[0] == 0
    told = load_json(work / "r.json")
    assert (told["page"], told["figures"]) == ("r.html", ["drawn/picture.png"])


def test_a_demo_tells_its_rows(indis, tmp_path, monkeypatch):
    rows = [{"method": "god", "nfe": 3, "afs": False, "seed": 0, "heldout_loss": 0.5}]

    class Done:
        def __init__(self, *arguments):
            pass

        def collect(self):
            return {"rows": rows}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "Comparison", Done)
    monkeypatch.setattr(demo.compare, "run_comparison", lambda comparison: None)
    monkeypatch.setattr(demo.Demo, "_picture", lambda self, bench: None)
    monkeypatch.setattr(page, "write_report", lambda folder, out: ["results"])
    assert indis("demo --out shown --json demo.json")[0] == 0
    told = load_json(Path("demo.json"))
    assert (told["rows"], told["report"]) == (rows, "shown/report.html")
    assert told["seconds"] >= 0


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    """Neither data nor training: what is written is the start."""

    def judged(trainer, train, test):
        trainer.accuracy = 0.5
        return iter(())

    monkeypatch.chdir(tmp_path)
    images, labels = torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    monkeypatch.setattr(train_model, "read", lambda split, folder: (images, labels))
    monkeypatch.setattr(Trainer, "run", lambda trainer, images, labels: iter(()))
    monkeypatch.setattr(FeatureTrainer, "run", judged)
    return tmp_path


def test_training_tells_where_the_weights_are(indis, untrained):
    pytest.importorskip("diffusers")
    assert indis("bench train --out run --images 5 --batch 1 --json run.json")[0] == 0
    told = load_json(untrained / "run.json")
    assert (told["weights"], told["steps"], told["images"]) == ("run/fashion.safetensors", 0, 5)
    assert told["checksum"] == checksum(untrained / "run" / "fashion.safetensors")


def test_the_folder_of_a_training_is_a_model(indis, untrained):
    pytest.importorskip("diffusers")
    assert indis("bench train --out run --images 5 --batch 1")[0] == 0
    assert indis("sample --model fashion:run --steps 1 --count 2 --out folder.safetensors")[0] == 0
    weights = "run/fashion.safetensors"
    assert (
        indis(f"sample --model fashion:{weights} --steps 1 --count 2 --out file.safetensors")[0]
        == 0
    )
    assert Path("folder.safetensors").read_bytes() == Path("file.safetensors").read_bytes()
    assert indis("bench train --out more --images 5 --batch 1 --seed 1 --init run")[0] == 0
    assert checksum(Path("more/fashion.safetensors")) == checksum(Path("run/fashion.safetensors"))
    Path("bare").mkdir()
    code, said = indis("sample --model fashion:bare --out folder.safetensors")
    assert (code, said) == (2, "indis: error: bare/fashion.safetensors does not exist\n")


def test_training_of_features_tells_how_good_they_are(indis, untrained):
    assert indis("bench train --what features --seed 3 --out run --json run.json")[0] == 0
    told = load_json(untrained / "run.json")
    assert (told["accuracy"], told["epochs"], told["seed"]) == (0.5, 9, 3)
    assert all((untrained / told[name]).is_file() for name in ("weights", "moments"))

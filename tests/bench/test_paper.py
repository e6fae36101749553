"""The paper's rows: from a tiny checkpoint to the table, its presets, its plan of costs."""

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_edm
from indis.bench import cost, paper, paper_tables
from indis.bench.lineup import CompareConfig, Lineup
from indis.bench.suite import Sizes
from indis.bench.variants import VARIANTS
from indis.cli import main as entry
from indis.endpoints import load_endpoints
from indis.models.edm import EDMModel
from indis.models.edm.networks import NETWORKS
from indis.models.edm.preconditioning import EDMPrecond
from indis.noise import EDM
from indis.recipe import Recipe
from indis.solvers import IPNDM
from indis.storage import load_json
from small_cases import sentence

SMALL = "--endpoints 24 --heldout 8 --samples 16 --iterations 6 --batch 8 --holdout 8"
RUN = f"bench paper --checkpoint edm --loss mse --steps 3 --afs False {SMALL} --validate-every 3"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint of 32 x 32 pixels, and pictures to compare with."""
    folder = tmp_path_factory.mktemp("paper")
    shape = {"model_channels": 4, "channel_mult": [1, 1, 1]}
    tiny_edm.write(folder / "edm", resolution=32, **shape)
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for i in range(20):
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    return folder


@pytest.fixture
def indis(place, monkeypatch, capsys):
    """Run a command beside the checkpoint: its exit code, and what it said."""
    monkeypatch.chdir(place)

    def run(line):
        code = entry.run(line.split())
        said = capsys.readouterr()
        return code, said.err, said.out

    return run


@pytest.fixture
def planned(tmp_path):
    """The plan of a small comparison on CIFAR-10's published network."""

    def plan(methods, afs=(False,), recompute=False):
        recipe = Recipe(100, 10, holdout=20, validate_every=50, recompute=recompute)
        sizes = Sizes(200, 50, 1000, recipe)
        bench = paper.PaperBench(paper_tables.named("cifar10"), None)
        config = CompareConfig(methods, ("all",), (3,), afs)
        return cost.budget(Lineup(config, bench, sizes, tmp_path), sizes)

    return plan


def test_a_checkpoint_becomes_the_paper_s_rows(indis, place):
    line = f"{RUN} --methods god indis --reference images --out run --json rows.json"
    code, said, _ = indis(line)
    assert code == 0
    rows = load_json(place / "rows.json")["rows"]
    assert {row["method"] for row in rows} == {"god", "indis", "polynomial:7"}
    assert all(row["calls"] == 3 and row["fd_colours"] > 0 for row in rows)
    data, meta = load_endpoints(place / "run" / "endpoints")
    assert len(data) == 24
    assert (meta["provenance"]["model"], meta["provenance"]["steps"]) == ("edm:edm", 30)
    plain = next(row for row in rows if row["method"] == "polynomial:7")
    assert min(row["heldout_loss"] for row in rows) <= plain["heldout_loss"]
    # No number of ours is called FID, and what FID would need is said.
    assert "no FID: it needs --inception weights-inception-2015-12-05-6726825d.pth" in said
    assert "FD of 8 x 8 colours and FID are different quantities" in said
    assert "9.26" in said

    before = {path: path.stat().st_mtime_ns for path in (place / "run" / "cells").iterdir()}
    assert indis(line)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_is_missing_is_said_before_any_work(indis, place):
    code, said, _ = indis("bench paper --table ffhq")
    assert code == 2 and "indis convert edm edm-ffhq-64x64-uncond-vp.pkl" in said
    code, said, _ = indis(f"{RUN} --table ffhq --out none")
    assert code == 2 and "must be of FFHQ 64 x 64" in said and "got (3, 32, 32) and 0" in said
    code, said, _ = indis(f"{RUN} --loss fashion --out none")
    assert code == 2 and "loss must suit model edm, got fashion" in said
    code, said, _ = indis(f"{RUN} --inception weights.pth --out none")
    assert code == 2 and "NVIDIA's cifar10-32x32.npz" in said
    code, said, _ = indis(f"{RUN} --inception weights.pth --reference images --out none")
    assert code == 2 and "weights.pth does not exist" in said
    code, said, _ = indis(f"{RUN} --reference nowhere --out none")
    assert code == 2 and "a folder of images" in said
    np.savez(place / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    code, said, _ = indis(f"{RUN} --reference inception.npz --out none")
    assert code == 2 and "reference must hold 192 features" in said
    assert not (place / "none").exists()


def test_the_plan_of_the_whole_table_needs_no_checkpoint(indis, place):
    code, said, _ = indis("bench paper --table cifar10 --plan-only --json plan.json")
    plan = load_json(place / "plan.json")
    assert code == 0
    assert plan["calls"]["teach"] == 11_000 * 30
    assert plan["disk"] == 11_000 * 3 * 32 * 32 * 4
    # 21 billion multiplications and additions a call, as published by others for this network.
    assert plan["call"]["flops"] == pytest.approx(42.4e9, rel=0.01)
    assert plan["call"]["weights"] == 4 * 55_733_891
    assert "searches of dmn, gits" in said


def test_a_plan_counts_the_calls_of_every_stage(planned):
    plan = planned(("god", "dmn"))
    assert plan.calls == {
        "teach": 250 * 30,
        "fit": 3 * 100 * 10,
        "validate": 3 * 3 * 20,
        "judge": (3 + 3 + 3) * 50 + (3 + 3 + 3) * 1000,
    }
    assert plan.searches == ["dmn"] and plan.cells == 3
    unit = plan.call.flops / cost.H100_FLOPS / 3600
    assert plan.hours["fit"] == pytest.approx(2 * 3000 * unit)
    # EPD's second step asks at its start and at two midpoints in parallel, its first at the latter.
    assert planned(("epd",), afs=(True,)).calls["fit"] == 5 * 100 * 10


def test_recomputing_calls_trades_hours_for_memory(planned):
    kept, recomputed = planned(("god",)), planned(("god",), recompute=True)
    activations = kept.memory - kept.call.weights
    assert activations == pytest.approx(3 * (recomputed.memory - recomputed.call.weights))
    assert recomputed.hours["fit"] == pytest.approx(1.5 * kept.hours["fit"])


def test_the_meta_device_measures_what_the_cpu_does_and_attention_besides():
    kind, given = tiny_edm.arguments("ddpm++")
    here = EDMModel(tiny_edm.random_network(kind, given).float(), EDMPrecond(), 16)
    with torch.device("meta"):
        there = EDMModel(NETWORKS[kind](**given), EDMPrecond(), 16)
    measured, counted = cost.call_cost(here), cost.call_cost(there)
    assert counted.weights == measured.weights
    assert counted.weights == 4 * sum(p.numel() for p in here.network.parameters())
    # The CPU's fused attention is not counted: two products of 32 channels over all pairs of
    # places, twice at 16 x 16 and once at 4 x 4.
    assert counted.flops - measured.flops == 2 * 2 * 32 * (2 * 256**2 + 16**2)
    assert measured.saved < counted.saved < 1.5 * measured.saved


def test_presets_are_the_paper_s_settings():
    for name, table in paper_tables.TABLES.items():
        bench = paper.PaperBench(table, None)
        assert bench.denoiser.schedule == EDM(0.002, 80.0)
        assert bench.teacher.solver == IPNDM(4) and bench.teacher.nfe == 30
        assert bench.shared["grid"] == "polynomial:7"
        sizes = paper.sizes_for(table, brief=False)
        assert (sizes.endpoints, sizes.samples) == (10_000, 50_000)
        known = {*VARIANTS, "polynomial:7", "best heuristic", "S4S-Alt"}
        assert set(table.published) <= known, name
        assert set(paper.METHODS) <= set(VARIANTS)
    counts = {
        name: sum(p.numel() for p in paper.unweighted(table).network.parameters())
        for name, table in paper_tables.TABLES.items()
    }
    assert counts == {
        "cifar10": 55_733_891,
        "ffhq": 61_805_571,
        "afhqv2": 61_805_571,
        "imagenet64": 295_899_267,
    }


def test_published_rows_are_those_of_the_paper():
    of_indis = {
        name: table.published["indis"][0].values for name, table in paper_tables.TABLES.items()
    }
    assert of_indis == {
        "cifar10": (9.26, 3.31, 2.60),
        "ffhq": (17.72, 6.91, 3.90),
        "afhqv2": (10.15, 3.48, 2.37),
        "imagenet64": (18.96, 7.28, 4.94),
    }
    with pytest.raises(ValueError) as error:
        paper_tables.named("lsun")
    assert "table must be one of cifar10, ffhq, afhqv2, imagenet64, got 'lsun'" in sentence(error)


def test_of_both_first_steps_the_better_mean_stays_with_its_spread():
    rows = [
        {"method": "god", "nfe": 3, "afs": afs, "seed": seed, "fid": value}
        for afs, seed, value in ((False, 0, 9.0), (False, 1, 11.0), (True, 0, 8.0), (True, 1, 16.0))
    ]
    assert paper.own_values(rows, "fid") == {"god": {3: [9.0, 11.0]}}
    bench = paper.PaperBench(paper_tables.named("cifar10"), None)
    bench.judged_by = paper.Judge(paper.FID, torch.flatten, None, "")
    text = list(paper.lines(rows, bench))
    assert next(line for line in text if line.startswith("god")).split()[2:5] == ["10", "±", "1.4"]
    assert not any("different quantities" in line for line in text)

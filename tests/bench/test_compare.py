"""The comparison on a tiny bench: it resumes, reuses only what is the same, and says what it cannot
do."""

from dataclasses import replace

import pytest
import torch

from indis import Recipe, artifact, heuristic, noise_from_seeds
from indis.bench import cells as cell_files
from indis.bench import suite as bench
from indis.bench.cells import MEASURED, Cell
from indis.bench.compare import Comparison
from indis.bench.lineup import SHIPPED, CompareConfig
from indis.bench.provenance import made_by
from indis.bench.suite import FashionBench, Sizes, ToyBench
from indis.bench.variants import VARIANTS, Variant, chosen
from indis.cli.bench.compare import draw, lines
from indis.evaluate import frechet_of_images, frechet_of_seeds
from indis.methods import INDIS
from indis.models.fashion_features import frechet_judge
from indis.storage import load_json, load_tensors
from small_cases import TinyClasses, contents, reseal

SIZES = Sizes(12, 6, 4, Recipe(iterations=4, batch=4, holdout=4, validate_every=2))
WITHOUT_HOLDOUT = Sizes(12, 6, 4, Recipe(iterations=2, batch=4, holdout=0))
GOD = CompareConfig(methods=("god",), grids=("uniform",), nfe=(2,))
CONFIG = CompareConfig(
    methods=("god", "indis"), grids=("polynomial:7", "uniform"), nfe=(2,), afs=(False, True)
)


class Pictures(TinyClasses):
    """The tiny model at Fashion-MNIST's size."""

    shape = (1, 28, 28)


class SmallBench(FashionBench):
    teacher_steps = 5
    shard = 4
    shared = FashionBench.shared | {"width": 8}

    def __init__(self):
        self.denoiser = self.drawing = Pictures()


def small(folder, config=CONFIG, sizes=SIZES):
    return Comparison(config, SmallBench(), sizes, folder)


def without_time(rows):
    return [{k: v for k, v in row.items() if k != "fit_seconds"} for row in rows]


def test_it_finishes_after_an_interrupt_and_repeats_no_cell(tmp_path):
    straight = small(tmp_path / "straight")
    assert all(p.done <= p.total for p in straight.run())
    begun = small(tmp_path / "begun")
    for progress in begun.run():
        if "indis" in progress.doing and progress.done == 3:
            break
    assert {row["method"] for row in begun.rows()} == {"teacher", "god", *CONFIG.grids}
    list(small(tmp_path / "begun").run())
    assert without_time(begun.rows()) == without_time(straight.rows())
    curves = [
        load_json(tmp_path / name / "curves.json")["curves"] for name in ("begun", "straight")
    ]
    assert [c["iteration"] for c in curves[0]] == [[2, 4]] * 4
    assert [c["heldout"] for c in curves[0]] == [c["heldout"] for c in curves[1]]
    again = small(tmp_path / "begun")
    list(again.run())
    assert again.denoiser.asked == 0
    assert not list((tmp_path / "begun").rglob("checkpoint.safetensors"))


def test_rows_of_other_code_are_computed_again(tmp_path, monkeypatch):
    list(small(tmp_path, GOD).run())
    monkeypatch.setattr(cell_files, "code_version", lambda: "the code of tomorrow")
    again = small(tmp_path, GOD)
    list(again.run())
    assert again.denoiser.asked > 0


def test_rows_say_what_they_are(tmp_path):
    comparison = small(tmp_path)
    list(comparison.run())
    table = load_json(tmp_path / "results.json")
    assert table["teacher"]["nfe"] == 5
    cells = {(r["method"], r["afs"]): r for r in table["rows"]}
    assert len(cells) == len(table["rows"]) == 8
    for (method, afs), row in cells.items():
        assert row["nfe"] == row["calls"] == 2 and row["steps"] == 2 + afs
        assert {"version": row["version"], "commit": row["commit"]} == made_by()
        best = min(
            r["heldout_loss"] for (m, a), r in cells.items() if m in CONFIG.grids and a == afs
        )
        assert (row["fd"] is None) == (method in CONFIG.grids and row["heldout_loss"] > best)
        assert row["parameters"] == {"god": 3 * (2 + afs), "indis": row["parameters"]}.get(
            method, 0
        )
        assert row["freedoms"] == ("none" if method in CONFIG.grids else "tau+dtau+gamma")
        assert (
            set(MEASURED) <= set(row) and row["kl"] is row["w1"] is None and row["device"] == "cpu"
        )
        assert row["perceptual"] == row["heldout_loss"]
        assert (row["fit_seconds"] is None) == (method in CONFIG.grids)
    printed = lines(table)
    assert len(printed) == 9 and len({len(line) for line in printed}) == 1


def test_rows_of_published_methods_say_what_those_learn(tmp_path):
    comparison = small(tmp_path, CompareConfig(methods=("dyweight",), grids=("uniform",), nfe=(2,)))
    list(comparison.run())
    assert {
        row["method"]: row["freedoms"] for row in load_json(tmp_path / "results.json")["rows"]
    } == {
        "dyweight": "weights+time scales",
        "uniform": "none",
    }


def test_a_reused_row_of_an_earlier_version_gets_its_keys(tmp_path):
    list(small(tmp_path).run())
    before = small(tmp_path).rows()
    for file in (tmp_path / "cells").glob("god*.json"):
        stored = load_json(file)
        old = {k: v for k, v in stored["row"].items() if k not in ("kl", "w1", "device")}
        reseal(file, stored | {"row": old})
    again = small(tmp_path)
    list(again.run())
    assert again.denoiser.asked == 0
    gods = [row for row in before if row["method"] == "god"]
    assert [r for r in again.rows() if r["method"] == "god"] == [
        row | {"device": None} for row in gods
    ]


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(16, 6, 4, SIZES.recipe),
        Sizes(12, 8, 4, SIZES.recipe),
        Sizes(12, 6, 6, SIZES.recipe),
        Sizes(12, 6, 4, Recipe(2, 4, holdout=4)),
        Sizes(12, 6, 14, SIZES.recipe),
    ],
    ids=["endpoints", "heldout", "samples", "fit", "samples beyond the end points"],
)
def test_other_sizes_in_the_same_folder_are_other_cells(tmp_path, sizes):
    list(small(tmp_path / "same", GOD).run())
    list((grown := small(tmp_path / "same", GOD, sizes)).run())
    list((fresh := small(tmp_path / "fresh", GOD, sizes)).run())
    assert without_time(grown.rows()) == without_time(fresh.rows())


FEW, MANY = (
    replace(SIZES, endpoints=5, heldout=2, recipe=replace(SIZES.recipe, holdout=2)),
    replace(SIZES, heldout=9),
)


def test_a_quick_comparison_goes_on_as_a_full_one_in_its_folder(tmp_path):
    list(small(tmp_path / "same", GOD, replace(FEW, endpoints=3)).run())
    assert {
        load_json(meta)["config"]["shard"] for meta in (tmp_path / "same").glob("*/meta.json")
    } == {4}
    list((grown := small(tmp_path / "same", GOD, MANY)).run())
    list((fresh := small(tmp_path / "fresh", GOD, MANY)).run())
    assert without_time(grown.rows()) == without_time(fresh.rows())


def test_end_points_of_an_earlier_version_in_smaller_files_serve_and_are_added_to(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(SmallBench, "shard", 2)
    list(small(tmp_path / "same", GOD, FEW).run())
    monkeypatch.undo()
    list((again := small(tmp_path / "same", GOD, FEW)).run())
    assert again.denoiser.asked == 0
    list((grown := small(tmp_path / "same", GOD, MANY)).run())
    assert (len(grown.data), len(grown.heldout)) == (12, 9)
    list((fresh := small(tmp_path / "fresh", GOD, MANY)).run())
    assert without_time(grown.rows()) == without_time(fresh.rows())


@pytest.mark.parametrize("name", ["methods", "afs", "seeds"])
def test_a_comparison_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name} must be at least one value, got none$"):
        CompareConfig(**{name: ()})


def test_a_teacher_is_judged_again_when_there_are_more_of_its_end_points(tmp_path):
    few, many = (Sizes(count, 6, 100, SIZES.recipe) for count in (12, 16))
    list(small(tmp_path / "same", GOD, few).run())
    list((grown := small(tmp_path / "same", GOD, many)).run())
    (teacher,) = [row for row in grown.rows() if row["method"] == "teacher"]
    assert teacher["samples"] == 16
    expected = frechet_of_images([grown.data.target], *frechet_judge())
    assert teacher["fd"] == pytest.approx(expected, rel=1e-6)


def test_the_distance_to_the_data_is_over_seeds_that_nothing_else_uses(tmp_path):
    comparison = small(tmp_path, GOD)
    list(comparison.run())
    for row in comparison.rows():
        if row["method"] != "teacher":
            sampler = comparison.lineup.sampler(Cell(row["method"], 2, False, row["seed"]))
            expected = frechet_of_seeds(
                Pictures(), sampler, range(2_000_000, 2_000_004), *frechet_judge()
            )
            assert row["fd"] == pytest.approx(expected, rel=1e-5)


def test_a_shipped_sampler_that_was_replaced_is_judged_again(tmp_path, monkeypatch):
    weights = tmp_path / "shipped"
    plans = {
        name: heuristic(Pictures(), solver="ipndm:3", grid=name, steps=2)
        for name in ("uniform", "polynomial:7")
    }
    monkeypatch.setattr(artifact, "SHIPPED", weights)
    config = CompareConfig(methods=("gits",), grids=("uniform",), nfe=(2,), shipped=True)
    losses = []
    for plan in (*plans.values(), plans["polynomial:7"]):
        artifact.save(plan, weights / "fashion-nfe2")
        comparison = small(tmp_path / "run", config)
        list(comparison.run())
        losses += [
            row["heldout_loss"] for row in comparison.rows() if row["method"] in SHIPPED["fashion"]
        ]
        assert "Not comparable" not in " ".join(
            load_json(tmp_path / "run" / "results.json")["notes"]
        )
    assert (
        len(losses) == 3 and losses[0] != losses[1] == losses[2] and comparison.denoiser.asked == 0
    )


def test_the_row_of_a_shipped_sampler_that_is_no_more_is_called_not_comparable(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(artifact, "SHIPPED", tmp_path / "shipped")
    plan = heuristic(Pictures(), solver="ipndm:3", grid="uniform", steps=2)
    artifact.save(plan, tmp_path / "shipped" / "fashion-nfe2-god")
    list(small(tmp_path / "run", replace(GOD, shipped=True)).run())
    assert [name for name, _ in small(tmp_path / "run", GOD).shown(2)] == [
        "uniform",
        "god",
        "god (shipped)",
    ]
    monkeypatch.setattr(artifact, "SHIPPED", tmp_path / "nowhere")
    list(small(tmp_path / "run", replace(GOD, shipped=True)).run())
    assert [name for name, _ in small(tmp_path / "run", GOD).shown(2)] == ["uniform", "god"]
    (note,) = [
        n
        for n in load_json(tmp_path / "run" / "results.json")["notes"]
        if n.startswith("Not comparable")
    ]
    assert note.endswith("settings or code: god (shipped) at 2 NFE.")


def test_without_tuning_end_points_to_choose_by_there_is_no_validation_loss_and_no_curve(tmp_path):
    list(small(tmp_path, GOD).run())
    assert load_json(tmp_path / "curves.json")["curves"]
    list(small(tmp_path, GOD, WITHOUT_HOLDOUT).run())
    (home,) = (tmp_path / "artifacts").iterdir()
    assert artifact.load_config(home)["provenance"]["validation_loss"] is None
    assert load_json(tmp_path / "curves.json") == {"curves": []}


@pytest.mark.parametrize("sizes", [SIZES, WITHOUT_HOLDOUT], ids=["holdout", "no holdout"])
def test_a_fit_that_was_interrupted_while_it_was_judged_is_not_fitted_again(tmp_path, sizes):
    list((whole := small(tmp_path / "whole", GOD, sizes)).run())
    for progress in small(tmp_path / "broken", GOD, sizes).run():
        if "judged" in progress.doing:
            break
    (home,) = (tmp_path / "broken" / "artifacts").iterdir()
    before = (home / "policy.safetensors").read_bytes()
    again = small(tmp_path / "broken", GOD, sizes)
    said = [progress.doing for progress in again.run()]
    assert not [text for text in said if "god" in text and "judged" not in text]
    assert (home / "policy.safetensors").read_bytes() == before
    assert without_time(again.rows()) == without_time(whole.rows())
    assert not (home / "checkpoint.safetensors").exists()


def test_what_an_interrupt_left_of_other_sizes_is_begun_anew(tmp_path):
    for progress in small(tmp_path / "same", GOD).run():
        if "god" in progress.doing and progress.done == 3:
            break
    assert list((tmp_path / "same").rglob("checkpoint.safetensors"))
    longer = Sizes(12, 6, 4, Recipe(iterations=6, batch=4, holdout=4, validate_every=2))
    list((again := small(tmp_path / "same", GOD, longer)).run())
    list((fresh := small(tmp_path / "fresh", GOD, longer)).run())
    assert without_time(again.rows()) == without_time(fresh.rows())
    curves = [
        load_json(comparison.folder / "curves.json")["curves"] for comparison in (again, fresh)
    ]
    assert [c["iteration"] for c in curves[0]] == [c["iteration"] for c in curves[1]] == [[2, 4, 6]]
    assert curves[0][0]["heldout"] == curves[1][0]["heldout"]


def test_what_is_forgotten_is_what_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "SHIPPED", tmp_path / "shipped")
    artifact.save(
        heuristic(Pictures(), solver="ipndm:3", grid="uniform", steps=2),
        tmp_path / "shipped/fashion-nfe2",
    )
    both = CompareConfig(
        methods=("god", "gits"), grids=("uniform", "log_snr"), nfe=(2,), shipped=True
    )
    list(small(tmp_path, both).run())
    kept = {"gits-nfe2-s0.json", "log_snr-nfe2.json"}
    small(tmp_path, GOD).forget()
    left = {path.name for path in (tmp_path / "cells").iterdir()}
    assert left == kept | {f"{Cell('indis (shipped)', 2, False, None).name}.json"}
    assert {path.name for path in (tmp_path / "artifacts").iterdir()} == {"gits-nfe2-s0"}
    small(tmp_path, replace(GOD, shipped=True)).forget()
    assert {path.name for path in (tmp_path / "cells").iterdir()} == kept


def test_cells_are_computed_anew_if_asked_but_none_is_lost_to_end_points_that_are_refused(tmp_path):
    list(small(tmp_path, GOD).run())
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="another config"):
        list(small(tmp_path, GOD, replace(SIZES, endpoints=8)).run(anew=True))
    assert contents(tmp_path) == before
    list((again := small(tmp_path, GOD)).run(anew=True))
    list((fresh := small(tmp_path / "fresh", GOD)).run())
    made = (SIZES.endpoints + SIZES.heldout) * again.bench.teacher.nfe
    assert again.denoiser.asked == fresh.denoiser.asked - made
    assert without_time(again.rows()) == without_time(fresh.rows())


def test_rows_of_other_sizes_in_the_same_folder_are_called_not_comparable(tmp_path):
    god, indis = (
        CompareConfig(methods=(m,), grids=("uniform",), nfe=(2,)) for m in ("god", "indis")
    )
    list(small(tmp_path, god).run())
    list(small(tmp_path, indis).run())
    assert "Not comparable" not in " ".join(load_json(tmp_path / "results.json")["notes"])
    longer = Sizes(12, 6, 4, Recipe(iterations=6, batch=4, holdout=4, validate_every=2))
    list(small(tmp_path, indis, longer).run())
    (note,) = [
        n for n in load_json(tmp_path / "results.json")["notes"] if n.startswith("Not comparable")
    ]
    assert note.endswith("settings or code: god at 2 NFE.")


def test_what_a_method_cannot_spend_is_said_and_left_out(tmp_path, monkeypatch):
    class Pairs(INDIS):
        @staticmethod
        def steps_for(nfe, *, analytic_first=False):
            if nfe % 2:
                raise ValueError(f"nfe must be even, got {nfe}")
            return nfe

    monkeypatch.setattr(Variant, "type", property(lambda self: Pairs))
    comparison = small(tmp_path, CompareConfig(methods=("indis",), grids=("uniform",), nfe=(2, 3)))
    assert [cell.nfe for cell in comparison.lineup.learned()] == [2]
    why = "nfe must be even, got 3"
    assert comparison.lineup.skipped == {"indis at 3 NFE": why, "indis at 3 NFE with AFS": why}


def test_a_method_of_two_stages_gets_the_cell_that_it_can_do(tmp_path):
    comparison = small(tmp_path, CompareConfig(methods=("epd",), grids=("uniform",), nfe=(2, 3)))
    lineup = comparison.lineup
    assert [(cell.nfe, cell.afs, lineup.method(cell).steps) for cell in lineup.learned()] == [
        (2, False, 1),
        (3, True, 2),
    ]


def test_groups_and_names_choose_variants():
    published = [name for name, v in VARIANTS.items() if v.kind == "published"]
    assert chosen(["published"]) == published
    assert "god tau" in chosen(["ablation"]) and "god tau" not in chosen(["all"])
    assert chosen(["look", "god"]) == ["god", "look"]
    assert set(chosen(["all"])) >= set(published) | {"look"}


def test_a_variant_keeps_its_own_rate_and_takes_the_budget_of_all():
    fit = Recipe(7, 8, lr=9.0, holdout=1)
    config = Variant("god").config(
        {"solver": "euler", "nothing": 1}, {}, fit, nfe=4, analytic_first=True
    )
    assert (config.steps, config.analytic_first, config.solver) == (5, True, "euler")
    assert (config.recipe.iterations, config.recipe.batch, config.recipe.lr) == (7, 8, None)
    epd = Variant("epd").config({}, {}, fit, nfe=4, analytic_first=False)
    assert epd.recipe.lr == 0.2
    assert (
        Variant("god", {"lr": 0.7}).config({}, {}, fit, nfe=4, analytic_first=False).recipe.lr
        == 0.7
    )


def test_given_sizes_replace_the_defaults():
    sizes = bench.resized(FashionBench.brief, {"endpoints": 150, "iterations": 3, "samples": None})
    assert (sizes.endpoints, sizes.heldout, sizes.samples) == (150, 300, 600)
    assert (sizes.recipe.iterations, sizes.recipe.batch) == (3, 32)


def test_it_draws_rows_from_the_same_noise(tmp_path):
    comparison = small(tmp_path)
    list(comparison.run())
    draw(comparison)
    rows, meta = load_tensors(tmp_path / "samples.safetensors")
    assert set(rows) == set(meta["order"])
    titles = [title.split(",")[0] for title in meta["order"]]
    assert titles[0] == "teacher" and set(titles[2:]) == {"god", "indis"}
    plain = heuristic(Pictures(), solver="ipndm:3", grid=titles[1], steps=2)
    noise, condition = (
        noise_from_seeds(range(1_000_000, 1_000_006), (1, 28, 28)),
        Pictures().condition(range(6)),
    )
    expected = (plain(Pictures(), noise, condition) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    torch.testing.assert_close(rows[meta["order"][1]], expected, rtol=0, atol=1)
    plans, shared = load_tensors(tmp_path / "plans.safetensors")
    assert plans["tau N=2"].shape == (6, 3)
    assert plans["tau N=2"][:, [0, -1]].unique(dim=0).tolist() == [[80, 0.002]]
    assert set(shared) == {"base N=2", "global N=2"}


def test_the_toy_bench_measures_distances_to_the_truth():
    toy = ToyBench()
    exact = toy._exact(2000, seed=3)
    floor = toy._distances(exact)
    assert floor["w1"] < 0.05 < toy._distances(exact + 0.2)["w1"]
    assert floor["kl"] < 0.4 < toy._distances(exact * 0.5)["kl"]


def test_a_model_without_condition_has_none_to_leave_out(tmp_path):
    config = CompareConfig(methods=("indis", "indis without class"), nfe=(2,))
    comparison = Comparison(config, ToyBench(), ToyBench.brief, tmp_path)
    assert [cell.method for cell in comparison.lineup.learned()] == ["indis"]
    why = "toy has no condition to leave out"
    assert comparison.lineup.skipped["indis without class at 2 NFE"] == why

"""Rows to entries, groups and tables: what is merged, kept apart, best, and left out."""

import math

import pytest

from bench.report.cases import fashion, report, row, toy_rows
from indis.bench.report import comparison, tables
from indis.bench.report.results_table import against_nfe, results_table, write_markdown
from indis.bench.suite import ToyBench
from indis.cli.bench.compare import Compare, SizeOptions
from indis.storage import load_json, save_json


def read(content):
    (results,) = comparison.read(content)
    return results


def text(table):
    """Cells by NFE and row name."""
    return {
        g.title: {r[0].text: dict(zip(table.head, r, strict=True)) for r in g.rows}
        for g in table.groups
    }


def test_seeds_are_merged():
    found = read(fashion()).entries
    assert len(found) == 4 * 4
    indis = next(e for e in found if e.name == "indis" and e.nfe == 3 and not e.afs)
    assert indis.seeds == 3
    assert indis.mean("heldout_loss") == pytest.approx(0.31 / 3)
    assert indis.mean("excess") == pytest.approx(11.0 - 2.5)


def test_distances_of_other_numbers_of_samples_have_no_difference():
    content = fashion()
    content["teacher"] |= {"samples": 600}
    content["rows"] = [
        r | {"samples": 600 if r["method"] == "god" else 10_000} for r in content["rows"]
    ]
    found = {e.name: e.mean("excess") for e in read(content).at(3) if not e.afs}
    assert not math.isnan(found["god"]) and math.isnan(found["indis"])


@pytest.mark.parametrize("who", ["rows", "teacher"])
def test_a_difference_to_what_does_not_say_its_number_of_samples_is_taken_all_the_same(who):
    content = fashion()
    content["rows"] = [{k: v for k, v in r.items() if k != "samples"} for r in content["rows"]]
    if who == "rows":
        content["rows"] = [r | {"samples": 600} for r in content["rows"]]
    else:
        content["teacher"] |= {"samples": 600}
    found = next(e for e in read(content).entries if e.name == "indis" and e.nfe == 3 and not e.afs)
    assert found.mean("excess") == pytest.approx(11.0 - 2.5)


def test_the_caption_says_what_excess_is_only_where_it_is_shown():
    content = fashion()
    assert "excess FD is the distance beyond that" in results_table(read(content)).caption
    content["rows"] = [r | {"samples": 600} for r in content["rows"]]
    content["teacher"] |= {"samples": 300}
    table = results_table(read(content))
    assert (
        "excess FD" not in table.head
        and "excess" not in table.caption
        and "The teacher" in table.caption
    )


def test_equal_values_have_no_spread():
    """The mean of three equal numbers may be rounded, and the difference is no deviation."""
    assert tables.spread([0.1] * 3) == "0.100" and tables.spread([0.7] * 3) == "0.700"


def test_groups_are_of_one_nfe_with_afs_beside_and_grids_last():
    names = [e.label for e in read(fashion()).at(3)]
    expected = [
        "indis",
        "indis, AFS",
        "god",
        "god, AFS",
        "polynomial:7",
        "polynomial:7, AFS",
        "log_snr",
        "log_snr, AFS",
    ]
    assert names == expected


def test_the_table_bolds_the_best_and_softens_grids():
    table = results_table(read(fashion()))
    cells = text(table)
    assert list(cells) == ["3 NFE", "5 NFE", "7 NFE"]
    assert table.head == [
        "",
        "held-out loss",
        "MSE to teacher",
        "FD-Fashion",
        "excess FD",
        "parameters",
        "fit, s",
        "seeds",
    ]
    loss = {name: found["held-out loss"] for name, found in cells["3 NFE"].items()}
    assert [name for name, cell in loss.items() if cell.best] == ["indis, AFS"]
    assert loss["indis, AFS"].text == "0.1000 ± 0.0033"
    assert [name for name, found in cells["3 NFE"].items() if found[""].soft] == list(loss)[4:]
    assert [cells["3 NFE"][name]["seeds"].text for name in ("god", "log_snr")] == [
        "3",
        tables.MISSING,
    ]
    assert cells["3 NFE"]["god"]["fit, s"].text == "30.0"
    assert (
        "it is not FID" in table.caption
        and "10000 samples" in table.caption
        and "AFS" in table.caption
    )
    assert "30 NFE gets FD-Fashion 2.50; excess FD" in table.caption


def test_columns_appear_only_when_they_say_something():
    table = results_table(read(toy_rows(["god", "indis"])))
    assert table.head == [
        "",
        "held-out loss",
        "MSE to teacher",
        "KL",
        "W1",
        "parameters",
        "fit, s",
        "seeds",
    ]
    assert "not FID" not in table.caption and "AFS" not in table.caption
    assert "The teacher with 100 NFE gets KL 0.120, W1 0.0100." in table.caption
    parallel = toy_rows(["epd"]) | {"teacher": None}
    parallel["rows"][0] |= {"calls": 6, "perceptual": 0.5}
    table = results_table(read(parallel))
    assert "calls" in table.head and "perceptual" in table.head and "parallel" in table.caption
    assert text(table)["3 NFE"]["epd"]["calls"].text == "6"


def test_rows_with_other_settings_are_not_merged():
    rows = [row("indis", 3, 0.1) | {"solver": solver} for solver in ("ipndm", "euler")]
    assert [e.name for e in comparison.entries(rows)] == [
        "indis solver=ipndm",
        "indis solver=euler",
    ]
    rows = [row("indis", 3, 0.1, freedoms=free) for free in ("tau", "tau+dtau")]
    assert [e.name for e in comparison.entries(rows)] == ["indis (τ)", "indis (τ+Δτ)"]


def test_what_was_not_measured_and_where_it_ran_tell_no_rows_apart():
    empty = dict.fromkeys(("perceptual", "fd", "kl", "w1"))
    rows = [row("indis", 3, 0.1), row("indis", 3, 0.2, seed=1, device="cpu") | empty]
    rows += [
        row("indis", 3, 0.3, seed=2, device="cuda"),
        row("uniform", 3, 0.5, None, fit_seconds=None) | empty,
    ]
    results = read({"rows": rows})
    assert [(e.name, e.seeds) for e in results.at(3)] == [("indis", 3), ("uniform", 1)]
    assert results_table(results).head == [
        "",
        "held-out loss",
        "MSE to teacher",
        "parameters",
        "fit, s",
        "seeds",
    ]
    assert text(results_table(results))["3 NFE"]["uniform"]["fit, s"].text == tables.MISSING
    assert results.distance is None


def test_models_are_kept_apart_and_the_teacher_goes_to_its_own():
    content = fashion() | {"rows": [*toy_rows(["god"])["rows"], *fashion()["rows"]]}
    toy, image = comparison.read(content)
    assert (toy.model, image.model) == ("toy", "fashion")
    assert toy.teacher == {} and image.teacher["fd"] == 2.5
    assert (toy.distance, image.distance) == ("kl", "fd")


def test_contenders_are_the_best_of_with_and_without_afs_and_the_best_grid():
    content = fashion()
    content["rows"] += [
        row("amed", 3, 0.2, afs=True),
        row("indis tau", 3, 0.4),
        row("god tau", 7, 0.1),
    ]
    found = read(content).contenders(3)
    assert set(found) == {"indis", "god", "amed", comparison.BEST_GRID}
    # God's rows are alike, so it stays without; phi's are better with AFS, and amed has no other.
    assert [name for name, e in found.items() if e.afs] == ["indis", "amed"]
    assert found[comparison.BEST_GRID].label == "polynomial:7"
    content["rows"].append(row("uniform", 3, 0.01, None, afs=True))
    assert read(content).contenders(3)[comparison.BEST_GRID].label == "uniform, AFS"


def test_another_grid_may_be_the_best_in_another_metric():
    rows = [
        row("uniform", 3, 0.2, None, fd=9.0),
        row("log_snr", 3, 0.4, None, fd=1.0),
        row("quadratic", 3, 0.1, None),
    ]
    results = read({"rows": rows})
    assert results.contenders(3)[comparison.BEST_GRID].name == "quadratic"
    assert results.contenders(3, "fd")[comparison.BEST_GRID].name == "log_snr"


def test_changes_are_relative_to_all_of_phi():
    rows = [
        row("indis", 3, 0.2),
        row("look", 3, 0.1),
        row("god tau", 3, 0.5),
        row("ld3", 3, 9.0),
        row("look", 5, 0.1),
    ]
    results = read({"rows": rows})
    assert results.changes(3) == {"god tau": pytest.approx(1.5), "look": pytest.approx(-0.5)}
    assert results.changes(5) == {}


def test_changes_compare_at_equal_afs():
    both = [
        row("indis", 3, 0.2),
        row("indis", 3, 0.1, afs=True),
        row("look", 3, 0.3),
        row("look", 3, 0.01, afs=True),
    ]
    assert read({"rows": [*both, row("god tau", 3, 0.4, afs=True)]}).changes(3) == {
        "look": pytest.approx(0.5)
    }
    forced = [row("indis", 3, 0.1, afs=True), row("look", 3, 0.3), row("look", 3, 0.05, afs=True)]
    assert read({"rows": forced}).changes(3) == {"look": pytest.approx(-0.5)}


def test_changes_compare_equal_seeds():
    """Seed 1 ends elsewhere, whatever the method; an ablation that has not run it is not thereby
    better."""
    rows = [row("indis", 3, 0.2), row("indis", 3, 0.8, seed=1), row("look", 3, 0.3)]
    assert read({"rows": rows}).changes(3) == {"look": pytest.approx(0.5)}
    assert read({"rows": [*rows, row("look", 3, 0.4, seed=1)]}).changes(3) == {
        "look": pytest.approx(0.7 / 1.0 - 1)
    }
    others = [row("indis", 3, 0.2), row("look", 3, 0.3, seed=5)]
    assert read({"rows": others}).changes(3) == {"look": pytest.approx(0.5)}


def test_a_row_without_a_loss_stands_last():
    rows = [
        row("god", 3, 0.2),
        row("diverged", 3, 0.1) | {"heldout_loss": None, "teacher_mse": None},
    ]
    results = read({"rows": rows})
    assert [e.name for e in results.at(3)] == ["god", "diverged"] and results.at(3)[
        1
    ].loss == math.inf
    assert text(results_table(results))["3 NFE"]["diverged"]["held-out loss"].text == tables.MISSING


def test_markdown_is_the_same_table_for_github():
    said = write_markdown(fashion()["rows"])
    assert said.startswith("### fashion\n\n| held-out loss | ")
    said = said[said.index("**3 NFE**") :]
    assert said.startswith("**3 NFE**\n\n|  | held-out loss |")
    assert "\n| indis, AFS | **0.1000 ± 0.0033** | **0.0333" in said
    assert "\n| *log_snr* | 0.467 | 0.156 | – |" in said
    lines = [line for line in said.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and lines[1].count("--:") == 6
    assert len(lines) == 3 * 2 + 4 * 4


def test_a_metric_against_nfe_has_a_line_a_method_the_best_first():
    grids = [row("uniform", 3, 2.0, seed=None), row("uniform", 5, 1.0, seed=None)]
    rows = [
        row("god", 3, 0.4),
        row("god", 5, 0.2),
        row("look", 3, 0.1),
        row("look", 5, 0.25),
        *grids,
    ]
    table = against_nfe(read({"rows": rows}), "heldout_loss")
    assert table.head == ["held-out loss", "3 NFE", "5 NFE"]
    said = {cells[0].text: [(c.text, c.best) for c in cells[1:]] for cells in table.groups[0].rows}
    # look: ratios to the best 1 and 1.25; god: 4 and 1.
    assert list(said) == ["look", "god", "best grid"]
    assert said["god"] == [("0.400", False), ("0.200", True)] and said["look"] == [
        ("0.100", True),
        ("0.250", False),
    ]


def test_a_metric_against_nfe_names_the_analytic_first_step_and_leaves_gaps():
    first = row("amed", 3, 0.4) | {"afs": True}
    rows = [first, row("amed", 4, 0.2), row("epd", 3, 0.5) | {"afs": True}, row("god", 4, 0.1)]
    lines = [
        [cell.text for cell in cells]
        for cells in against_nfe(read({"rows": rows}), "heldout_loss").groups[0].rows
    ]
    assert ["epd, AFS", "0.500", tables.MISSING] in lines and [
        "god",
        tables.MISSING,
        "0.100",
    ] in lines
    assert ["amed, AFS where needed", "0.400", "0.200"] in lines
    assert against_nfe(read({"rows": rows}), "heldout_loss").caption == ""


@pytest.mark.parametrize(
    ("afs", "shown"),
    [(0.3, ["god, AFS where better", "0.300", "0.200"]), (0.5, ["god", "0.400", "0.200"])],
)
def test_a_metric_against_nfe_takes_the_better_of_with_and_without_afs_and_says_so(afs, shown):
    rows = [row("god", 3, 0.4), row("god", 3, afs, afs=True), row("god", 4, 0.2)]
    table = against_nfe(read({"rows": rows}), "heldout_loss")
    assert [[cell.text for cell in cells] for cells in table.groups[0].rows] == [shown]
    assert table.caption == "Best of with and without AFS, by held-out loss."


def test_with_or_without_afs_is_chosen_on_tuning_end_points_where_rows_have_them():
    rows = [row("god", 3, 0.4), row("god", 3, 0.3, afs=True)]
    tuned = [one | {"validation_loss": loss} for one, loss in zip(rows, (0.2, 0.5), strict=True)]
    mixed, results = read({"rows": [tuned[0], rows[1]]}), read({"rows": tuned})
    assert mixed.best(3)["god"].loss == 0.3 and results.best(3)["god"].loss == 0.4
    assert results.best_of == "Best of with and without AFS, by the loss on tuning end points."


def test_a_choice_of_rows_keeps_the_best_grid_of_each_nfe():
    grids = [row("a", 3, 1.0, seed=None), row("b", 3, 2.0, seed=None), row("b", 5, 1.0, seed=None)]
    results = read({"rows": [row("god", 3, 0.4), row("look", 3, 0.1), *grids]})
    chosen = results.only(["god", "best grid"])
    assert [(e.name, e.nfe) for e in chosen.entries] == [("god", 3), ("a", 3), ("b", 5)]


def test_markdown_of_a_folder_has_every_model_and_the_notes(tmp_path):
    save_json(tmp_path / "toy" / "results.json", toy_rows(["a|b"]))
    save_json(tmp_path / "fashion" / "results.json", fashion())
    said = write_markdown(tmp_path)
    assert said.index("### fashion") < said.index("- A note <with> markup.") < said.index("### toy")
    assert "| a\\|b |" in said
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        write_markdown(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no rows"):
        write_markdown([])


def test_the_page_shows_the_table(full):
    _, _, page = full
    assert '<td class="best">0.1000 ± 0.0033</td>' in page
    assert '<tr class="soft"><td>polynomial:7</td>' in page
    assert '<th scope="rowgroup" colspan="8">3 NFE</th>' in page
    assert "perceptual" not in page and "A note <with> markup." in page


def test_results_without_any_distance(tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    save_json(tmp_path / "results.json", {"rows": [row("god", 3, 0.5)]})
    sections, page = report(tmp_path)
    assert sections == ["results"]
    assert "0.500" in page and "excess FD" not in page


def test_compare_leaves_its_tables_as_markdown(tmp_path, monkeypatch):
    # The exact distances take most of a minute.
    monkeypatch.setattr(ToyBench, "_distances", lambda self, samples: {"kl": 0.5, "w1": 0.1})
    sizes = SizeOptions(
        endpoints=64, heldout=64, samples=64, iterations=2, batch=8, holdout=8, validate_every=1
    )
    Compare(methods=("god",), steps=(2,), grids=("uniform",), out=tmp_path, sizes=sizes).run()
    said = (tmp_path / "toy" / "results.md").read_text(encoding="utf-8")
    assert said == write_markdown(tmp_path / "toy")
    assert "**2 NFE**" in said and "| god |" in said and "| *uniform* |" in said
    assert load_json(tmp_path / "toy" / "results.json")["notes"][0] in said

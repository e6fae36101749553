"""Which sections a folder gets, and what a malformed one is told."""

import re

import pytest
import torch

from bench.report.cases import RUN, curves, fashion, report, toy, toy_rows, write
from indis.storage import save_json, save_tensors

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from indis.bench.report.page import readme_picture, write_figures, write_report  # noqa: E402

ALL = ["samples", "results", "plans", "curves", "toy", "toy_scatter", "run"]


def test_renders_every_section(full):
    _, sections, page = full
    assert sections == ALL
    assert all(f'id="{name}"' in page for name in ALL)
    assert page.count("<img") == 4 + 3 + 3 + 1 + 1 + 1


def test_is_self_contained(full):
    _, _, page = full
    assert (
        "http://" not in page
        and "https://" not in page
        and "<script" not in page
        and "<link" not in page
    )
    assert all(
        source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', page)
    )


def test_is_the_same_twice(tmp_path):
    folder = write(tmp_path, ["toy.json", "toy_scatter.safetensors", "plans.safetensors"])
    assert report(folder) == report(folder)


def test_run_text_leads_and_closes(full):
    _, _, page = full
    assert page.index("A demonstration run.") < page.index('id="samples"')
    assert "7 minutes" in page and "indis demo --out runs/demo" in page and "[3, 5]" in page


def test_text_is_escaped(tmp_path):
    save_json(tmp_path / "run.json", {"text": ["<script>alert(1)</script>"]})
    write_report(tmp_path, tmp_path / "report.html", title="a < b")
    raw = (tmp_path / "report.html").read_text()
    assert "<script>" not in raw and "<title>a &lt; b</title>" in raw


@pytest.mark.parametrize(
    "missing", ["toy.json", "results.json", "samples.safetensors", "plans.safetensors"]
)
def test_a_missing_file_drops_its_section(tmp_path, missing):
    keep = {"run.json", "curves.json", "toy.json"} - {missing}
    every = (
        "toy.json",
        "toy_scatter.safetensors",
        "results.json",
        "samples.safetensors",
        "plans.safetensors",
        "curves.json",
    )
    write(tmp_path, [name for name in every if name not in keep])
    sections, page = report(tmp_path)
    assert missing.split(".")[0] not in sections and f'id="{missing.split(".")[0]}"' not in page
    assert {"curves", "run"} <= set(sections)


def test_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="toy.json"):
        write_report(tmp_path, tmp_path / "report.html")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
    with pytest.raises(FileNotFoundError, match=r"samples\.safetensors"):
        readme_picture(tmp_path, tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("toy.json", "{"),
        ("toy.json", "[]"),
        ("toy.json", '{"cells": []}'),
        ("toy.json", '{"cells": [{"policy": "global"}]}'),
        ("results.json", '{"rows": []}'),
        ("results.json", '{"rows": [{"method": "x", "steps": 3, "heldout_loss": "low"}]}'),
        (
            "curves.json",
            '{"curves": [{"label": "a", "steps": 3, "iteration": [1, 2], "heldout": [1]}]}',
        ),
        ("run.json", '{"text": "not a list"}'),
        ("samples.safetensors", "garbage"),
        ("plans.safetensors", "garbage"),
    ],
)
def test_malformed_file(tmp_path, file, content):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=re.escape(file)) as caught:
        write_report(tmp_path, tmp_path / "report.html")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "tensors", "meta"),
    [
        ("samples.safetensors", {"a": torch.rand(3, 8, 8)}, None),
        ("samples.safetensors", {"a": torch.zeros(3, 8, 8, dtype=torch.uint8)}, {"order": ["b"]}),
        (
            "samples.safetensors",
            {
                "a": torch.zeros(3, 8, 8, dtype=torch.uint8),
                "b": torch.zeros(3, 9, 9, dtype=torch.uint8),
            },
            None,
        ),
        ("plans.safetensors", {"something": torch.rand(3, 4)}, None),
        ("plans.safetensors", {"tau N=3": torch.rand(5, 4), "label": torch.zeros(4)}, None),
        ("toy_scatter.safetensors", {"error global tau heldout": torch.rand(4)}, None),
    ],
)
def test_malformed_tensors(tmp_path, file, tensors, meta):
    save_tensors(tmp_path / file, tensors, meta)
    with pytest.raises(ValueError, match=re.escape(file)):
        write_report(tmp_path, tmp_path / "report.html")


def test_every_model_of_a_comparison_gets_its_sections(tmp_path):
    for name, content in (("toy", toy_rows(["god", "indis", "look"])), ("fashion", fashion())):
        save_json(tmp_path / name / "results.json", content)
        save_json(tmp_path / name / "run.json", RUN)
    save_json(tmp_path / "endpoints" / "meta.json", {})
    sections, page = report(tmp_path)
    assert sections == ["fashion/results", "fashion/run", "toy/results", "toy/run"]
    assert "<h2>Comparison: toy</h2>" in page and 'href="#toy/results"' in page
    assert page.count('class="value"') == 2 * 2 * sum(
        len(RUN[name]) for name in ("config", "versions")
    )


def test_figures_are_named_after_model_and_kind(tmp_path):
    save_json(tmp_path / "toy" / "results.json", toy_rows(["god", "indis", "look"]))
    save_json(tmp_path / "results.json", fashion())
    written = write_figures(tmp_path, tmp_path / "out")
    kinds = {"fashion": ("dots", "nfe", "pareto"), "toy": ("dots", "nfe", "pareto", "ablation")}
    assert [path.name for path in written] == [
        f"compare-{m}-{k}.png" for m, found in kinds.items() for k in found
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_figures_of_the_toy_study_and_of_samples_are_written_too(tmp_path):
    write(tmp_path)
    names = {path.name for path in write_figures(tmp_path, tmp_path / "out")}
    assert (
        {"toy_fig2.png", "toy_fig3.png", "curves.png", "picture.png"}
        <= names
        == {p.name for p in (tmp_path / "out").iterdir()}
    )
    readme_picture(tmp_path, tmp_path / "same.png")
    assert (tmp_path / "same.png").read_bytes() == (tmp_path / "out" / "picture.png").read_bytes()


def test_figures_of_learning_curves_are_named_after_their_folder(tmp_path):
    run = tmp_path / "run"
    for home in (run, run / "fashion", run / "toy"):
        save_json(home / "curves.json", curves())
        save_json(home / "results.json", toy_rows(["god"], (3,)))
    save_json(run / "toy" / "curves.json", {"curves": curves()["curves"][:2]})
    written = {path.name: path.read_bytes() for path in write_figures(run, tmp_path / "out")}
    found = {name: data for name, data in written.items() if name.startswith("curves")}
    assert set(found) == {"curves.png", "curves-fashion.png", "curves-toy.png"}
    assert all(data.startswith(b"\x89PNG") for data in found.values())
    assert found["curves.png"] == found["curves-fashion.png"] != found["curves-toy.png"]


def test_a_comparison_without_curves_has_a_page_all_the_same(tmp_path):
    save_json(tmp_path / "curves.json", {"curves": []})
    save_json(tmp_path / "results.json", toy_rows(["god"], (3,)))
    write_report(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert (
        "god" in page
        and "Held-out loss against iteration" not in page
        and "Learning curves" not in page
    )


def test_a_comparison_without_curves_has_its_other_figures(tmp_path):
    save_json(tmp_path / "curves.json", {"curves": []})
    save_json(tmp_path / "results.json", toy_rows(["god"], (3,)))
    assert [path.name for path in write_figures(tmp_path, tmp_path / "out")] == [
        "compare-toy-dots.png"
    ]


def test_a_scatter_without_errors_is_left_out(tmp_path):
    save_json(tmp_path / "toy.json", toy(steps=(5,)))
    save_tensors(tmp_path / "toy_scatter.safetensors", {"noise_train": torch.rand(4, 2)})
    assert report(tmp_path)[0] == ["toy"]
    assert [path.name for path in write_figures(tmp_path, tmp_path / "out")] == ["toy_fig3.png"]


def test_a_scatter_of_equal_steps_alone_is_drawn(tmp_path):
    names = ("noise_train", "noise_heldout")
    errors = {f"error uniform tau {split}": torch.rand(9) for split in ("train", "heldout")}
    save_tensors(
        tmp_path / "toy_scatter.safetensors", errors | {name: torch.rand(9, 2) for name in names}
    )
    assert report(tmp_path)[0] == ["toy_scatter"]


def test_no_comparison_has_no_figures(tmp_path):
    save_json(tmp_path / "run.json", RUN)
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        write_figures(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()

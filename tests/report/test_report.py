"""A synthetic run folder with every file, and what the page makes of it."""

import base64
import html
import io
import itertools
import re

import numpy as np
import pytest
import torch

pytest.importorskip("jinja2")
image = pytest.importorskip("matplotlib.image")

from indis.report import charts, pictures, tables  # noqa: E402
from indis.report.page import readme_picture, write_report  # noqa: E402
from indis.storage import save_json, save_tensors  # noqa: E402

FREEDOMS = ("tau", "tau+dtau", "tau+dtau+gamma")
FACTORS = {"uniform": 2.0, "global": 1.0, "instance": 0.6, "oracle": 0.4}
ALL = ["samples", "fashion", "plans", "curves", "toy", "toy_scatter", "run"]


def toy_cell(policy, freedoms, steps, split):
    size = FACTORS[policy] * (1 - 0.15 * freedoms.count("+")) if policy != "uniform" else 2.0
    size *= 1.05 if split == "heldout" else 1.0
    floor = {"kl_floor": 0.01, "w1_floor": 0.004}
    cell = {"policy": policy, "freedoms": freedoms, "steps": steps, "nfe": steps, "split": split}
    cell |= {
        "squared_distance": 0.22 * size / steps**2,
        "kl": 0.01 + 0.9 * size / steps**2,
        "w1": 0.004 + 0.2 * size / steps**1.5,
    }
    return (
        cell | floor | {"priors": 500, "classes": "A", "tree_seed": 2, "seed": 0, "parameters": 9, "fit_seconds": 1.0}
    )


def toy(steps=(3, 4, 5, 6, 7, 8, 9, 10)):
    splits = ("train", "heldout")
    cells = [toy_cell("uniform", "tau", n, split) for n in steps for split in splits]
    learned = itertools.product(("global", "instance"), FREEDOMS, steps, splits)
    cells += [toy_cell(*which) for which in learned]
    cells += [toy_cell("oracle", freedoms, n, "train") for freedoms in FREEDOMS for n in steps]
    return {"study": "toy", "config": {}, "units": {"kl": "nats", "fixed": "both ends"}, "cells": cells}


def scatter(count=1500):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"noise_{split}": torch.randn(count, 2, generator=generator) for split in ("train", "heldout")}
    for policy, freedoms, split in itertools.product(FACTORS, (FREEDOMS[0], FREEDOMS[-1]), ("train", "heldout")):
        if (policy == "oracle" and split == "heldout") or (policy == "uniform" and freedoms != "tau"):
            continue
        distance = tensors[f"noise_{split}"].norm(dim=1)
        noise = torch.randn(count, generator=generator).exp()
        tensors[f"error {policy} {freedoms} {split}"] = 0.01 * FACTORS[policy] * (3 * distance).sin().abs() * noise
    return tensors


def fashion_row(method, steps, loss, fd, seed=0, freedoms="", afs=False):
    row = {
        "model": "fashion",
        "method": method,
        "freedoms": freedoms,
        "steps": steps,
        "afs": afs,
        "seed": seed,
        "nfe": steps - afs,
    }
    return row | {
        "heldout_loss": loss,
        "teacher_mse": loss / 3,
        "perceptual": None,
        "fd": fd,
        "samples": 10_000,
        "fit_seconds": loss,
    }


def fashion():
    rows = []
    for n, afs in ((3, False), (3, True), (5, False)):
        rows.append(fashion_row("polynomial:7", n, 0.9 / n, 60.0 / n, afs=afs))
        rows.append(fashion_row("log_snr", n, 1.4 / n, None, afs=afs))
        for seed in range(3):
            rows.append(fashion_row("global", n, (0.5 + 0.02 * seed) / n, 40.0 / n, seed, "tau+dtau+gamma", afs))
            rows.append(fashion_row("INDIS", n, (0.3 + 0.01 * seed) / n, 30.0 / n + seed, seed, "tau+dtau+gamma", afs))
    return {"rows": rows, "teacher": {"fd": 2.5, "nfe": 30}, "notes": ["A note <with> markup."]}


def samples(count=16, size=28):
    y, x = np.mgrid[:size, :size] / size - 0.5
    base = np.stack([np.hypot(x * (1 + k % 5), y * (1 + k % 3)) < 0.4 for k in range(count)])
    labels = ["teacher (30 NFE)", "INDIS N=3", "global N=3", "polynomial:7 N=3"]
    shades = [torch.from_numpy((base * (220 - 40 * i) + 10 * i).astype(np.uint8)) for i in range(len(labels))]
    return dict(zip(labels, shades, strict=True)), {"order": [labels[0], labels[3], labels[2], labels[1]]}


def karras(steps):
    return ((80 ** (1 / 7)) + np.linspace(0, 1, steps + 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7


def plans(count=400, steps=(3, 4, 6)):
    rng = np.random.default_rng(0)
    tensors, meta = {"label": torch.arange(count) % 10}, {}
    for n in steps:
        base = karras(n)
        shift = rng.normal(size=(count, n + 1)) * 0.3 + 0.05 * (np.arange(count) % 10)[:, None]
        shift[:, [0, -1]] = 0
        tau = base * np.exp(shift)
        gamma = 1 + 0.05 * rng.normal(size=(count, n)) + 0.01 * (np.arange(count) % 10)[:, None]
        tensors[f"tau N={n}"] = torch.from_numpy(tau)
        tensors[f"dtau N={n}"] = torch.from_numpy(0.1 * tau[:, :-1] * rng.normal(size=(count, n)))
        tensors[f"gamma N={n}"] = torch.from_numpy(gamma)
        meta[f"base N={n}"] = {"tau": base.tolist()}
        meta[f"global N={n}"] = {"tau": (base * 1.1).tolist(), "dtau": (base[:-1] * 0.02).tolist(), "gamma": [1.02] * n}
    return tensors, meta


def curves():
    at = list(range(0, 2001, 100))
    made = [
        {"label": label, "steps": n, "iteration": at, "heldout": [size / n * (0.3 + np.exp(-i / 400)) for i in at]}
        for n in (3, 4, 5, 6)
        for label, size in (("global τ", 1.0), ("INDIS τ", 0.8), ("INDIS τ+Δτ+γ", 0.6))
    ]
    return {"curves": made}


RUN = {
    "command": "indis demo --out runs/demo",
    "config": {"steps": [3, 5], "solver": "ipndm"},
    "seconds": 431.0,
    "versions": {"torch": "2.13.0"},
    "text": ["A demonstration run."],
}


def write(folder, leave_out=()):
    writers = {
        "toy.json": lambda path: save_json(path, toy()),
        "toy_scatter.safetensors": lambda path: save_tensors(path, scatter()),
        "fashion.json": lambda path: save_json(path, fashion()),
        "samples.safetensors": lambda path: save_tensors(path, *samples()),
        "plans.safetensors": lambda path: save_tensors(path, *plans()),
        "curves.json": lambda path: save_json(path, curves()),
        "run.json": lambda path: save_json(path, RUN),
    }
    for name, write_to in writers.items():
        if name not in leave_out:
            write_to(folder / name)
    return folder


def report(folder):
    sections = write_report(folder, folder / "report.html")
    return sections, html.unescape((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("run"))
    return folder, *report(folder)


def pixels(uri):
    return image.imread(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])), format="png")


def test_renders_every_section(full):
    _, sections, page = full
    assert sections == ALL
    assert all(f'id="{name}"' in page for name in ALL)
    assert page.count("<img") == 4 + 1 + 3 + 1 + 1 + 1


def test_is_self_contained(full):
    _, _, page = full
    assert "http://" not in page and "https://" not in page and "<script" not in page and "<link" not in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', page))


def test_is_the_same_twice(tmp_path):
    folder = write(tmp_path, ["toy.json", "toy_scatter.safetensors", "plans.safetensors"])
    assert report(folder) == report(folder)


def test_reductions_are_the_mean_of_the_relative_changes(full):
    _, _, page = full
    cells = toy()["cells"]
    full_set = FREEDOMS[-1]
    changes = [
        toy_cell("instance", full_set, n, "heldout")["kl"] / toy_cell("global", full_set, n, "heldout")["kl"] - 1
        for n in range(3, 11)
    ]
    assert tables.mean_reduction(cells, full_set, "kl") == pytest.approx(np.mean(changes))
    assert tables.mean_reduction(cells, full_set, "kl", 6) == pytest.approx(np.mean(changes[:4]))
    assert tables.percent(np.mean(changes), 2) in page
    assert tables.percent(np.mean(changes[:4]), 2) in page
    assert tables.mean_reduction(cells, "tau", "squared_distance") == pytest.approx(-0.4)
    assert tables.oracle_gain(cells, "tau")[2] == pytest.approx(-0.6)


def test_quotes_the_paper(full):
    _, _, page = full
    quoted = ("0.0245", "0.0122", "−50.2\xa0%", "−45.67\xa0%", "−29.54\xa0%", "−25.86\xa0%", "−21.85\xa0%")
    assert all(number in page for number in quoted)


def test_uniform_is_compared_with_every_set_of_freedoms():
    assert tables.toy_series(toy()["cells"], "uniform", FREEDOMS[-1], "kl").keys() == set(range(3, 11))


def test_toy_without_three_steps_or_an_oracle(tmp_path):
    content = toy(steps=(7, 8))
    content["cells"] = [cell for cell in content["cells"] if cell["policy"] != "oracle"]
    save_json(tmp_path / "toy.json", content)
    sections, page = report(tmp_path)
    assert sections == ["toy"]
    assert f"from {tables.MISSING} to {tables.MISSING}" in page and "that were run (7, 8)" in page


def test_merges_seeds_and_marks_the_best(full):
    _, _, page = full
    found = tables.entries(fashion()["rows"], 2.5)
    assert len(found) == 12
    indis = next(e for e in found if e.row["method"] == "INDIS" and e.row["steps"] == 3 and not e.row["afs"])
    assert indis.mean("heldout_loss") == pytest.approx(0.31 / 3)
    assert indis.mean("excess") == pytest.approx(11.0 - 2.5)
    assert '<td class="best">0.1033 ± 0.0033</td>' in page
    assert '<td class="best">8.5 ± 1.0</td>' in page
    assert "perceptual" not in page
    assert "it is not FID" in page and "N = 3, analytic first step" in page
    assert "A note <with> markup." in page


def test_rows_with_other_settings_are_not_merged():
    rows = [fashion_row("INDIS", 3, 0.1, 9.0) | {"solver": solver} for solver in ("ipndm", "euler")]
    assert [e.name for e in tables.entries(rows)] == ["INDIS solver=ipndm", "INDIS solver=euler"]


def test_fashion_without_any_distance(tmp_path):
    save_json(tmp_path / "fashion.json", {"rows": [fashion_row("global", 3, 0.5, None)]})
    sections, page = report(tmp_path)
    assert sections == ["fashion"]
    assert "0.500" in page and "excess FD" not in page


def test_sample_rows_keep_order_and_pixels(full):
    _, _, page = full
    labels = re.findall(r'<div class="strip"><span>([^<]*)</span>', page)
    assert labels == samples()[1]["order"]
    uri = re.search(r'alt="INDIS N=3" src="([^"]*)', page).group(1)
    shown = (pixels(uri) * 255).round().astype(np.uint8)
    assert shown.shape == (28, 16 * 30 - 2, 4)
    np.testing.assert_array_equal(shown[:, 30:58, 0], samples()[0]["INDIS N=3"][1])
    assert not shown[:, 28:30, 3].any()


def test_colour_samples_use_what_every_row_has(tmp_path):
    images = torch.randint(256, (20, 3, 8, 6), dtype=torch.uint8)
    save_tensors(tmp_path / "samples.safetensors", {"a": images, "b": images[:5].clone()})
    _, page = report(tmp_path)
    shown = (pixels(re.search(r'alt="b" src="([^"]*)', page).group(1)) * 255).round()
    assert shown.shape == (8, 5 * 8 - 2, 4)
    np.testing.assert_array_equal(shown[:, :6, :3], images[0].permute(1, 2, 0))


def test_plans_without_extras(tmp_path):
    tau = torch.linspace(1, 0, 5).repeat(30, 1)
    save_tensors(tmp_path / "plans.safetensors", {"tau N=4": tau})
    sections, page = report(tmp_path)
    assert sections == ["plans"] and page.count("<img") == 1


def test_plans_of_one_step_have_no_interior(tmp_path):
    tensors = {"tau N=1": torch.tensor([[1.0, 0.0]] * 9), "gamma N=1": torch.rand(9, 1)}
    save_tensors(tmp_path / "plans.safetensors", tensors)
    _, page = report(tmp_path)
    assert page.count("<img") == 1


def test_run_text_leads_and_closes(full):
    _, _, page = full
    assert page.index("A demonstration run.") < page.index('id="samples"')
    assert "7 minutes" in page and "indis demo --out runs/demo" in page and "[3, 5]" in page


def test_text_is_escaped(tmp_path):
    save_json(tmp_path / "run.json", {"text": ["<script>alert(1)</script>"]})
    write_report(tmp_path, tmp_path / "report.html", title="a < b")
    raw = (tmp_path / "report.html").read_text()
    assert "<script>" not in raw and "<title>a &lt; b</title>" in raw


@pytest.mark.parametrize("missing", ["toy.json", "fashion.json", "samples.safetensors", "plans.safetensors"])
def test_a_missing_file_drops_its_section(tmp_path, missing):
    keep = {"run.json", "curves.json", "toy.json"} - {missing}
    every = (
        "toy.json",
        "toy_scatter.safetensors",
        "fashion.json",
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
        ("fashion.json", '{"rows": []}'),
        ("fashion.json", '{"rows": [{"method": "x", "steps": 3, "heldout_loss": "low"}]}'),
        ("curves.json", '{"curves": [{"label": "a", "steps": 3, "iteration": [1, 2], "heldout": [1]}]}'),
        ("curves.json", '{"curves": []}'),
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
            {"a": torch.zeros(3, 8, 8, dtype=torch.uint8), "b": torch.zeros(3, 9, 9, dtype=torch.uint8)},
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


@pytest.mark.parametrize("leave_out", [(), ("toy.json",), ("samples.safetensors",)])
def test_readme_picture(tmp_path, leave_out):
    readme_picture(write(tmp_path, leave_out), tmp_path / "picture.png")
    data = (tmp_path / "picture.png").read_bytes()
    assert len(data) <= pictures.PICTURE_BYTES
    assert image.imread(io.BytesIO(data), format="png").shape[1] == 1200


def test_readme_picture_stays_small_with_incompressible_samples(tmp_path):
    noise = torch.randint(256, (16, 3, 64, 64), dtype=torch.uint8)
    save_tensors(tmp_path / "samples.safetensors", {f"row {k}": noise.clone() for k in range(4)})
    readme_picture(tmp_path, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size <= pictures.PICTURE_BYTES


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.0245,), "0.0245"),
        ((12.0,), "12.0"),
        ((123.0,), "123"),
        ((4321.0,), "4321"),
        ((1.0, 1.2), "1.10 ± 0.14"),
        ((3.0, 3.0), "3.00"),
    ],
)
def test_numbers_read_well(values, text):
    assert tables.spread(values) == text


def test_figures_are_drawn_on_white():
    corner = pixels(charts.data_uri(charts.png(charts.toy_curves(toy((3, 5))["cells"]))))[0, 0, :3]
    np.testing.assert_allclose(corner, 1.0)

"""The toy study's numbers, and how numbers read."""

import numpy as np
import pytest

from bench.report.cases import FREEDOMS, report, toy, toy_cell
from indis.bench.report import tables
from indis.storage import save_json

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def test_reductions_are_the_mean_of_the_relative_changes(full):
    _, _, page = full
    cells = toy()["cells"]
    full_set = FREEDOMS[-1]
    changes = [
        toy_cell("instance", full_set, n, "heldout")["kl"]
        / toy_cell("global", full_set, n, "heldout")["kl"]
        - 1
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
    quoted = (
        "0.0245",
        "0.0122",
        "−50.2\xa0%",
        "−45.67\xa0%",
        "−29.54\xa0%",
        "−25.86\xa0%",
        "−21.85\xa0%",
    )
    assert all(number in page for number in quoted)


def test_uniform_is_compared_with_every_set_of_freedoms():
    assert tables.toy_series(toy()["cells"], "uniform", FREEDOMS[-1], "kl").keys() == set(
        range(3, 11)
    )


def test_toy_without_three_steps_or_an_oracle(tmp_path):
    content = toy(steps=(7, 8))
    content["cells"] = [cell for cell in content["cells"] if cell["policy"] != "oracle"]
    save_json(tmp_path / "toy.json", content)
    sections, page = report(tmp_path)
    assert sections == ["toy"]
    assert f"from {tables.MISSING} to {tables.MISSING}" in page and "that were run (7, 8)" in page


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

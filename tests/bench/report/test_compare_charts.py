"""Figures of a comparison: which are drawn, what they draw, and that no name covers another."""

import itertools

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.text import Annotation  # noqa: E402

from bench.report.cases import fashion, row, toy_rows  # noqa: E402
from indis.bench.report import comparison  # noqa: E402
from indis.bench.report.compare_charts import (
    ablation,
    corners,
    dots,
    drawings,
    front,
    pareto,
    timed,
)  # noqa: E402
from indis.bench.report.lines import learning_curves, nfe_lines  # noqa: E402
from indis.bench.report.marks import look, name_points, spread_out  # noqa: E402
from indis.bench.variants import VARIANTS  # noqa: E402


def read(content):
    (results,) = comparison.read(content)
    return results


def names(axes):
    return [child for child in axes.get_children() if isinstance(child, Annotation)]


def overlaps(figure, axes):
    """Pairs of names of which one covers another, once everything has its place."""
    figure.draw_without_rendering()
    boxes = [(a.get_text(), super(Annotation, a).get_window_extent()) for a in names(axes)]
    return [
        (a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)
    ]


def test_figures_are_drawn_when_there_is_enough_for_them():
    cases = {
        ("dots", "nfe", "pareto"): fashion(),
        ("dots", "pareto", "ablation"): toy_rows(["god", "indis", "look"], (3, 5)),
        ("dots",): {"rows": [row("uniform", 3, 0.5, None)]},
    }
    for kinds, content in cases.items():
        found = list(drawings(read(content)))
        assert tuple(d.name for d in found) == kinds
        assert all(d.alt and d.caption.endswith(".") for d in found)


def test_captions_tell_what_is_left_out():
    content = toy_rows(["god", "indis", "look", "indis tau"])
    content["rows"].append(row("god", 3, 0.009, afs=True, model="toy", kl=0.2))
    captions = {d.name: d.caption for d in drawings(read(content))}
    assert "Hollow dots are with AFS." in captions["dots"] and "the 3 best" in captions["dots"]
    assert all(
        "Best of with and without AFS" in captions[k] and "Ablations have" in captions[k]
        for k in ("nfe", "pareto")
    )
    content["rows"][-1] |= {"nfe": 9}
    captions = {d.name: d.caption for d in drawings(read(content))}
    assert "Best of" not in captions["nfe"] and "AFS only where" in captions["nfe"]


def test_of_many_numbers_of_evaluations_the_ablations_show_four_from_the_least_to_the_most():
    legend = ablation(read(toy_rows(["god", "indis", "look"], tuple(range(3, 11))))).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["3 NFE", "5 NFE", "8 NFE", "10 NFE"]


def test_ablations_are_those_of_the_comparison():
    gone = {"indis +tracking"}  # no variant any more, but results/ holds its rows
    ablations = {name for name, v in VARIANTS.items() if v.kind == "ablation"}
    assert set(comparison.ABLATED) == ablations | gone
    assert set(comparison.ABLATIONS) | {comparison.REFERENCE} <= set(VARIANTS) | gone


@pytest.mark.parametrize("draw", [nfe_lines, pareto])
def test_no_name_covers_another_among_all_methods(draw):
    figure = draw(read(toy_rows(VARIANTS)))
    drawn = [axes for axes in figure.axes if axes.axison]
    methods = len([v for v in VARIANTS.values() if v.kind != "ablation"])
    assert {len(names(axes)) for axes in drawn} == {methods + 1}
    assert [overlaps(figure, axes) for axes in drawn] == [[]] * len(drawn)


def test_lines_go_through_the_means():
    figure = nfe_lines(read(fashion()))
    lines = {line.get_color(): line.get_xydata() for line in figure.axes[0].get_lines()}
    # At 3 NFE phi is better with AFS.
    np.testing.assert_allclose(
        lines[look("indis").colour], [(3, 0.3 / 3), (5, 0.31 / 5), (7, 0.31 / 7)]
    )
    np.testing.assert_allclose(
        lines[look(comparison.BEST_GRID).colour], [(n, 0.9 / n) for n in (3, 5, 7)]
    )
    assert figure.axes[1].get_ylabel() == "FD-Fashion"


def test_positions_move_as_little_as_possible():
    assert spread_out([0.1, 0.5, 0.9], 0.2) == pytest.approx([0.1, 0.5, 0.9])
    assert spread_out([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread_out([0.1, 0.5, 0.52, 0.9], 0.1) == pytest.approx([0.1, 0.46, 0.56, 0.9])
    assert spread_out([-0.3, 0.0, 0.0], 0.1) == pytest.approx([0.0, 0.1, 0.2])
    assert np.diff(spread_out([0.5] * 30, 0.1)) == pytest.approx(np.full(29, 0.1))


def test_names_of_near_points_keep_apart():
    figure = Figure(figsize=(5, 4))
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    points = {f"method {k}": (0.5 + 0.01 * k, 0.5 - 0.01 * k) for k in range(6)}
    name_points(axes, points, (4.0, 3.2))
    assert overlaps(figure, axes) == []


def test_the_front_has_what_nothing_beats_in_both():
    points = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.5), (4.0, 1.0), (9.0, 1.0)]
    assert front(points) == [(1.0, 5.0), (2.0, 3.0), (4.0, 1.0)]
    assert corners(front(points)) == [(1.0, 5.0), (2.0, 5.0), (2.0, 3.0), (4.0, 3.0), (4.0, 1.0)]


def test_fitting_times_are_means_and_never_zero():
    content = fashion()
    content["rows"].append(row("dmn", 3, 0.7, fit_seconds=0.0, parameters=0))
    points = timed(read(content), 3)
    assert set(points) == {"indis", "god", "dmn"}
    assert points["god"] == pytest.approx((30.0, 0.52 / 3)) and points["dmn"][0] == 0.1


def test_times_that_are_all_but_equal_look_so():
    rows = [
        row("god", 3, 0.2, fit_seconds=100.0),
        row("indis", 3, 0.1, fit_seconds=101.0),
        row("look", 5, 0.1),
    ]
    (axes,) = pareto(read({"rows": rows})).axes
    low, high = axes.get_xlim()
    assert high / low == pytest.approx(5) and low < 100 < 101 < high


def test_dots_fill_without_afs_and_leave_out_poor_grids():
    content = fashion()
    content["rows"] += [row(f"grid:{k}", 3, 0.5 + 0.1 * k, None) for k in range(5)]
    panel = dots(read(content)).axes[0]
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels == ["indis", "god", "polynomial:7", "log_snr", "grid:0"]
    marks = [line for line in panel.get_lines() if line.get_color() == look("god").colour]
    assert [line.get_markerfacecolor() for line in marks] == [look("god").colour, "white"]


def test_bars_are_the_changes():
    results = read(toy_rows(["look", "indis", "god"], (3, 5)))
    figure = ablation(results)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["god", "look"]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([*results.changes(3).values(), *results.changes(5).values()])
    assert widths[0] == pytest.approx(1.6 / 1.3 - 1) and widths[1] == pytest.approx(1 / 1.3 - 1)


def test_large_changes_do_not_hide_small_ones():
    rows = [row("indis", 3, 0.1), row("god tau", 3, 5.0), row("look", 3, 0.05)]
    (axes,) = ablation(read({"rows": rows})).axes
    assert "logarithmic" in axes.get_xlabel()
    spots = axes.transLimits.transform(axes.transScale.transform([(-0.5, 0), (0.0, 0), (49.0, 0)]))[
        :, 0
    ]
    assert 0 < spots[0] < spots[1] - 0.1 and spots[2] < 1


def curve(label, nfe, end):
    return {"label": label, "steps": nfe, "iteration": [1, 2, 3], "heldout": [1.0, 0.5, end]}


def test_curves_are_named_once_and_shown_with_afs_only_where_they_must():
    rows = [
        curve("god-nfe3-s0", 3, 0.2),
        curve("god-nfe3-s1", 3, 0.3),
        curve("god-nfe3-afs-s0", 3, 0.1),
    ]
    rows += [curve("amed-nfe3-afs-s0", 3, 0.4), curve("indis-+weights-nfe3-s0", 3, 0.15)]
    rows += [curve("indis-without-dtau-nfe5-s0", 5, 0.1), curve("by hand", 5, 0.2)]
    figure = learning_curves(rows)
    three, five = figure.axes
    assert sorted(a.get_text() for a in names(three)) == ["amed", "god", "indis +weights"]
    assert len(three.get_lines()) == 4 and three.get_title() == "3 NFE"
    assert sorted(a.get_text() for a in names(five)) == ["by hand", "indis without dtau"]

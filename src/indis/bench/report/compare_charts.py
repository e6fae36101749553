"""Figures of a comparison: scores at equal NFE, error against NFE, quality against fitting time,
ablations.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from indis.bench.report.charts import WIDTH, log_axis, panels, style, wide
from indis.bench.report.comparison import (
    ABLATED,
    BEST_GRID,
    LOSS,
    METRICS,
    REFERENCE,
    Entry,
    Results,
)
from indis.bench.report.lines import nfe_lines
from indis.bench.report.marks import OTHER, SIZE, Look, look, name_points
from indis.bench.report.tables import percent

GRIDS = 3  # of each NFE in a figure; the table has them all
FASTEST = 0.1  # seconds; fitting times have one decimal, and a log axis has no zero
GRID = Look(OTHER, "s", main=False)
_PANEL = 3.3  # inches
_BARS = ("#D9A441", "#56B4E9", "#7A5195", "#999999", "#33605A", "#CC79A7")
_TICKS = (-1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000)


@dataclass(frozen=True)
class Drawing:
    """A figure, what it is called, and what it shows."""

    name: str
    figure: Figure
    alt: str
    caption: str


def drawings(results: Results) -> Iterator[Drawing]:
    """The figures that the rows are enough for."""
    yield Drawing("dots", dots(results), "Scores by method", _dots_caption(results))
    chosen = _chosen(results)
    if len(results.nfes) >= 3:
        caption = f"Error against the number of network evaluations. {chosen}{_dotted(results)}"
        yield Drawing("nfe", nfe_lines(results), "Error against NFE", caption.strip())
    if _timed_nfes(results):
        caption = f"Down and left is better; no method beats those on the stairs in both. {chosen}"
        yield Drawing(
            "pareto", pareto(results), "Held-out loss against fitting time", caption.strip()
        )
    if _ablated(results):
        caption = (
            f"Held-out loss with pieces changed, against all of φ ({REFERENCE}). Left of zero is "
            "better."
        )
        yield Drawing("ablation", ablation(results), "Held-out loss of ablations", caption)


def _ablated(results: Results) -> bool:
    """Are there two variants to compare?"""
    return any(len(results.changes(nfe)) >= 2 for nfe in results.nfes)


def _chosen(results: Results) -> str:
    """What a figure of contenders leaves out."""
    forced = (
        "With AFS only where a method has no other row."
        if any(e.afs for e in results.entries)
        else ""
    )
    afs = results.best_of if results.choosy else forced
    ablations = (
        "Ablations have their own figure."
        if any(e.name in ABLATED for e in results.entries)
        else ""
    )
    return " ".join(part for part in (afs, ablations) if part)


def _dotted(results: Results) -> str:
    return (
        " The dotted line is the teacher."
        if results.distance and results.distance in results.teacher
        else ""
    )


# --- dots


def _dots_caption(results: Results) -> str:
    caption = "Lower is better. A dot is the mean, small strokes are single seeds."
    caption += " Hollow dots are with AFS." if any(e.afs for e in results.entries) else ""
    caption += (
        f" Of the grids, the {GRIDS} best." if any(e.is_grid for e in results.entries) else ""
    )
    return caption + _dotted(results)


def dots(results: Results) -> Figure:
    """Held-out loss and distance to the data by method, one row of panels for each NFE."""
    metrics = [LOSS, *([results.distance] if results.distance else [])]
    groups = {nfe: _dotted_rows(results.at(nfe)) for nfe in results.nfes}
    heights = [0.2 * len(rows) + 0.62 for rows in groups.values()]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.4), layout="constrained")
    axes = figure.subplots(
        len(groups), len(metrics), squeeze=False, height_ratios=heights, sharey="row"
    )
    for line, (nfe, rows) in zip(axes, groups.items(), strict=True):
        for panel, metric in zip(line, metrics, strict=True):
            _dots(panel, rows, metric, results.teacher.get(metric))
        line[0].set_yticks(range(len(rows)), list(rows), fontsize=8.5)
        line[0].set_ylim(len(rows) - 0.4, -0.6)
        line[0].set_title(f"{nfe} NFE", fontsize=10, loc="left", fontweight="bold")
    for panel, metric in zip(axes[-1], metrics, strict=True):
        panel.set_xlabel(METRICS[metric], fontsize=10)
    return figure


def _dotted_rows(group: Sequence[Entry]) -> dict[str, list[Entry]]:
    """A name's entries, which share a line; of the grids a few."""
    rows: dict[str, list[Entry]] = {}
    for entry in group:
        rows.setdefault(entry.name, []).append(entry)
    grids = [name for name, entries in rows.items() if entries[0].is_grid]
    return {name: entries for name, entries in rows.items() if name not in grids[GRIDS:]}


def _dots(
    axes: Axes, rows: Mapping[str, Sequence[Entry]], metric: str, teacher: float | None
) -> None:
    style(axes)
    for y, entry in (
        (y, e) for y, entries in enumerate(rows.values()) for e in entries if e.values[metric]
    ):
        values = entry.values[metric]
        mark = GRID if entry.is_grid else look(entry.name)
        if len(values) > 1:
            axes.plot(values, [y] * len(values), "|", color="#888888", markersize=7)
        fill, size = "white" if entry.afs else mark.colour, 6 if mark.main else 4.5
        axes.plot(
            np.mean(values), y, **mark.line(markerfacecolor=fill, linestyle="none", markersize=size)
        )
    if teacher is not None:
        axes.axvline(teacher, color="black", linestyle=":", linewidth=1.2, zorder=0.9)
    drawn = [v for entries in rows.values() for e in entries for v in e.values[metric]]
    if wide(np.array(drawn + ([] if teacher is None else [teacher])), 5):
        log_axis(axes, "x")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))


# --- quality against time


def timed(results: Results, nfe: int) -> dict[str, tuple[float, float]]:
    """Fitting time and held-out loss of those that were fitted."""
    entries = {
        name: e
        for name, e in results.contenders(nfe).items()
        if e.values["fit_seconds"] and e.values[LOSS]
    }
    return {name: (max(e.mean("fit_seconds"), FASTEST), e.loss) for name, e in entries.items()}


def _timed_nfes(results: Results) -> list[int]:
    """Where there are two to compare."""
    return [nfe for nfe in results.nfes if len(timed(results, nfe)) >= 2]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in both, from the fastest to the best."""
    best: list[tuple[float, float]] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def corners(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Stairs through a front: what was reached stays until the next point."""
    turns = [(after[0], before[1]) for before, after in itertools.pairwise(points)]
    return [
        corner
        for pair in itertools.zip_longest(points, turns)
        for corner in pair
        if corner is not None
    ]


def pareto(results: Results) -> Figure:
    """A point a method, the front, and the best grid, which takes no time; one panel for each
    NFE.
    """
    counts = _timed_nfes(results)
    columns = min(len(counts), 2)
    figure, axes = panels(-(-len(counts) // columns), columns, _PANEL)
    for panel in axes.flat[len(counts) :]:
        panel.set_axis_off()
    for panel, nfe in zip(axes.flat, counts, strict=False):
        panel.set_title(f"{nfe} NFE", fontsize=10)
        panel.set_xlabel("fitting time, seconds", fontsize=9)
        _pareto_panel(
            panel,
            timed(results, nfe),
            results.contenders(nfe).get(BEST_GRID),
            WIDTH / columns - 0.8,
        )
    for row in axes:
        row[0].set_ylabel(METRICS[LOSS], fontsize=9)
    return figure


def _pareto_panel(
    axes: Axes, points: Mapping[str, tuple[float, float]], grid: Entry | None, width: float
) -> None:
    for name, point in points.items():
        axes.plot(
            *point, **look(name).line(linestyle="none", markersize=7 if look(name).main else 5)
        )
    stairs = corners(front(list(points.values())))
    axes.plot(*zip(*stairs, strict=True), color="#555555", linewidth=1, zorder=1)
    if grid is not None:
        axes.axhline(grid.loss, color=look(BEST_GRID).colour, linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log", xmargin=0.12, ymargin=0.1)
    axes.set(xlim=_at_least(axes.get_xlim(), 5), ylim=axes.get_ylim())
    for which in "xy":
        log_axis(axes, which)
    if grid is not None:
        name = f"{BEST_GRID}, no fit: {grid.label}"
        at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(name, (0.01, grid.loss), (0, 2), fontsize=SIZE, **at)
    first = dict(sorted(points.items(), key=lambda item: not look(item[0]).main))
    name_points(axes, first, (width, _PANEL - 0.75), stairs)


def _at_least(limits: tuple[float, float], ratio: float) -> tuple[float, float]:
    """Limits of a log axis that do not blow up what is all but equal."""
    more = max(1.0, (ratio * limits[0] / limits[1]) ** 0.5)
    return limits[0] / more, limits[1] * more


# --- ablations


def ablation(results: Results) -> Figure:
    """A bar for each variant and NFE, with its number; of many NFE, a few from the least to the
    most.
    """
    every = {nfe: found for nfe in results.nfes if (found := results.changes(nfe))}
    changes = {nfe: every[nfe] for nfe in _few(list(every))}
    names = list(dict.fromkeys(name for found in changes.values() for name in found))
    figure, axes = panels(1, 1, 0.14 * len(names) * (len(changes) + 1) + 0.5)
    panel, thickness = axes[0, 0], 0.8 / len(changes)
    for k, found in enumerate(changes.values()):
        places = [names.index(name) + (k - (len(changes) - 1) / 2) * thickness for name in found]
        bars = panel.barh(
            places, list(found.values()), thickness * 0.92, color=_BARS[k % len(_BARS)]
        )
        panel.bar_label(bars, [percent(value) for value in found.values()], padding=3, fontsize=7.5)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.grid(False, axis="y")
    _change_axis(panel, np.array([value for found in changes.values() for value in found.values()]))
    handles = [
        Patch(color=_BARS[k % len(_BARS)], label=f"{nfe} NFE") for k, nfe in enumerate(changes)
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), fontsize=9, frameon=False
    )
    return figure


def _few(counts: list[int], most: int = 4) -> list[int]:
    """As many as there are colours for that differ, as evenly spread as there are."""
    if len(counts) <= most:
        return counts
    return [counts[round(k * (len(counts) - 1) / (most - 1))] for k in range(most)]


def _change_axis(axes: Axes, changes: np.ndarray) -> None:
    """Linear up to a doubling, logarithmic beyond, with room for the numbers."""
    low, high = min(changes.min(), 0.0), max(changes.max(), 0.0)
    beyond = ", logarithmic beyond +100 %" if high > 1 else ""
    axes.set_xlabel(f"change of the held-out loss against {REFERENCE}{beyond}", fontsize=9)
    axes.set_xscale("symlog", linthresh=1)
    room = 0.12 * (min(high, 1) - low)
    axes.set_xlim(1.1 * low - room, 2.2 * high if high > 1 else high + room)
    if high > 1:
        axes.set_xticks(
            [tick for tick in _TICKS if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
        )
    else:
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(_percent_label)


def _percent_label(value: float, _: Any = None) -> str:
    return percent(value, 0) if value else "0"

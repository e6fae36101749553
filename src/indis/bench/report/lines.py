"""Figures of lines, one a method with its name at the end: error against NFE, loss against
iteration.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from indis.bench.report.charts import log_axis, panels, wide
from indis.bench.report.comparison import ABLATIONS, LOSS, METRICS, Results
from indis.bench.report.marks import ROW, look, name_ends
from indis.bench.report.tables import Row

_NAMES = {name.replace(" ", "-"): name for name in ABLATIONS}  # as a cell's file is called
_FRAME = 0.55  # inches of a row of panels that its title and labels take


def nfe_lines(results: Results) -> Figure:
    """Held-out loss, and the distance to the data where there is one, against the number of
    evaluations.
    """
    metrics = [LOSS, *([results.distance] if results.distance else [])]
    height = max(3.2, ROW * max(len(results.contenders(nfe)) for nfe in results.nfes) + _FRAME)
    figure, axes = panels(1, len(metrics), height)
    for panel, metric in zip(axes[0], metrics, strict=True):
        _nfe_panel(panel, results, metric, height - _FRAME)
    return figure


def _nfe_panel(axes: Axes, results: Results, metric: str, height: float) -> None:
    axes.set(xlabel="network evaluations (NFE)", ylabel=METRICS[metric], xticks=results.nfes)
    series: dict[str, dict[int, float]] = {}
    for nfe in results.nfes:
        for name, entry in results.contenders(nfe, metric).items():
            if entry.values[metric]:
                series.setdefault(name, {})[nfe] = entry.mean(metric)
    for name, values in series.items():
        axes.plot(list(values), list(values.values()), **look(name).line())
    if metric in results.teacher:
        axes.axhline(float(results.teacher[metric]), color="black", linestyle=":", linewidth=1.2)
    _finish(axes, {name: list(values.items())[-1] for name, values in series.items()}, height)


def _finish(
    axes: Axes, ends: dict[str, tuple[float, float]], height: float, ratio: float = 5
) -> None:
    """A log axis where values spread, then the names, which need to know it."""
    values = np.concatenate(
        [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    )
    if wide(values, ratio):
        log_axis(axes)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    name_ends(axes, ends, height)


# --- learning curves


@dataclass(frozen=True)
class Curve:
    """The loss on held-out pairs during a fit."""

    name: str
    afs: bool
    nfe: int
    iteration: Sequence[int]
    loss: np.ndarray


def learning_curves(rows: Sequence[Row]) -> Figure:
    """Held-out loss against iteration, one panel for each NFE; with AFS only where a method has no
    other curve.
    """
    curves = [_curve(row) for row in rows]
    without = {(curve.name, curve.nfe) for curve in curves if not curve.afs}
    shown = [curve for curve in curves if not curve.afs or (curve.name, curve.nfe) not in without]
    counts = sorted({curve.nfe for curve in shown})
    most = max(len({curve.name for curve in shown if curve.nfe == nfe}) for nfe in counts)
    columns, height = min(len(counts), 2), max(2.7, ROW * most + _FRAME)
    figure, axes = panels(-(-len(counts) // columns), columns, height)
    for panel in axes.flat[len(counts) :]:
        panel.set_axis_off()
    for panel, nfe in zip(axes.flat, counts, strict=False):
        _curve_panel(panel, [curve for curve in shown if curve.nfe == nfe], height - _FRAME)
        panel.set_title(f"{nfe} NFE", fontsize=10)
        panel.set_xlabel("iteration", fontsize=9)
    for row in axes:
        row[0].set_ylabel("held-out loss", fontsize=9)
    return figure


def _curve(row: Row) -> Curve:
    """A cell's label ends with its NFE, AFS and seed."""
    found = re.fullmatch(r"(.+?)-nfe\d+(-afs)?(-s\d+)?", str(row["label"]))
    name = _NAMES.get(found[1], found[1].replace("-+", " +")) if found else str(row["label"])
    loss = np.array(row["heldout"], dtype=float)
    return Curve(name, bool(found and found[2]), row["steps"], row["iteration"], loss)


def _curve_panel(axes: Axes, curves: Sequence[Curve], height: float) -> None:
    """All seeds of a method look the same; the name stands at the end of one of them."""
    for curve in curves:
        mark, some = look(curve.name), max(1, len(curve.loss) // 8)
        width = 1.4 if mark.main else 0.7
        axes.plot(
            curve.iteration,
            curve.loss,
            **mark.line(linewidth=width, markersize=3.5, markevery=some),
        )
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _finish(
        axes,
        {curve.name: (curve.iteration[-1], curve.loss[-1]) for curve in curves if len(curve.loss)},
        height,
    )

"""What figures share, and those of the toy study: rows to matplotlib figures, figures to PNG.

Figures are drawn on white whatever the colours of the page are, and no pyplot state is touched. One
inch is 100 CSS pixels; the PNG has more pixels than that, so it stays sharp on a dense screen and
on paper.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from indis.bench.report.tables import TOY_METRICS, Row, number, pretty, toy_freedoms, toy_series

INCH = 100  # CSS pixels
WIDTH = 9.6
DPI = 160
POINTS = 4000  # of a scatter panel; more only hide each other
# From Okabe and Ito's palette, told apart by colour-blind readers; markers tell the lines apart in
# grey.
POLICY_STYLE = {
    "uniform": ("#777777", "s", "uniform"),
    "global": ("#0072B2", "o", "global"),
    "instance": ("#D55E00", "D", "instance"),
    "oracle": ("#009E73", "^", "oracle (train)"),
}

# --- helpers


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The picture's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def data_uri(picture: bytes) -> str:
    """A PNG as an address that needs no network."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def style(axes: Axes) -> None:
    """Plain axes: two spines, a light grid behind the marks, small labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure as wide as the page with a grid of plain axes, ``height`` inches a row."""
    figure = Figure(figsize=(WIDTH, height * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for one in axes.flat:
        style(one)
    return figure, axes


def legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """One legend above all panels."""
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), 5),
        fontsize=9,
        frameon=False,
    )


def log_axis(axes: Axes, which: str = "y") -> None:
    """A log axis that has labels even when it spans less than a decade."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axis.get_view_interval()
    decades = np.log10(high / low) if low > 0 else 9.0
    axis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3.5 else (1,))
    )
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def wide(values: np.ndarray, ratio: float = 20) -> bool:
    """Do positive values spread so far that a linear axis would hide the small ones?"""
    return bool(values.size and values.min() > 0 and values.max() > ratio * values.min())


# --- toy


def toy_curves(cells: Sequence[Row]) -> Figure:
    """Every metric (rows) against N for every set of freedoms (columns), as in the paper's Fig.
    3.
    """
    freedoms = toy_freedoms(cells)
    figure, axes = panels(len(TOY_METRICS), len(freedoms), 2.3, sharex=True, sharey="row")
    for row, (metric, label) in zip(axes, TOY_METRICS.items(), strict=True):
        for panel, free in zip(row, freedoms, strict=True):
            toy_lines(panel, cells, free, metric)
        log_axis(row[0])
        row[0].set_ylabel(label, fontsize=10)
    for panel, free in zip(axes[0], freedoms, strict=True):
        panel.set_title(pretty(free), fontsize=10)
    for panel in axes[-1]:
        panel.set_xlabel("steps N", fontsize=9)
    legend(figure, policy_handles(cells, floor=True))
    return figure


def toy_lines(axes: Axes, cells: Sequence[Row], freedoms: str, metric: str) -> None:
    """One line a policy; the floor is what exact samples of the same size would get."""
    for policy, (colour, marker, _) in POLICY_STYLE.items():
        series = toy_series(cells, policy, freedoms, metric)
        if series:
            axes.plot(
                list(series),
                list(series.values()),
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.5,
            )
    floors = [float(c[f"{metric}_floor"]) for c in cells if f"{metric}_floor" in c]
    if floors:
        axes.axhline(float(np.mean(floors)), color="black", linestyle=":", linewidth=1.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def policy_handles(cells: Sequence[Row], *, floor: bool) -> list[Line2D]:
    """Legend entries of the policies that are there."""
    present = {c["policy"] for c in cells}
    shown = [look for policy, look in POLICY_STYLE.items() if policy in present]
    handles = [Line2D([], [], color=c, marker=m, markersize=5, label=name) for c, m, name in shown]
    dotted = Line2D([], [], color="black", linestyle=":", label="floor (exact samples)")
    return [*handles, dotted] if floor else handles


def toy_scatter(tensors: Mapping[str, np.ndarray]) -> Figure:
    """Euler-3 error over the starting point for every policy, a row for each set of freedoms
    (paper, Fig. 2).
    """
    rows = _scatter_rows(tensors)
    errors = np.concatenate([tensors[key] for row in rows for key in row.values()])
    positive = errors[errors > 0]
    norm = LogNorm(*np.quantile(positive, [0.02, 0.998])) if positive.size else None
    figure, axes = panels(len(rows), max(map(len, rows)), 2.25, sharex=True, sharey=True)
    for line, row in zip(axes, rows, strict=True):
        for panel in line[len(row) :]:
            panel.set_axis_off()
        for panel, (title, key) in zip(line, row.items(), strict=False):
            points = tensors["noise_train" if key.endswith(" train") else "noise_heldout"]
            marks = _scatter_panel(panel, title, points, tensors[key], norm)
        line[0].set_ylabel(f"{pretty(key.split()[2])}", fontsize=11)
    bar = figure.colorbar(marks, ax=axes, shrink=0.7, aspect=30)
    bar.set_label("squared Euler-3 error", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    # A few far points would shrink the rest.
    reach = float(np.quantile(np.abs(points), 0.999))
    axes[0, 0].set(xlim=(-reach, reach), ylim=(-reach, reach))
    return figure


def _scatter_rows(tensors: Mapping[str, np.ndarray]) -> list[dict[str, str]]:
    """Panel title to tensor name, one dict a row of panels; uniform has no freedoms and stands in
    every row.
    """
    keys = [key.split() for key in tensors if key.startswith("error ")]
    uniform = next((free for _, policy, free, _ in keys if policy == "uniform"), "")
    learned = {free for _, policy, free, _ in keys if policy != "uniform"}
    freedoms = sorted(learned or {uniform}, key=lambda name: name.count("+"))
    rows = []
    for free in freedoms:
        wanted = {"uniform": (uniform, "heldout"), "global": (free, "heldout")}
        wanted |= {"oracle": (free, "train"), "instance": (free, "heldout")}
        row = {
            f"{policy} ({split.replace('heldout', 'held out')})": f"error {policy} {f} {split}"
            for policy, (f, split) in wanted.items()
        }
        rows.append({title: key for title, key in row.items() if key in tensors})
    return rows


def _scatter_panel(
    axes: Axes, title: str, points: np.ndarray, errors: np.ndarray, norm: LogNorm | None
) -> Any:
    x, y = points[:POINTS].T
    floor = None if norm is None else norm.vmin
    colours = np.clip(errors[:POINTS], floor, None)
    marks = axes.scatter(x, y, c=colours, norm=norm, s=3, linewidths=0, cmap="inferno")
    axes.set_facecolor("#b9b9b9")
    axes.grid(False)
    axes.set_aspect("equal")
    axes.set_title(f"{title}\nmean {number(float(errors.mean()))}", fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    return marks

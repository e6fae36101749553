"""Figures of plans: how the discretizations of single instances spread around the global one
(paper, Fig. 7).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from indis.bench.report.charts import WIDTH, legend, log_axis, panels, style

_NAME = re.compile(r"(tau|dtau|gamma) (N=(\d+).*)")
_BINS = 80
_HEAT = "RdBu_r"
_WRITTEN = 26  # columns of a heat map that leave room for numbers
_FULL = 1.0  # per cent at full colour at least: where classes hardly differ, a map must look it


@dataclass
class Plan:
    """The plans of many instances for one number of steps, and the shared plans they are compared
    with.
    """

    tag: str
    steps: int
    instance: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # tau (count, steps + 1), dtau and gamma (count, steps)
    shared: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # "global" and "base", each by tau, dtau, gamma

    def nodes(self) -> np.ndarray | None:
        """The interior timesteps ``(count, steps - 1)``, if there are any."""
        tau = self.instance.get("tau")
        return None if tau is None or tau.shape[1] < 3 else tau[:, 1:-1]

    def line(self, name: str, row: str) -> np.ndarray | None:
        """Row ``tau``, ``dtau`` or ``gamma`` of a shared plan."""
        found = self.shared.get(name, {}).get(row)
        return None if found is None else np.array(found, dtype=float).reshape(-1)


def parse(tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> list[Plan]:
    """Plans by number of steps."""
    plans: dict[str, Plan] = {}
    for name, values in tensors.items():
        match = _NAME.fullmatch(name)
        if match:
            row, tag, steps = match.groups()
            plan = plans.setdefault(tag, Plan(tag, int(steps)))
            plan.instance[row] = np.asarray(values, dtype=float)
            plan.shared = {
                which: meta[f"{which} {tag}"]
                for which in ("global", "base")
                if f"{which} {tag}" in meta
            }
    if not plans:
        raise ValueError("no tensor is named like 'tau N=3'")
    return sorted(plans.values(), key=lambda plan: (plan.steps, plan.tag))


def is_noise_level(plans: Sequence[Plan]) -> bool:
    """Is time a noise level (sigma, best on a log axis) rather than a fraction of a path?"""
    tau = np.concatenate(
        [plan.instance["tau"].ravel() for plan in plans if "tau" in plan.instance] or [np.zeros(1)]
    )
    return bool(tau.min() > 0 and tau.max() > 50 * tau.min() and tau.max() > 1)


# --- timesteps


def timesteps(plans: Sequence[Plan]) -> Figure | None:
    """The distribution of every interior timestep, one panel for each number of steps."""
    shown = [plan for plan in plans if plan.nodes() is not None]
    if not shown:
        return None
    log = is_noise_level(plans)
    figure, axes = panels(len(shown), 1, 1.5, sharex=True)
    bins = _bins(shown, log)
    for axis, plan in zip(axes[:, 0], shown, strict=True):
        _histograms(axis, plan, bins)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.set_ylabel(plan.tag.replace("=", " = "), fontsize=10)
    if log:
        axes[-1, 0].set_xlim(bins[0], bins[-1])
        log_axis(axes[-1, 0], "x")
    axes[-1, 0].set_xlabel(
        "noise level σ of the interior timesteps τ" if log else "interior timesteps τ", fontsize=9
    )
    legend(figure, _handles(shown))
    return figure


def _bins(plans: Sequence[Plan], log: bool) -> np.ndarray:
    """Common bin edges over all interior nodes, of the shared plans too, with a margin for lines at
    the rim.
    """
    parts = [plan.nodes().ravel() for plan in plans]  # type: ignore[union-attr]
    lines = [plan.line(name, "tau") for plan in plans for name in ("global", "base")]
    values = np.concatenate(parts + [line[1:-1] for line in lines if line is not None])
    low, high = np.quantile(np.log(values) if log else values, [0, 1])
    margin = 0.04 * (high - low) + 1e-3
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    return np.exp(edges) if log else edges


def _histograms(axes: Axes, plan: Plan, bins: np.ndarray) -> None:
    """Each node's histogram at the same height, so that narrow ones do not flatten the others."""
    nodes = plan.nodes()
    assert nodes is not None
    for k, values in enumerate(nodes.T):
        counts, _ = np.histogram(values, bins)
        colour = _colour(k, nodes.shape[1])
        axes.stairs(counts / max(counts.max(), 1), bins, fill=True, color=colour, alpha=0.45)
        axes.stairs(counts / max(counts.max(), 1), bins, color=colour, linewidth=1)
    for name, look in (("base", ":"), ("global", "--")):
        line = plan.line(name, "tau")
        for value in [] if line is None else line[1:-1]:
            axes.axvline(
                value,
                color="black" if name == "global" else "#777777",
                linestyle=look,
                linewidth=1.4,
            )
    axes.set_ylim(0, 1.12)


def _colour(index: int, count: int) -> Any:
    return colormaps["viridis"](0.05 + 0.85 * index / max(count - 1, 1))


def _handles(plans: Sequence[Plan]) -> list[Any]:
    handles: list[Any] = [
        Patch(
            color=_colour(0, 1), alpha=0.5, label="instances, one colour a node, first step darkest"
        )
    ]
    names = {name for plan in plans for name in plan.shared}
    if "global" in names:
        handles.append(Line2D([], [], color="black", linestyle="--", label="global plan"))
    if "base" in names:
        handles.append(Line2D([], [], color="#777777", linestyle=":", label="base grid"))
    return handles


# --- shifts and scales


def violins(plans: Sequence[Plan]) -> Figure | None:
    """The distributions of dtau and gamma at every step; a bar marks the global plan."""
    relative = is_noise_level(plans)
    rows = {"dtau": "Δτ / τ" if relative else "Δτ", "gamma": "γ"}
    rows = {
        row: label for row, label in rows.items() if any(row in plan.instance for plan in plans)
    }
    shown = [plan for plan in plans if any(row in plan.instance for row in rows)]
    if not rows:
        return None
    figure, axes = panels(
        len(rows), len(shown), 2.1, sharey="row", width_ratios=[plan.steps + 1 for plan in shown]
    )
    for line, (row, label) in zip(axes, rows.items(), strict=True):
        for axis, plan in zip(line, shown, strict=True):
            _violin(axis, plan, row, relative)
        line[0].set_ylabel(label, fontsize=10)
    for top, bottom, plan in zip(axes[0], axes[-1], shown, strict=True):
        top.set_title(plan.tag.replace("=", " = "), fontsize=10)
        bottom.set_xlabel("step", fontsize=9)
    legend(figure, _violin_handles(shown))
    return figure


def _violin(axes: Axes, plan: Plan, row: str, relative: bool) -> None:
    axes.axhline(1.0 if row == "gamma" else 0.0, color="#777777", linestyle=":", linewidth=1.2)
    axes.set_xticks(range(1, plan.steps + 1))
    axes.set_xlim(0.4, plan.steps + 0.6)
    axes.grid(False, axis="x")
    values = plan.instance.get(row)
    if values is None:
        return
    relative = relative and row == "dtau" and "tau" in plan.instance
    if relative:
        values = values / plan.instance["tau"][:, :-1]
    parts = axes.violinplot(
        list(values.T), positions=range(1, values.shape[1] + 1), widths=0.8, showextrema=False
    )
    bodies: Any = parts["bodies"]
    for k, body in enumerate(bodies):
        body.set(facecolor=_colour(k, values.shape[1]), edgecolor="black", linewidth=0.5, alpha=0.7)
    line, tau = plan.line("global", row), plan.line("global", "tau")
    if line is not None and not (relative and tau is None):
        line = line / tau[:-1] if relative and tau is not None else line
        steps = np.arange(1, len(line) + 1)
        axes.hlines(line, steps - 0.35, steps + 0.35, color="black", linestyle="--", linewidth=1.4)


def _violin_handles(plans: Sequence[Plan]) -> list[Any]:
    handles: list[Any] = [Patch(color=_colour(0, 1), alpha=0.6, label="instances")]
    if any(plan.line("global", row) is not None for plan in plans for row in ("dtau", "gamma")):
        handles.append(Line2D([], [], color="black", linestyle="--", label="global plan"))
    handles.append(Line2D([], [], color="#777777", linestyle=":", label="no shift, no scale"))
    return handles


# --- classes


def class_map(plans: Sequence[Plan], labels: np.ndarray, names: Sequence[str]) -> Figure:
    """Each class's mean gamma and interior tau as a change from the mean over all instances."""
    rows = {"gamma": "mean γ", "tau": "mean τ"}
    rows = {
        row: label for row, label in rows.items() if any(row in plan.instance for plan in plans)
    }
    height = (0.24 * len(names) + 0.75) * len(rows) + 0.3
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    widths = [plan.steps for plan in plans]
    axes = figure.subplots(len(rows), len(plans), squeeze=False, width_ratios=widths)
    for line, (row, label) in zip(axes, rows.items(), strict=True):
        maps = [_deviations(plan, row, labels) for plan in plans]
        limit = max(_FULL, *(float(np.abs(m).max(initial=0)) for m in maps))
        for axis, plan, values in zip(line, plans, maps, strict=True):
            axis.set_title(plan.tag.replace("=", " = "), fontsize=9)
            _heat(
                axis,
                values,
                limit,
                first=1 if row == "gamma" else 2,
                written=sum(widths) <= _WRITTEN,
            )
        line[0].set_yticks(range(len(names)), names, fontsize=9)
        line[0].set_ylabel(label, fontsize=10)
        if sum(widths) > _WRITTEN:
            figure.colorbar(ScalarMappable(Normalize(-limit, limit), _HEAT), ax=line, label="%")
    return figure


def _deviations(plan: Plan, row: str, labels: np.ndarray) -> np.ndarray:
    """Percent, ``(classes, columns)``; zero columns where the plan has no such row."""
    values = plan.instance.get(row) if row == "gamma" else plan.nodes()
    classes = np.unique(labels)
    if values is None:
        return np.zeros((len(classes), 0))
    means = np.stack([values[labels == label].mean(0) for label in classes])
    return 100 * (means / values.mean(0) - 1)


def _heat(axes: Axes, values: np.ndarray, limit: float, *, first: int, written: bool) -> None:
    """Colours, with the number in each cell where there is room for it."""
    style(axes)
    axes.set_yticks([])
    axes.grid(False)
    if not values.shape[1]:
        axes.set_axis_off()
        return
    values = np.round(values, 1) + 0.0  # no minus zero
    axes.imshow(values, cmap=_HEAT, vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(values.shape[1]), [str(first + k) for k in range(values.shape[1])])
    for (row, column), value in np.ndenumerate(values) if written else ():
        colour = "white" if abs(value) > 0.65 * limit else "black"
        text = f"{value:+.1f}".replace("-", "\u2212")
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)

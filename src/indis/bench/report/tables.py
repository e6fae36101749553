"""Tables of the report, as a page or markdown prints them: how numbers read, and the toy study's
rows as cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]

MISSING = "–"
POLICIES = ("uniform", "global", "instance", "oracle")
TOY_METRICS = {"squared_distance": "squared distance", "kl": "KL", "w1": "W1"}


@dataclass(frozen=True)
class Cell:
    """One cell of a table; ``best`` is set in bold, a row whose first cell is ``soft`` steps
    back.
    """

    text: str
    best: bool = False
    soft: bool = False


@dataclass(frozen=True)
class Group:
    """Rows under a common heading; the first cell of a row is its name."""

    title: str
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Table:
    """A table as the template prints it; cells of ``words`` are set left and wrapped."""

    head: list[str]
    groups: list[Group]
    caption: str = ""
    words: bool = False
    kind: str = field(default="table", init=False)


# --- format


def number(value: float | None) -> str:
    """Three significant digits, without an exponent where a reader does not need one."""
    if value is None or math.isnan(value):
        return MISSING
    if 1000 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:#.3g}".removesuffix(".")


def spread(values: Sequence[float]) -> str:
    """The mean, and the sample standard deviation when there are several values, to its second
    digit.
    """
    mean = average(values)
    deviation = (
        math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        if len(values) > 1
        else 0.0
    )
    if deviation <= 1e-12 * abs(mean):  # of equal values it is what the mean was rounded by
        return number(mean)
    digits = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A relative change with its sign; the minus and the space do not break over a line."""
    if fraction is None or math.isnan(fraction):
        return MISSING
    return f"{100 * fraction:+.{digits}f}\u00a0%".replace("-", "\u2212")


def pretty(freedoms: str) -> str:
    """``tau+dtau`` in Greek."""
    return freedoms.replace("dtau", "Δτ").replace("tau", "τ").replace("gamma", "γ")


def average(values: Iterable[float]) -> float:
    """The mean; NaN of nothing."""
    found = list(values)
    return sum(found) / len(found) if found else math.nan


def markdown(table: Table) -> str:
    """GitHub's markdown, which has no groups: a table each under a bold line, soft rows named in
    italics.
    """
    parts = [_markdown_group(table.head, group) for group in table.groups]
    return "\n\n".join(part for part in (*parts, table.caption) if part)


def _markdown_group(head: Sequence[str], group: Group) -> str:
    rows = [[_marked(cell) for cell in row] for row in group.rows]
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{group.title}**\n\n{text}" if group.title else text


def _marked(cell: Cell) -> str:
    mark = "**" * cell.best + "*" * cell.soft
    return mark + cell.text.replace("|", "\\|") + mark[::-1]


# --- toy


def toy_freedoms(cells: Sequence[Row]) -> list[str]:
    """The sets of freedoms that were learned, the smallest first."""
    names = {c["freedoms"]: None for c in cells if c["policy"] != "uniform"} or {
        c["freedoms"]: None for c in cells
    }
    return sorted(names, key=lambda name: name.count("+"))


def toy_series(
    cells: Sequence[Row], policy: str, freedoms: str, metric: str, split: str | None = None
) -> dict[int, float]:
    """A metric by number of steps. The oracle is known on its own (training) priors, the others are
    judged held out.
    """
    split = split or ("train" if policy == "oracle" else "heldout")
    found: dict[int, list[float]] = {}
    for cell in cells:
        # Uniform steps have no freedoms, so they are stored once and compared with every set.
        same = cell["policy"] == policy and (policy == "uniform" or cell["freedoms"] == freedoms)
        if same and cell["split"] == split:
            found.setdefault(cell["steps"], []).append(float(cell[metric]))
    return {steps: average(found[steps]) for steps in sorted(found)}


def reductions(cells: Sequence[Row], freedoms: str, metric: str) -> dict[int, float]:
    """Relative change of a metric from the global plan to the instance plans on held-out priors, by
    number of steps.
    """
    before, after = (
        toy_series(cells, policy, freedoms, metric) for policy in ("global", "instance")
    )
    return {n: after[n] / before[n] - 1 for n in before if n in after and before[n]}


def mean_reduction(
    cells: Sequence[Row], freedoms: str, metric: str, last: int | None = None
) -> float:
    """The mean of :func:`reductions` over all numbers of steps, or over 3 to ``last``."""
    found = reductions(cells, freedoms, metric)
    return average(v for n, v in found.items() if last is None or 3 <= n <= last)


def oracle_gain(cells: Sequence[Row], freedoms: str) -> tuple[float, float, float]:
    """Squared distance of three Euler steps on the training priors: global plan, oracle, relative
    change.
    """
    before, after = (
        toy_series(cells, policy, freedoms, "squared_distance", "train").get(3, math.nan)
        for policy in ("global", "oracle")
    )
    return before, after, after / before - 1 if before else math.nan


def toy_table(cells: Sequence[Row], freedoms: str) -> Table:
    """Every policy and metric by number of steps, for one set of freedoms."""
    steps = sorted({c["steps"] for c in cells})
    groups = [
        Group(title, _toy_rows(cells, freedoms, metric, steps))
        for metric, title in TOY_METRICS.items()
    ]
    caption = (
        f"Freedoms {pretty(freedoms)}. Held-out priors; the oracle on the training priors, where "
        "its plans were made."
    )
    return Table(["", *(f"N = {n}" for n in steps), "mean"], groups, caption)


def _toy_rows(
    cells: Sequence[Row], freedoms: str, metric: str, steps: Sequence[int]
) -> list[list[Cell]]:
    rows = []
    for policy in POLICIES:
        series = toy_series(cells, policy, freedoms, metric)
        name = "oracle (train)" if policy == "oracle" else policy
        values = [number(series.get(n)) for n in steps] + [number(average(series.values()))]
        rows.append([Cell(text) for text in (name, *values)])
        if policy == "instance":
            change = reductions(cells, freedoms, metric)
            shown = [percent(change.get(n)) for n in steps] + [percent(average(change.values()))]
            rows.append([Cell(text) for text in ("instance vs global", *shown)])
    return rows


def paper_table(cells: Sequence[Row]) -> Table:
    """The paper's reductions and ours, one row each."""
    head = [
        "",
        "Euler-3, global",
        "oracle",
        "change",
        "KL, NFE 3–6",
        "W1, NFE 3–6",
        "KL, all NFE",
        "W1, all NFE",
    ]
    fixed = ("0.0245", "0.0122", -0.502, -0.4567, -0.2954, -0.2586, -0.2185)
    rows = [["paper", *fixed[:2], percent(fixed[2]), *(percent(v, 2) for v in fixed[3:])]]
    for freedoms in toy_freedoms(cells):
        before, after, gain = oracle_gain(cells, freedoms)
        ours = [
            percent(mean_reduction(cells, freedoms, metric, last), 2)
            for last in (6, None)
            for metric in ("kl", "w1")
        ]
        rows.append(
            [f"here, {pretty(freedoms)}", number(before), number(after), percent(gain), *ours]
        )
    caption = (
        "Global against oracle: squared distance on the training priors. KL and W1: instance "
        "against global on held-out priors, mean over N of the change at each N. Absolute values "
        "depend on the tree; compare the changes."
    )
    return Table(head, [Group("", [[Cell(text) for text in row] for row in rows])], caption)


def paper_sentence(cells: Sequence[Row]) -> str:
    """The paper's numbers beside ours with the most freedoms."""
    freedoms = toy_freedoms(cells)[-1]
    steps = ", ".join(str(n) for n in sorted({c["steps"] for c in cells}))
    before, after, gain = oracle_gain(cells, freedoms)
    kl, w1, kl_all, w1_all = (
        percent(mean_reduction(cells, freedoms, metric, last), 2)
        for last in (6, None)
        for metric in ("kl", "w1")
    )
    return (
        "In the paper three Euler steps go from 0.0245 (global) to 0.0122 (oracle), "
        f"{percent(-0.502)}; here, with {pretty(freedoms)}, from {number(before)} to "
        f"{number(after)}, {percent(gain)}. Instance against global, the paper reports KL "
        f"{percent(-0.4567, 2)} and W1 {percent(-0.2954, 2)} averaged over NFE 3–6, and "
        f"{percent(-0.2586, 2)} and {percent(-0.2185, 2)} over all NFE; here, on held-out "
        f"priors, KL {kl} and W1 {w1} "
        f"over NFE 3–6, and {kl_all} and {w1_all} over all N that were run ({steps})."
    )

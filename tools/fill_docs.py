"""The tables of README.md and docs/, filled from results/: no number in them is typed by hand.

A page marks where a table stands, and this puts it there (``make docs``; a test tells if a page is
behind):

    <!-- table: fashion -->
    ...
    <!-- end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from indis.bench.report import comparison
from indis.bench.report.comparison import Results
from indis.bench.report.results_table import against_nfe, results_table
from indis.bench.report.tables import (
    Cell,
    Group,
    Table,
    markdown,
    number,
    paper_table,
    percent,
    spread,
    toy_freedoms,
    toy_table,
)

COMPARED = {"toy": "compare-toy.json", "fashion": "fashion.json"}
ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """A page with its tables made anew.

    Raises:
        KeyError: if it asks for a table that there is not.
    """
    return BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def _results(name: str) -> Any:
    return json.loads((ROOT / "results" / name).read_text())


def _compared(name: str) -> Results:
    (results,) = comparison.read(_results(name))
    return results


def _full(name: str) -> str:
    return markdown(results_table(_compared(name)))


def _five() -> str:
    """Five rows for the README: none chosen by the numbers shown, but the grid."""
    entries = [e for e in _compared("fashion.json").entries if not e.afs]
    rows = {
        "best heuristic grid": None,
        "ld3": "ld3",
        "god": "god",
        "indis": "indis",
        "local": "local",
    }
    cells = []
    for label, name in rows.items():
        row = [label]
        for nfe in (3, 5, 7):
            here = [e for e in entries if e.nfe == nfe]
            own = [e for e in here if (e.is_grid if name is None else e.name == name)]
            row.append(spread(min(own, key=lambda e: e.loss).values[comparison.LOSS]))
        cells.append(row)
    return _plain(["held-out distance", "3 calls", "5 calls", "7 calls"], cells)


def _full_at(name: str, nfe: int) -> str:
    """All columns, ablations included, at one number of evaluations."""
    results = _compared(name)
    return markdown(results_table(replace(results, entries=results.at(nfe))))


def _curve(name: str, metric: str = comparison.LOSS) -> str:
    return markdown(against_nfe(_compared(name), metric))


def _toy_study() -> str:
    cells = _results("toy.json")["cells"]
    parts = [toy_table(cells, freedoms) for freedoms in toy_freedoms(cells)]
    return "\n\n".join(f"#### {part.caption}\n\n{markdown(_uncaptioned(part))}" for part in parts)


def _uncaptioned(table: Table) -> Table:
    return Table(table.head, table.groups)


def _paper() -> str:
    return markdown(paper_table(_results("toy.json")["cells"]))


def _every_n() -> str:
    """One network for all against one each: the former at every fixed N, the latter as the
    comparison has them.
    """
    cells = []
    for row in _budget_rows("fixed"):
        model, nfe = row["model"], round(row["nfe"])
        own = _compared(COMPARED[model]).best(nfe).get("indis")
        if own is not None:
            ratio = row["heldout_loss"] / own.loss
            cells.append(
                [model, str(nfe), number(row["heldout_loss"]), number(own.loss), f"{ratio:.2f}"]
            )
    return _plain(["model", "N", "one φ for all", "a φ of its own", "ratio"], cells)


def _budget_rows(kind: str) -> list[Mapping[str, Any]]:
    return [row for row in _results("budget.json")["rows"] if row["kind"] == kind]


def _budget() -> str:
    fixed = {(r["model"], r["nfe"]): r["heldout_loss"] for r in _budget_rows("fixed")}
    cells = []
    for row in _budget_rows("budget"):
        same, loss = fixed[row["model"], round(row["asked"])], row["heldout_loss"]
        cells.append(
            [
                row["model"],
                f"{row['nfe']:.2f}",
                number(same),
                number(loss),
                percent(loss / same - 1, 0),
            ]
        )
    return _plain(["model", "mean NFE", "same N for all", "N for each", "change"], cells)


def _sight() -> str:
    rows: Sequence[Mapping[str, Any]] = _results("sight.json")["rows"]
    return _plain(
        ["what is seen, beside the class", "share explained"],
        [[r["view"], f"{100 * r['explained']:.0f} %"] for r in rows],
    )


def _overhead() -> str:
    rows: Sequence[Mapping[str, Any]] = _results("overhead.json")["rows"]
    shares = ("overhead", "low", "high")
    cells = [[r["artifact"], str(r["nfe"]), *(percent(r[name]) for name in shares)] for r in rows]
    return _plain(["sampler", "NFE", "median", "lower quartile", "upper quartile"], cells)


def _longer() -> str:
    """Fits of more iterations beside those of the comparison, same seed; the distance to the data
    is FD or KL.
    """
    cells = []
    for model, file in COMPARED.items():
        usual = {_place(row): row for row in _results(file)["rows"]}
        for row in _learned(f"longer-{model}.json"):
            before, metric = (
                usual[_place(row)],
                next(m for m in comparison.DISTANCES if row[m] is not None),
            )
            pairs = [
                f"{number(before[key])} → {number(row[key])}" for key in (comparison.LOSS, metric)
            ]
            iterations = f"{before['iterations']} → {row['iterations']}"
            cells.append([f"{model}, {row['nfe']} NFE", _called(row), iterations, *pairs])
    return _plain(["", "", "iterations", "held-out loss", "FD or KL"], cells)


def _relative() -> str:
    """Mean loss of fits without and with a relative loss, over the seeds that both have."""
    without, usual = _results("absolute-toy.json")["rows"], _results(COMPARED["toy"])["rows"]
    after = {_place(row): row[comparison.LOSS] for row in usual}
    pairs: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for row in without:
        if _place(row) in after:
            pairs.setdefault(_called(row), {}).setdefault(row["nfe"], []).append(
                (row[comparison.LOSS], after[_place(row)])
            )
    counts = sorted({nfe for each in pairs.values() for nfe in each})
    cells = [[name, *(_change(pairs[name].get(nfe)) for nfe in counts)] for name in pairs]
    return _plain(["", *(f"{nfe} NFE" for nfe in counts)], cells)


def _change(pairs: Sequence[tuple[float, float]] | None) -> str:
    """Means before and after, as the page writes them."""
    if not pairs:
        return "–"
    before, after = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return f"{number(before)} → {number(after)}"


def _losses() -> str:
    """The same fits with another loss, from the same seed."""
    names = ("perceptual", "teacher_mse", "fd")
    rows: Sequence[Mapping[str, Any]] = _results("losses-fashion.json")["rows"]
    cells = [[r["method"], r["loss"], *(number(r[name]) for name in names)] for r in rows]
    return _plain(["", "loss", *(comparison.METRICS[name] for name in names)], cells)


def _judges() -> str:
    """What ships, judged by networks that no fit has seen."""
    names = ("perceptual", "perceptual_other", "lpips", "teacher_mse", "fd_other")
    rows: Sequence[Mapping[str, Any]] = _results("judges-fashion.json")["rows"]
    cells = [
        [r["artifact"], str(r["nfe"]), *(number(r[name]) if name in r else "–" for name in names)]
        for r in rows
    ]
    head = [
        "sampler",
        "NFE",
        "held-out loss",
        "in other features",
        "LPIPS",
        "MSE",
        "FD in other features",
    ]
    return _plain(head, cells)


def _galaxies_curves() -> str:
    """The lines of the learning curves, and how far below the plan for all each ends."""
    cells = []
    rows: Sequence[Mapping[str, Any]] = _results("galaxies/curves-nfe3.json")["rows"]
    shared = next(row["loss"] for row in rows if row["kind"] == "god")
    for row in rows:
        before = row.get("shared_loss", shared)
        iterations = str(row["iteration"][-1]) if row["iteration"] else "–"
        train = number(row["train_loss"]) if "train_loss" in row else "–"
        cells.append(
            [
                row["kind"] + (f", rate {row['rate']:g}" if row.get("rate") else ""),
                f"{number(row['loss'])} ± {number(row['error'])}",
                percent(row["loss"] / before - 1, 0),
                train,
                f"{number(row['least'])} to {number(row['largest'])}",
                str(row["samples"]),
                iterations,
                f"{row['seconds']:.0f}" if row["iteration"] else "–",
            ]
        )
    head = ["", "held out ± standard error", "against god", "train", "easiest to hardest"]
    return _plain([*head, "samples", "iterations", "seconds"], cells)


def _galaxies_grids() -> str:
    """Every grid at each number of evaluations."""
    rows: Sequence[Mapping[str, Any]] = _results("galaxies/compare.json")["rows"]
    found = {(row["method"], row["nfe"]): row["heldout_loss"] for row in rows}
    counts = sorted({nfe for _, nfe in found})
    names = sorted({name for name, _ in found}, key=lambda name: found[name, counts[0]])
    cells = [[name, *(number(found.get((name, nfe))) for nfe in counts)] for name in names]
    return _plain(["", *(f"{nfe} NFE" for nfe in counts)], cells)


def _learned(file: str) -> list[Mapping[str, Any]]:
    rows = [row for row in _results(file)["rows"] if row["seed"] is not None]
    return sorted(rows, key=lambda row: (row["nfe"], row["heldout_loss"]))


def _called(row: Mapping[str, Any]) -> str:
    return str(row["method"]) + (", AFS" if row["afs"] else "")


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("method", "nfe", "afs", "seed"))


def _plain(head: list[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown(Table(head, [Group("", [[Cell(text) for text in row] for row in rows])]))


def _quartiles(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def _efficiency_loop() -> str:
    """A row for each size and solver, a column for each kind of plan."""
    cases: dict[tuple[str, ...], list[str]] = {}
    for row in _results("efficiency.json")["loop"]:
        size = f"({', '.join(map(str, row['shape']))}) × {row['batch']}"
        against = row["scheduler"].removesuffix("Scheduler")
        case = (size, f"`{row['solver']}`", against, f"{row['goal']:g}")
        cases.setdefault(case, []).append(_quartiles(row))
    head = ["samples", "solver", "against", "goal", "shared", "per sample", "φ"]
    return _plain(head, [[*case, *ratios] for case, ratios in cases.items()])


def _efficiency_fit() -> str:
    rows = _results("efficiency.json")["fit"]
    cells = [
        [str(r["steps"]), f"{r['ours']:.1f}", f"{r['theirs']:.1f}", _quartiles(r), f"{r['goal']:g}"]
        for r in rows
    ]
    return _plain(["steps", "samples/s", "plain loop, samples/s", "ratio", "goal"], cells)


def _efficiency_memory() -> str:
    rows = _results("efficiency.json")["memory"]
    cells = [
        ["yes" if r["recompute"] else "no", *(f"{r[k]:.0f} MB" for k in ("low_mb", "high_mb"))]
        + [f"{r['ratio']:.2f}"]
        for r in rows
    ]
    return _plain(["recompute", "N = 3", "N = 7", "ratio"], cells)


def _efficiency_startup() -> str:
    rows = _results("efficiency.json")["startup"]
    return _plain(["what", "seconds"], [[r["what"], f"{r['seconds']:.2f}"] for r in rows])


TABLES: dict[str, Callable[[], str]] = {
    "efficiency-loop": _efficiency_loop,
    "efficiency-fit": _efficiency_fit,
    "efficiency-memory": _efficiency_memory,
    "efficiency-startup": _efficiency_startup,
    "fashion": lambda: _full("fashion.json"),
    "fashion-curve": lambda: _curve("fashion.json"),
    "fashion-curve-fd": lambda: _curve("fashion.json", "fd"),
    "fashion-five": _five,
    "toy": lambda: _curve("compare-toy.json"),
    "toy-kl": lambda: _curve("compare-toy.json", "kl"),
    "toy-w1": lambda: _curve("compare-toy.json", "w1"),
    "toy-fits": lambda: _full_at("compare-toy.json", 5),
    "toy-fits-3": lambda: _full_at("compare-toy.json", 3),
    "toy-fits-10": lambda: _full_at("compare-toy.json", 10),
    "toy-study": _toy_study,
    "paper": _paper,
    "every-n": _every_n,
    "budget": _budget,
    "sight": _sight,
    "overhead": _overhead,
    "longer": _longer,
    "relative": _relative,
    "losses": _losses,
    "judges": _judges,
    "galaxies-curves": _galaxies_curves,
    "galaxies-grids": _galaxies_grids,
}


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))

"""The tables of README.md and docs/, filled from results/: no number in them is typed by hand.

A page marks where a table stands, and this puts it there (``make docs``; a test tells if a page is behind):

    <!-- table: fashion -->
    ...
    <!-- end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from indis.report import comparison
from indis.report.comparison import Results
from indis.report.results_table import against_nfe, results_table
from indis.report.tables import Cell, Group, Table, markdown, number, paper_table, percent, toy_freedoms, toy_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
SHORT = (
    "god",
    "god +weights",
    "indis",
    "look",
    "dyweight",
    "gits",
    "ld3",
    "amed-plugin",
    "epd-plugin",
    comparison.BEST_GRID,
)


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


def _short(name: str) -> str:
    """The rows that a newcomer wants to see first: what comes nearest, and the best grid."""
    results = _compared(name)
    return markdown(results_table(results.only(SHORT)))


def _curve(name: str) -> str:
    return markdown(against_nfe(_compared(name), comparison.LOSS))


def _toy_study() -> str:
    cells = _results("toy.json")["cells"]
    parts = [toy_table(cells, freedoms) for freedoms in toy_freedoms(cells)]
    return "\n\n".join(f"#### {part.caption}\n\n{markdown(_uncaptioned(part))}" for part in parts)


def _uncaptioned(table: Table) -> Table:
    return Table(table.head, table.groups)


def _paper() -> str:
    return markdown(paper_table(_results("toy.json")["cells"]))


def _every_n() -> str:
    rows: Sequence[Mapping[str, Any]] = _results("every-n.json")["rows"]
    losses = {(r["model"], r["nfe"], r["method"]): r["heldout_loss"] for r in rows}
    cells = []
    for (model, nfe, method), loss in losses.items():
        if method == "every-n":
            own = losses[model, nfe, "indis"]
            cells.append([model, str(nfe), number(loss), number(own), f"{loss / own:.2f}"])
    return _plain(["model", "N", "one φ for all", "a φ of its own", "ratio"], cells)


def _budget() -> str:
    rows: Sequence[Mapping[str, Any]] = _results("budget.json")["rows"]
    fixed = {(r["model"], r["nfe"]): r["heldout_loss"] for r in rows if r["kind"] == "fixed"}
    cells = []
    for row in rows:
        if row["kind"] == "budget":
            same = fixed[row["model"], round(row["asked"])]
            loss = row["heldout_loss"]
            cells.append([row["model"], f"{row['nfe']:.2f}", number(same), number(loss), percent(loss / same - 1, 0)])
    return _plain(["model", "mean NFE", "same N for all", "N for each", "change"], cells)


def _sight() -> str:
    rows: Sequence[Mapping[str, Any]] = _results("sight.json")["rows"]
    return _plain(
        ["what is seen, beside the class", "share explained"],
        [[r["view"], f"{100 * r['explained']:.0f} %"] for r in rows],
    )


def _plain(head: list[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown(Table(head, [Group("", [[Cell(text) for text in row] for row in rows])]))


TABLES: dict[str, Callable[[], str]] = {
    "fashion": lambda: _full("fashion.json"),
    "fashion-short": lambda: _short("fashion.json"),
    "toy": lambda: _full("compare-toy-quick.json"),
    "toy-short": lambda: _curve("compare-toy-quick.json"),
    "toy-study": _toy_study,
    "paper": _paper,
    "every-n": _every_n,
    "budget": _budget,
    "sight": _sight,
}


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))

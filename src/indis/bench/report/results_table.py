"""The table of a comparison, for the page and as markdown for a README; draws nothing and needs no
extra package.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from indis.bench.report import comparison
from indis.bench.report.comparison import BEST_GRID, METRICS, Entry, Results
from indis.bench.report.tables import (
    MISSING,
    Cell,
    Group,
    Row,
    Table,
    average,
    markdown,
    number,
    spread,
)
from indis.storage import load_json

FILE = "results.json"
NOT_FID = (
    "FD-Fashion is a Fréchet distance on the features of a small Fashion-MNIST classifier; it is "
    "not FID."
)


def results_table(results: Results) -> Table:
    """Grouped by NFE; a column is there only if it says something."""
    metrics = shown_metrics(results.entries)
    facts = [name for name, there in _facts(results.entries).items() if there]
    head = ["", *(METRICS[m] for m in metrics), *facts]
    groups = [Group(f"{nfe} NFE", _rows(results.at(nfe), metrics, facts)) for nfe in results.nfes]
    return Table(head, groups, caption(results))


def against_nfe(results: Results, metric: str) -> Table:
    """One metric of every method, and of the best grid, against the number of evaluations; the best
    ones first.
    """
    at = {nfe: results.contenders(nfe, metric) for nfe in results.nfes}
    names = sorted(
        {name for entries in at.values() for name in entries},
        key=lambda name: _rank(at, name, metric),
    )
    best = {
        nfe: min(found, default=None) for nfe, found in ((n, _scores(at[n], metric)) for n in at)
    }
    rows = [
        [Cell(_named(at, name, results), soft=name == BEST_GRID)]
        + [
            Cell(
                _score(at[n].get(name), metric),
                name in at[n] and at[n][name].mean(metric) == best[n],
            )
            for n in at
        ]
        for name in names
    ]
    caption = results.best_of if results.choosy else ""
    return Table([METRICS[metric], *(f"{n} NFE" for n in at)], [Group("", rows)], caption)


def _scores(entries: Mapping[str, Entry], metric: str) -> list[float]:
    return [e.mean(metric) for e in entries.values() if e.values[metric]]


def _score(entry: Entry | None, metric: str) -> str:
    return spread(entry.values[metric]) if entry is not None and entry.values[metric] else MISSING


def _rank(at: Mapping[int, Mapping[str, Entry]], name: str, metric: str) -> float:
    """The mean over NFE of the logarithm against the best entry there, so that no NFE outweighs
    another.
    """
    found = [
        (entries[name].mean(metric), min(_scores(entries, metric)))
        for entries in at.values()
        if name in entries
    ]
    return average(math.log(value / best) for value, best in found if value > 0 and best > 0)


def _named(at: Mapping[int, Mapping[str, Entry]], name: str, results: Results) -> str:
    """Its name, and whether its numbers are with an analytic first step, which some need and others
    do better with.
    """
    first = [entries[name].afs for entries in at.values() if name in entries]
    if name == BEST_GRID or not any(first):
        return name
    chosen = any(
        entry.name == name and not entry.afs and at[entry.nfe][name].afs
        for entry in results.entries
    )
    return f"{name}, AFS" if all(first) else f"{name}, AFS where {'better' if chosen else 'needed'}"


def shown_metrics(entries: Sequence[Entry]) -> list[str]:
    """Metrics that some entry has; the perceptual distance only where it is not the held-out loss
    itself.
    """
    found = [m for m in METRICS if any(e.values[m] for e in entries)]
    same = all(e.values["perceptual"] in ([], e.values[comparison.LOSS]) for e in entries)
    return [m for m in found if not (same and m == "perceptual")]


def _facts(entries: Sequence[Entry]) -> dict[str, bool]:
    """Columns that are not a score, and whether they are worth one."""
    return {
        "calls": any(e.row.get("calls") not in (None, e.nfe) for e in entries),
        "parameters": any(e.row.get("parameters") for e in entries),
        "fit, s": any(e.values["fit_seconds"] for e in entries),
        "seeds": True,
    }


def _rows(group: Sequence[Entry], metrics: Sequence[str], facts: Sequence[str]) -> list[list[Cell]]:
    best = {m: min((e.mean(m) for e in group if e.values[m]), default=None) for m in metrics}
    rows = []
    for e in group:
        scores = [
            Cell(spread(e.values[m]) if e.values[m] else MISSING, e.mean(m) == best[m])
            for m in metrics
        ]
        rows.append(
            [Cell(e.label, soft=e.is_grid), *scores, *(Cell(_fact(e, name)) for name in facts)]
        )
    return rows


def _fact(entry: Entry, name: str) -> str:
    learned = entry.row.get("seed") is not None
    return {
        "calls": str(entry.row.get("calls", MISSING)),
        "parameters": str(entry.row.get("parameters") or MISSING),
        "fit, s": number(entry.mean("fit_seconds")),
        "seeds": str(entry.seeds) if learned else MISSING,
    }[name]


def caption(results: Results) -> str:
    """What a reader must know about the columns."""
    entries = results.entries
    sentences = {
        "Lower is better, the best of a group is bold; ± is the standard deviation over "
        "seeds.": True,
        "Heuristic grids, on which nothing is learned, stand last and set apart.": any(
            e.is_grid for e in entries
        ),
        "AFS: with the analytic first step, so one step more for the same NFE.": any(
            e.afs for e in entries
        ),
        "NFE are evaluations one after another; calls counts parallel ones too.": _facts(entries)[
            "calls"
        ],
        f"{NOT_FID}{_samples(entries)}": any(e.values["fd"] for e in entries),
        _teacher(results): bool(_teacher(results)),
    }
    return " ".join(text for text, there in sentences.items() if there)


def _samples(entries: Iterable[Entry]) -> str:
    counts = sorted(
        {int(e.row["samples"]) for e in entries if e.values["fd"] and e.row.get("samples")}
    )
    return f" It is taken over {' or '.join(map(str, counts))} samples." if counts else ""


def _teacher(results: Results) -> str:
    """What the teacher itself gets, which no student should be expected to beat."""
    row = results.teacher
    scores = [
        f"{METRICS[m]} {number(row[m])}" for m in comparison.DISTANCES if row.get(m) is not None
    ]
    nfe = f" with {row['nfe']} NFE" if row.get("nfe") else ""
    text = f"The teacher{nfe} gets {', '.join(scores)}" if scores else ""
    excess = any(e.values["excess"] for e in results.entries)
    beyond = "; excess FD is the distance beyond that" if excess else ""
    return text and f"{text}{beyond}."


# --- markdown


def write_markdown(source: Path | Sequence[Row]) -> str:
    """The tables of a folder (its ``results.json``, or those one folder below) or of rows, as
    GitHub's markdown.

    Raises:
        FileNotFoundError: if the folder has no results.
        ValueError: if there are no rows.
    """
    if not isinstance(source, Path):
        return _markdown({"rows": source})
    files = [home / FILE for home in homes(source) if (home / FILE).is_file()]
    if not files:
        raise FileNotFoundError(f"{source} has no {FILE}, nor has a folder in it")
    return "\n".join(_markdown(load_json(file)) for file in files)


def homes(folder: Path) -> list[Path]:
    """The folder itself, and those in it that hold a comparison of their own, one a model."""
    return [folder, *sorted(file.parent for file in folder.glob(f"*/{FILE}"))]


def _markdown(content: Mapping[str, Any]) -> str:
    parts = []
    for results in comparison.read(content):
        parts += [f"### {results.model}"] if results.model else []
        if len(results.nfes) > 1:
            parts.append(markdown(against_nfe(results, comparison.LOSS)))
        parts.append(markdown(results_table(results)))
    notes = [f"- {note}" for note in content.get("notes") or []]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"

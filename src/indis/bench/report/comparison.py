"""A comparison's rows, set side by side: merged over seeds, at one number of network evaluations
each.

Equal *NFE* is what makes rows comparable, so the analytic first step (AFS) is a trait of a row and
not a group.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from indis.bench.report.tables import Row, average, pretty

LOSS = "heldout_loss"
METRICS = {
    LOSS: "held-out loss",
    "teacher_mse": "MSE to teacher",
    "perceptual": "perceptual",
    "fd": "FD-Fashion",
    "excess": "excess FD",
    "kl": "KL",
    "w1": "W1",
}
DISTANCES = ("fd", "kl", "w1")  # to the data, the first that was measured stands beside the loss
BEST_GRID = "best grid"
# What φ is made of, one piece changed at a time, against all of it.
REFERENCE = "indis"
_PIECES = (
    "god tau",
    "indis tau",
    "indis without dtau",
    "indis without gamma",
    "indis without class",
)
ABLATED = (*_PIECES, "indis +tracking")
_OURS = (
    "indis +weights",
    "indis +tracking",
    "look first",
    "look",
    "local weights",
    "local first",
    "local",
)
ABLATIONS = ("god", *_PIECES, *_OURS)
# Fields with a place of their own, measured ones, and the device, on which no score should depend;
# any other setting is named only where it tells rows apart.
_SHOWN = (
    "model",
    "method",
    "nfe",
    "afs",
    "seed",
    "calls",
    "parameters",
    "fit_seconds",
    "validation_loss",
    "device",
    *METRICS,
)


@dataclass(frozen=True)
class Entry:
    """Rows that differ only by seed."""

    row: Row
    name: str
    values: dict[str, list[float]]
    seeds: int
    losses: dict[Any, float]  # held-out, by the seed of the fit
    validation: float | None = None  # mean loss on tuning end points that no step was taken on

    @property
    def nfe(self) -> int:
        """Network evaluations, one after another."""
        return int(self.row["nfe"])

    @property
    def afs(self) -> bool:
        """Is the first step analytic?"""
        return bool(self.row.get("afs"))

    @property
    def label(self) -> str:
        """What a reader calls it among rows with and without AFS."""
        return self.name + (", AFS" if self.afs else "")

    @property
    def is_grid(self) -> bool:
        """Nothing learned and nothing shipped: a heuristic grid."""
        return self.row.get("seed") is None and not self.row.get("parameters")

    @property
    def loss(self) -> float:
        """The mean held-out loss, infinite where it was not measured."""
        loss = self.mean(LOSS)
        return math.inf if math.isnan(loss) else loss

    def mean(self, metric: str) -> float:
        """Over seeds; NaN where it was not measured."""
        return average(self.values[metric])

    def change(self, other: Entry) -> float:
        """Relative change of the held-out loss from another entry, over the seeds that both have if
        there are any.
        """
        common = self.losses.keys() & other.losses.keys()
        mine, theirs = ([e.losses[seed] for seed in common or e.losses] for e in (self, other))
        return average(mine) / average(theirs) - 1


@dataclass(frozen=True)
class Results:
    """One model's entries, and the row of its teacher (empty if there is none)."""

    model: str
    entries: list[Entry]
    teacher: Row

    @property
    def nfes(self) -> list[int]:
        """Every number of evaluations, in order."""
        return sorted({entry.nfe for entry in self.entries})

    @property
    def distance(self) -> str | None:
        """The metric that stands beside the loss in figures."""
        return next((m for m in DISTANCES if any(e.values[m] for e in self.entries)), None)

    def at(self, nfe: int) -> list[Entry]:
        """A group: learned methods from the best to the worst, with and without AFS together, then
        the grids.
        """
        here = [entry for entry in self.entries if entry.nfe == nfe]
        best: dict[str, float] = {}
        for entry in here:
            best[entry.name] = min(entry.loss, best.get(entry.name, math.inf))
        return sorted(here, key=lambda e: (e.is_grid, best[e.name], e.name, e.afs))

    @property
    def choosy(self) -> bool:
        """Has some method rows with and without AFS at the same NFE, so that :meth:`contenders`
        chooses?
        """
        first = {(entry.name, entry.nfe) for entry in self.entries if entry.afs}
        return any((entry.name, entry.nfe) in first for entry in self.entries if not entry.afs)

    @property
    def best_of(self) -> str:
        """How :meth:`best` chooses, in a sentence."""
        tuned = all(entry.validation is not None for entry in self.entries)
        by = "the loss on tuning end points" if tuned else "held-out loss"
        return f"Best of with and without AFS, by {by}."

    def best(self, nfe: int) -> dict[str, Entry]:
        """One entry a name: with or without AFS, whichever has the lower loss on tuning end points.

        Rows of earlier versions lack that; of these it is the reported held-out loss, which
        flatters them.
        """
        alike: dict[str, list[Entry]] = {}
        for entry in self.at(nfe):
            alike.setdefault(entry.name, []).append(entry)
        return {name: _chosen(entries) for name, entries in alike.items()}

    def contenders(self, nfe: int, metric: str = LOSS) -> dict[str, Entry]:
        """What is drawn: methods (ablations have their own figure), and the grid that is best in a
        metric.
        """
        entries = self.best(nfe)
        learned = {name: e for name, e in entries.items() if not e.is_grid and name not in ABLATED}
        grids = [e for e in entries.values() if e.is_grid and e.values[metric]]
        grid = min(grids, key=lambda e: e.mean(metric), default=None)
        return learned if grid is None else learned | {BEST_GRID: grid}

    def only(self, names: Collection[str]) -> Results:
        """The entries with these names, ``BEST_GRID`` among them at every number of evaluations,
        and the teacher.
        """
        kept = [e for nfe in self.nfes for e in self.at(nfe) if e.name in names]
        grids = (
            [self.contenders(nfe).get(BEST_GRID) for nfe in self.nfes] if BEST_GRID in names else []
        )
        return replace(self, entries=kept + [grid for grid in grids if grid is not None])

    def changes(self, nfe: int) -> dict[str, float]:
        """Relative change of the held-out loss from all of φ to each ablation, both with or both
        without AFS.
        """
        here = self.at(nfe)
        # Without AFS if there is such a row: at() has it first.
        whole = next((entry for entry in here if entry.name == REFERENCE), None)
        if whole is None or whole.loss <= 0:
            return {}
        pieces = {
            entry.name: entry
            for entry in here
            if entry.afs == whole.afs and math.isfinite(entry.loss)
        }
        return {name: pieces[name].change(whole) for name in ABLATIONS if name in pieces}


def _chosen(entries: Sequence[Entry]) -> Entry:
    """The best of some entries, and that without AFS where two are equal."""
    known = [(e.validation, e.afs, e) for e in entries if e.validation is not None]
    if len(known) == len(entries):
        return min(known, key=lambda part: part[:2])[2]
    return min(entries, key=lambda e: (e.loss, e.afs))


def read(content: Mapping[str, Any]) -> list[Results]:
    """The models of a ``results.json``, in order of appearance.

    Raises:
        ValueError: if it has no rows.
    """
    teacher = content.get("teacher") or {}
    found = []
    for rows in _split(content["rows"], ("model",)):
        model = str(rows[0].get("model", ""))
        own = teacher if str(teacher.get("model", model)) == model else {}
        found.append(Results(model, entries(rows, own), own))
    if not found:
        raise ValueError("there are no rows")
    return found


def entries(rows: Sequence[Row], teacher: Row | None = None) -> list[Entry]:
    """Merge a model's rows that differ only by seed, in order of appearance."""
    found = []
    for alike in _split(rows, ("method", "nfe", "afs")):
        varying = _varying(alike)
        for same in _split(alike, varying):
            extras = [
                _extra(name, same[0][name]) for name in varying if same[0].get(name) is not None
            ]
            losses = {
                row.get("seed"): float(row[LOSS]) for row in same if row.get(LOSS) is not None
            }
            name = " ".join([str(same[0]["method"]), *extras])
            tuned = [float(v) for row in same if (v := row.get("validation_loss")) is not None]
            validation = average(tuned) if len(tuned) == len(same) else None
            values = _values(same, teacher or {})
            found.append(Entry(same[0], name, values, len(same), losses, validation))
    return found


def _split(rows: Sequence[Row], names: Sequence[str]) -> list[list[Row]]:
    """Rows that agree in the named fields, together."""
    parts: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        parts.setdefault(tuple(repr(row.get(name)) for name in names), []).append(row)
    return list(parts.values())


def _varying(rows: Sequence[Row]) -> list[str]:
    """Further settings (text, whole numbers, flags) in which rows differ; floats are taken as
    measurements.
    """
    names = {
        k: None
        for row in rows
        for k, v in row.items()
        if k not in _SHOWN and isinstance(v, str | int)
    }
    return [name for name in names if len({repr(row.get(name)) for row in rows}) > 1]


def _extra(name: str, value: Any) -> str:
    return f"({pretty(value)})" if name == "freedoms" else f"{name}={value}"


def _values(rows: Sequence[Row], teacher: Row) -> dict[str, list[float]]:
    names = [*METRICS, "fit_seconds"]
    values = {m: [float(r[m]) for r in rows if r.get(m) is not None] for m in names}
    # A Frechet distance falls with the number of samples: those of other numbers have no
    # difference.
    counts = {
        row["samples"] for row in (teacher, *rows) if "samples" in row
    }  # earlier versions did not say it
    known = len(counts) < 2 and teacher.get("fd") is not None
    values["excess"] = [fd - teacher["fd"] for fd in values["fd"]] if known else []
    return values

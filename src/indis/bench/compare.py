"""The comparison: methods x network evaluations x analytic first step x seeds on one bench.

Cells are compared at an equal number of network evaluations one after another (*NFE*): with the
analytic first step a sampler takes one step more for the same number of calls. Every learned method
gets the same end points, loss, batch and iterations, so a gain is the method's.

    folder/endpoints, folder/heldout   teacher end points for tuning, and others no fit has seen
    folder/artifacts/<cell>            fitted samplers
    folder/cells/<cell>.json           the row of each finished cell (:mod:`indis.bench.cells`)
    folder/results.json, curves.json   all rows and learning curves, which the report reads
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from indis import artifact
from indis.bench.cells import MEASURED, TEACHER, Cell, CellCache
from indis.bench.lineup import CompareConfig, Lineup
from indis.bench.stages import CHECKPOINT, CURVE, FIRST_HELDOUT, make_endpoints, read_curve, tune
from indis.bench.suite import Bench, Sizes
from indis.denoise import device_of
from indis.endpoints import load_endpoints
from indis.evaluate import counted_nfe, score_pairs
from indis.policies import Fixed
from indis.sampler import Sampler
from indis.storage import describe, save_json
from indis.tuning import Tuning


@dataclass(frozen=True)
class CompareProgress:
    """What is being done, and how far that piece of work is."""

    doing: str
    done: int
    total: int


class Comparison:
    """A comparison on one bench; iterate :meth:`run`, stop at any time, run again to go on.

    Args:
        config: Which cells it has.
        bench: The model, its teacher, and how samplers are judged.
        sizes: How many end points and samples, and the budget of each fit.
        folder: Where everything is kept.
    """

    def __init__(self, config: CompareConfig, bench: Bench, sizes: Sizes, folder: Path) -> None:
        self.config, self.bench, self.sizes, self.folder = config, bench, sizes, folder
        self.denoiser = bench.denoiser
        self.lineup = Lineup(config, bench, sizes, folder)
        self.cache = CellCache(folder, bench.identity())

    def run(self, *, anew: bool = False) -> Iterator[CompareProgress]:
        """Make end points, then every cell; the collected files are rewritten after each.

        ``anew`` computes finished cells again. They are removed only once the end points are there,
        since those may be refused.
        """
        yield from self._endpoints("endpoints", self.sizes.endpoints, 0)
        yield from self._endpoints("heldout", self.sizes.heldout, FIRST_HELDOUT)
        self.data, _ = load_endpoints(self.folder / "endpoints")
        self.heldout, _ = load_endpoints(self.folder / "heldout")
        if anew:
            self.forget()
        yield from self._judge_teacher()
        for cells in self.lineup.heuristic():
            yield from self._judge_grids(cells)
        learned = self.lineup.learned()
        for number, cell in enumerate(learned, 1):
            yield from self._learn(cell, f"{number}/{len(learned)} {cell.name}")
        for cell in self.lineup.shipped():
            yield from self._judge_unlearned(cell, samples=self.sizes.samples)
        self.collect()

    def forget(self) -> None:
        """Remove the finished cells that :meth:`run` would reuse, and no others."""
        grids = [cell for cells in self.lineup.heuristic() for cell in cells]
        lineup = self.lineup
        for cell in (*lineup.learned(), *grids, *lineup.shipped(), lineup.teacher):
            self.cache.forget(cell)

    def rows(self) -> list[dict[str, Any]]:
        """Return all finished rows in the folder, those of earlier runs included."""
        return [stored["row"] for stored in self.cache.stored()]

    def shown(self, nfe: int) -> list[tuple[str, Sampler]]:
        """Return what a picture shows at one number of evaluations, by name."""
        return self.lineup.shown(self.rows(), nfe)

    def collect(self) -> dict[str, Any]:
        """Write ``results.json`` and ``curves.json``; return the content of the former."""
        stored = self.cache.stored()
        rows = [cell["row"] for cell in stored]
        teacher = [row for row in rows if row["method"] == TEACHER]
        result = {
            "rows": [row for row in rows if row["method"] != TEACHER],
            "teacher": teacher[0] if teacher else None,
            "notes": self._notes(stored),
        }
        save_json(self.folder / "results.json", result)
        curves = [
            read_curve(path.parent) for path in sorted(self.folder.glob(f"artifacts/*/{CURVE}"))
        ]
        drawn = [curve for curve in curves if curve["heldout"]]
        save_json(self.folder / "curves.json", {"curves": drawn})
        return result

    # --- end points

    def _endpoints(self, name: str, count: int, first_seed: int) -> Iterator[CompareProgress]:
        for state in make_endpoints(self.bench, self.folder / name, count, first_seed):
            yield CompareProgress(f"teacher {name}", state.done, state.count)

    # --- cells without a fit

    def _judge_teacher(self) -> Iterator[CompareProgress]:
        """Judge the teacher by the end points that exist anyway."""
        cell = self.lineup.teacher
        identity = {"samples": min(self.sizes.samples, len(self.data))}
        if not self.cache.is_finished(cell, identity):
            yield CompareProgress("teacher", 0, 1)
            scores = self.bench.judge_teacher(self.data, self.sizes.samples)
            named = {"model": self.bench.name, "method": TEACHER, "nfe": cell.nfe}
            self._keep(cell, identity, named | scores)

    def _judge_grids(self, cells: list[Cell]) -> Iterator[CompareProgress]:
        """Judge every grid on the pairs; only the best one also by samples, which cost more."""
        for cell in cells:
            yield from self._judge_unlearned(cell, samples=0)
        for best in sorted(cells, key=lambda cell: self.cache.row(cell)["heldout_loss"])[:1]:
            yield from self._judge_unlearned(best, samples=self.sizes.samples)

    def _judge_unlearned(self, cell: Cell, *, samples: int) -> Iterator[CompareProgress]:
        identities = [
            self.lineup.unlearned_identity(cell, count) for count in (samples, self.sizes.samples)
        ]
        if not any(self.cache.is_finished(cell, identity) for identity in identities):
            yield CompareProgress(cell.name, 0, 1)
            sampler = self.lineup.sampler(cell)
            row = self._judge(cell, sampler, samples)
            # What a choice between rows may be made by, on the same end points as those of fits.
            tuning = self.sizes.recipe.split(self.data)[1]
            if len(tuning):
                scores = score_pairs(self.denoiser, sampler, tuning, self.bench.loss)
                row |= {"validation_loss": scores.heldout_loss}
            self._keep(cell, identities[0], row)

    # --- fitted cells

    def _learn(self, cell: Cell, doing: str) -> Iterator[CompareProgress]:
        identity = self.lineup.learned_identity(cell)
        if self.cache.is_finished(cell, identity):
            return
        process = self.lineup.method(cell).tuning(self.denoiser, self.data, self.bench.loss)
        home = self.cache.home(cell)
        seconds = yield from self._tune(process, cell, self.cache.key(identity), doing)
        fitted_on = artifact.seen_seeds(self.data.seeds)
        made = {"fitted_on": fitted_on, "validation_loss": _finite(process.best)}
        artifact.save(process.sampler, home, {**self.bench.provenance(), **identity, **made})
        yield CompareProgress(f"{doing} judged", 1, 1)
        row = self._judge(cell, process.sampler, self.sizes.samples)
        cost = {"fit_seconds": round(seconds, 1), "iterations": process.step}
        self._keep(cell, identity, row | cost | {"validation_loss": made["validation_loss"]})
        # Not before: an interrupt while it is judged would lose the fit.
        (home / CHECKPOINT).unlink(missing_ok=True)

    def _tune(
        self, process: Tuning, cell: Cell, key: str, doing: str
    ) -> Generator[CompareProgress, None, float]:
        """Fit with checkpoints; the generator's value is the processor time that it took."""
        work = tune(process, self.cache.home(cell), key, cell.name, cell.nfe)
        while True:
            try:
                state = next(work)
            except StopIteration as end:
                return float(end.value)
            yield CompareProgress(f"{doing} best {state.best:.4f}", state.step, state.iterations)

    def _judge(self, cell: Cell, sampler: Sampler, samples: int) -> dict[str, Any]:
        learned, fixed = cell.seed is not None, isinstance(sampler.policy, Fixed)
        method = self.lineup.method(cell) if learned else None
        return {
            "model": self.bench.name,
            "method": cell.method,
            "freedoms": method.freedoms if method else "none",
            "steps": method.steps if method else sampler.policy.steps,
            "afs": sampler.analytic_first,
            "seed": cell.seed,
            "nfe": cell.nfe,
            "calls": counted_nfe(self.denoiser, sampler),
            "solver": describe(sampler.solver)["type"],
            **dict.fromkeys(MEASURED),
            **self.bench.judge(sampler, self.heldout, samples),
            "parameters": 0 if fixed else sampler.policy.parameter_count(),
            "device": device_of(self.denoiser).type,
        }

    # --- rows

    def _keep(self, cell: Cell, identity: Any, row: dict[str, Any]) -> None:
        self.cache.keep(cell, identity, row)
        self.collect()

    def _notes(self, stored: list[dict[str, Any]]) -> list[str]:
        b, s = self.bench, self.sizes
        others = ", ".join(self._not_comparable(stored))
        warning = f"Not comparable, from earlier runs with other sizes, settings or code: {others}."
        skipped = self.lineup.skipped.items()
        return [
            f"Teacher: {b.teacher_solver}, {b.teacher_grid}, {b.teacher_steps} steps; "
            f"{s.endpoints} end points for tuning (seeds from 0), {s.heldout} for the distances "
            f"(seeds from {FIRST_HELDOUT}).",
            f"Learned rows: {s.recipe.iterations} iterations of {s.recipe.batch}; the iteration "
            f"with the best loss on {s.recipe.holdout} of the tuning end points is kept. Times are "
            "processor seconds.",
            *self._bench_notes,
            *([warning] if others else []),
            *[f"Not run: {name}, {reason}." for name, reason in skipped],
        ]

    @cached_property
    def _bench_notes(self) -> list[str]:
        """The bench's own notes, computed once: they may cost an optimal transport."""
        return self.bench.notes(self.sizes)

    def _not_comparable(self, stored: list[dict[str, Any]]) -> list[str]:
        """Name the finished rows that this run would not reuse."""
        learners = [s for s in stored if s["row"]["method"] != TEACHER]
        rows = [s["row"] for s in learners if not self._comparable(s)]
        return sorted({f"{row['method']} at {row['nfe']} NFE" for row in rows})

    def _comparable(self, stored: dict[str, Any]) -> bool:
        cell, lineup = Cell.of(stored["row"]), self.lineup
        try:
            if cell.seed is None:
                sizes = (0, self.sizes.samples)
                known = [lineup.unlearned_identity(cell, count) for count in sizes]
            else:
                known = [lineup.learned_identity(cell)]
        except (KeyError, ValueError, FileNotFoundError):
            return False  # it no longer exists, or can no longer spend so much
        return stored["identity"] in map(self.cache.key, known)


def _finite(loss: float) -> float | None:
    """Return a loss for JSON: None if it was not measured."""
    return loss if math.isfinite(loss) else None

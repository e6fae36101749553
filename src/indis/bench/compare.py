"""The comparison: methods x network evaluations x analytic first step x seeds on one bench, cell by
cell.

Cells are compared at equal *NFE*: with the analytic first step a sampler takes one step more for
the same number of calls. Every learned method gets the same end points, loss, batch and iterations,
so a gain is the method's.

    folder/endpoints, folder/heldout   teacher end points for tuning, and others that no fit has seen
    folder/artifacts/<cell>            fitted samplers
    folder/cells/<cell>.json           one result row each; a finished one is not computed again
    folder/results.json, curves.json   everything together, what the report reads

A row is reused only for the same weights, end points, sizes and configuration; anything else is
computed anew.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from indis import artifact, grids
from indis.bench.suite import Bench, Sizes
from indis.bench.variants import VARIANTS, chosen
from indis.denoise import device_of
from indis.endpoints import TeachConfig, load_endpoints, teach_folder
from indis.evaluate import counted_nfe
from indis.methods import Method
from indis.policies import Fixed
from indis.sampler import Sampler
from indis.storage import checksum, describe, digest, load_checkpoint, load_json, save_json
from indis.tuning import Tuning

# Samplers that come with the package, by the model they are for; the number of evaluations goes
# into the braces.
SHIPPED = {
    "fashion": {
        "indis (shipped)": "fashion-nfe{}",
        "local (shipped)": "fashion-nfe{}-local",
        "god (shipped)": "fashion-nfe{}-god",
    }
}
FILES = ("config.json", "policy.safetensors")  # of an artifact
TEACHER, CHECKPOINT = "teacher", "checkpoint.safetensors"
# What a row may or may not have been measured by; every row has all of them, None where it was not.
MEASURED = ("perceptual", "fd", "kl", "w1", "fit_seconds")


@dataclass(frozen=True)
class CompareConfig:
    """Which cells.

    Raises:
        ValueError: for none or unknown methods, unknown grids, or fewer than one evaluation.
    """

    methods: tuple[str, ...] = ("all",)
    """Names or groups: all, published, ours, ablation."""
    grids: tuple[str, ...] = ("all",)
    """Heuristic grids; "all" are those of the bench."""
    nfe: tuple[int, ...] = (3, 5, 7)
    """Network evaluations, one after another."""
    afs: tuple[bool, ...] = (False,)
    """Without and with the analytic first step."""
    seeds: tuple[int, ...] = (0,)
    shipped: bool = False
    """Also judge the fitted samplers that come with the package."""

    def __post_init__(self) -> None:
        chosen(self.methods)
        for name in ("methods", "afs", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be at least one value, got none")
        if not self.nfe or min(self.nfe) < 1:
            raise ValueError(f"nfe must be at least 1, got {self.nfe}")
        for grid in (name for name in self.grids if name != "all"):
            grids.named(grid)


@dataclass(frozen=True)
class Cell:
    """One entry of the table."""

    method: str
    nfe: int
    afs: bool
    seed: int | None  # None where nothing is learned

    @property
    def name(self) -> str:
        """A file name."""
        seed = "" if self.seed is None else f" s{self.seed}"
        text = f"{self.method} nfe{self.nfe}{' afs' if self.afs else ''}{seed}"
        return text.translate(str.maketrans(" ", "-", ":()"))


@dataclass(frozen=True)
class CompareProgress:
    """What is being done, how far that piece is, and which cell of how many it belongs to."""

    doing: str
    done: int
    total: int


class Comparison:
    """Iterate :meth:`run`; stop whenever, run again to go on."""

    def __init__(self, config: CompareConfig, bench: Bench, sizes: Sizes, folder: Path) -> None:
        self.config, self.bench, self.sizes, self.folder = config, bench, sizes, folder
        self.denoiser = bench.denoiser
        self.grids = bench.grids if "all" in config.grids else config.grids
        self.skipped: dict[str, str] = {}

    def run(self, *, anew: bool = False) -> Iterator[CompareProgress]:
        """Make end points, then every cell; the collected files are rewritten after each.

        ``anew`` computes finished cells again. They go once the end points, which may be refused,
        are there.
        """
        yield from self._endpoints("endpoints", self.sizes.endpoints, 0)
        yield from self._endpoints("heldout", self.sizes.heldout, 1_000_000)
        self.data, _ = load_endpoints(self.folder / "endpoints")
        self.heldout, _ = load_endpoints(self.folder / "heldout")
        if anew:
            self.forget()
        yield from self._teacher()
        for nfe, afs in ((n, a) for n in self.config.nfe for a in self.config.afs):
            yield from self._heuristics(nfe, afs)
        cells = self.learned()
        for number, cell in enumerate(cells, 1):
            yield from self._learn(cell, f"{number}/{len(cells)} {cell.name}")
        for cell in self._shipped():
            yield from self._plain(cell, samples=self.sizes.samples)
        self.collect()

    def forget(self) -> None:
        """Remove the finished cells that :meth:`run` would reuse; what it does not ask for
        stays.
        """
        c = self.config
        plain = [
            Cell(grid, nfe, afs, None) for grid in self.grids for nfe in c.nfe for afs in c.afs
        ]
        teacher = Cell(TEACHER, self.bench.teacher_steps, False, None)
        for cell in (*self.learned(), *plain, *self._shipped(), teacher):
            self._path(cell).unlink(missing_ok=True)
            shutil.rmtree(self.folder / "artifacts" / cell.name, ignore_errors=True)

    def learned(self) -> list[Cell]:
        """The cells of the chosen methods; what a method cannot do is noted in ``skipped``.

        A method of two stages a step spends an odd number of evaluations only with an analytic
        first step, an even one only without; it then gets the cell that it can do, whatever was
        asked.
        """
        c, cells = self.config, []
        for seed in c.seeds:
            for nfe in c.nfe:
                for name in chosen(c.methods):
                    asked = [Cell(name, nfe, afs, seed) for afs in c.afs]
                    possible = [cell for cell in asked if self._possible(cell)]
                    other = [replace(cell, afs=not cell.afs) for cell in asked[:1]]
                    cells += possible or [cell for cell in other if self._possible(cell)]
        return cells

    def method(self, cell: Cell) -> Method:
        """The configured method of a learned cell.

        Raises:
            ValueError: if the method cannot spend that many evaluations.
        """
        variant = VARIANTS[cell.method]
        fitting = replace(self.sizes.recipe, seed=int(cell.seed or 0))
        shared, own = self.bench.shared, self.bench.own(variant.method)
        return variant.config(shared, own, fitting, nfe=cell.nfe, analytic_first=cell.afs)

    def sampler(self, cell: Cell) -> Sampler:
        """The fitted, plain or shipped sampler of a finished cell."""
        shipped = SHIPPED.get(self.bench.name, {})
        if cell.method in shipped:
            return artifact.load(shipped[cell.method].format(cell.nfe))
        if cell.seed is not None:
            return artifact.load(self.folder / "artifacts" / cell.name)
        return self.bench.grid_sampler(cell.method, cell.nfe + cell.afs, analytic_first=cell.afs)

    def shown(self, nfe: int) -> list[tuple[str, Sampler]]:
        """What is worth a picture at one NFE: the best grid, each main method's first seed without
        AFS, what ships.
        """
        names = SHIPPED.get(self.bench.name, {})
        here = [
            r for r in self.rows() if r["nfe"] == nfe and (r["method"] in names or not r.get("afs"))
        ]
        best = sorted(
            (row for row in here if row["method"] in self.grids),
            key=lambda row: row["heldout_loss"],
        )[:1]
        shipped = (m for m, name in names.items() if name.format(nfe) in artifact.shipped_names())
        main = ("god", "indis", "look", "local", *shipped)
        learned = [
            r
            for m in main
            for r in here
            if r["method"] == m and r["seed"] in (None, self.config.seeds[0])
        ]
        cells = [Cell(row["method"], nfe, False, row["seed"]) for row in (*best, *learned)]
        return [(cell.method, self.sampler(cell)) for cell in cells]

    def rows(self) -> list[dict[str, Any]]:
        """All finished rows, this run's and those of earlier runs in the same folder."""
        return [stored["row"] for stored in self._stored()]

    def _stored(self) -> list[dict[str, Any]]:
        return [
            self._whole(load_json(path)) for path in sorted((self.folder / "cells").glob("*.json"))
        ]

    def _whole(self, stored: dict[str, Any]) -> dict[str, Any]:
        """A finished cell with every key and the present words for freedoms: rows of earlier
        versions are reused.
        """
        row = stored["row"]
        if row["method"] == TEACHER:
            return stored
        known = (
            {"freedoms": self.method(_cell(row)).freedoms}
            if row["seed"] is not None and self._ours(stored)
            else {}
        )
        return stored | {"row": dict.fromkeys((*MEASURED, "device")) | row | known}

    def collect(self) -> dict[str, Any]:
        """Write ``results.json`` and ``curves.json``; the former is returned."""
        stored = self._stored()
        rows = [cell["row"] for cell in stored]
        teacher = [row for row in rows if row["method"] == TEACHER]
        table = [row for row in rows if row["method"] != TEACHER]
        result = {
            "rows": table,
            "teacher": teacher[0] if teacher else None,
            "notes": self._notes(stored),
        }
        save_json(self.folder / "results.json", result)
        curves = [load_json(path) for path in sorted(self.folder.glob("artifacts/*/curve.json"))]
        save_json(
            self.folder / "curves.json", {"curves": [curve for curve in curves if curve["heldout"]]}
        )
        return result

    def _notes(self, stored: list[dict[str, Any]]) -> list[str]:
        b, s = self.bench, self.sizes
        strangers = ", ".join(self._strangers(stored))
        warning = (
            [f"Not comparable, from earlier runs with other sizes or settings: {strangers}."]
            if strangers
            else []
        )
        skipped = [f"Not run: {name}, {reason}." for name, reason in self.skipped.items()]
        return [
            f"Teacher: {b.teacher_solver}, {b.teacher_grid}, {b.teacher_steps} steps; {s.endpoints} end points for "
            f"tuning (seeds from 0), {s.heldout} for the distances (seeds from 1000000).",
            f"Learned rows: {s.recipe.iterations} iterations of {s.recipe.batch}; the iteration with the best loss on "
            f"{s.recipe.holdout} of the tuning end points is kept. Times are processor seconds.",
            *self._about,
            *warning,
            *skipped,
        ]

    @cached_property
    def _about(self) -> list[str]:
        """The bench's notes: they may cost an optimal transport, and results are collected after
        every cell.
        """
        return self.bench.notes(self.sizes)

    def _possible(self, cell: Cell) -> bool:
        try:
            self._require_condition(self.method(cell))
        except ValueError as error:
            self.skipped[f"{cell.method} at {cell.nfe} NFE{' with AFS' if cell.afs else ''}"] = str(
                error
            )
            return False
        return True

    def _require_condition(self, method: Method) -> None:
        if (
            not getattr(method, "use_condition", True)
            and self.denoiser.condition([0]).features is None
        ):
            raise ValueError(f"{self.denoiser.name} has no condition to leave out")

    def _endpoints(self, name: str, count: int, first_seed: int) -> Iterator[CompareProgress]:
        config = TeachConfig(count, first_seed, shard=self._shard(self.folder / name / "meta.json"))
        provenance = self.bench.provenance() | {"bf16": self.bench.drawing is not self.denoiser}
        for state in teach_folder(
            config,
            self.bench.drawing,
            self.bench.teacher,
            self.folder / name,
            provenance=provenance,
        ):
            yield CompareProgress(f"teacher {name}", state.done, state.count)

    def _shard(self, meta: Path) -> int:
        """End points a file; earlier versions made smaller files of fewer, and those that are there
        count on.
        """
        match load_json(meta) if meta.exists() else None:
            case {"config": {"shard": int(size)}} if 0 < size < self.bench.shard:
                return size
        return self.bench.shard

    def _teacher(self) -> Iterator[CompareProgress]:
        """The teacher's own distance to the data, from the end points that exist anyway."""
        cell = Cell(TEACHER, self.bench.teacher_steps, False, None)
        identity = {"samples": min(self.sizes.samples, len(self.data))}  # there are no others
        if not self._finished(cell, identity):
            yield CompareProgress("teacher", 0, 1)
            row = {"model": self.bench.name, "method": TEACHER, "nfe": cell.nfe}
            self._finish(
                cell, identity, row | self.bench.judge_teacher(self.data, self.sizes.samples)
            )

    def _heuristics(self, nfe: int, afs: bool) -> Iterator[CompareProgress]:
        """Every grid pair by pair; the distance to the data for the best one alone, where it takes
        samples.
        """
        cells = [Cell(grid, nfe, afs, None) for grid in self.grids]
        for cell in cells:
            yield from self._plain(cell, samples=0)
        for best in sorted(cells, key=lambda cell: self._row(cell)["heldout_loss"])[:1]:
            yield from self._plain(best, samples=self.sizes.samples)

    def _shipped(self) -> list[Cell]:
        """Of the samplers that come with the package; none if they are not asked for."""
        names = SHIPPED.get(self.bench.name, {}).items() if self.config.shipped else ()
        asked = [
            (nfe, method, name.format(nfe)) for nfe in self.config.nfe for method, name in names
        ]
        return [
            Cell(method, nfe, False, None)
            for nfe, method, name in asked
            if name in artifact.shipped_names()
        ]

    def _plain(self, cell: Cell, *, samples: int) -> Iterator[CompareProgress]:
        identity, better = (self._plain_identity(cell, n) for n in (samples, self.sizes.samples))
        if not (self._finished(cell, identity) or self._finished(cell, better)):
            yield CompareProgress(cell.name, 0, 1)
            self._finish(cell, identity, self._judge(cell, self.sampler(cell), samples))

    def _learn(self, cell: Cell, doing: str) -> Iterator[CompareProgress]:
        method = self.method(cell)
        identity = self._fitted_identity(cell)
        if self._finished(cell, identity):
            return
        process = method.tuning(self.denoiser, self.data, self.bench.loss)
        home = self.folder / "artifacts" / cell.name
        seconds = yield from self._tune(process, home, cell, identity, doing)
        fitted_on = artifact.seen_seeds(self.data.seeds)
        made = {"fitted_on": fitted_on, "validation_loss": _finite(process.best)}
        artifact.save(process.sampler, home, {**self.bench.provenance(), **identity, **made})
        yield CompareProgress(f"{doing} judged", 1, 1)
        row = self._judge(cell, process.sampler, self.sizes.samples)
        self._finish(
            cell, identity, row | {"fit_seconds": round(seconds, 1), "iterations": process.step}
        )
        (home / CHECKPOINT).unlink(
            missing_ok=True
        )  # not before: an interrupt while it is judged would lose the fit

    def _tune(
        self, process: Tuning, home: Path, cell: Cell, identity: Any, doing: str
    ) -> Generator[CompareProgress, None, float]:
        """Iterate with checkpoints; the generator's value is the processor time it took, earlier
        runs included.
        """
        checkpoint, whose = home / CHECKPOINT, self._digest(identity)
        curve: dict[str, Any] = {
            "label": cell.name,
            "steps": cell.nfe,
            "iteration": [],
            "heldout": [],
            "seconds": 0.0,
        }
        if (
            checkpoint.exists() and load_checkpoint(checkpoint, "meta")[1]["meta"] == whose
        ):  # or it is of other sizes
            process.resume(checkpoint, whose)
            curve = load_json(home / "curve.json")
        before, started = curve["seconds"], time.process_time()
        for state in process.run():
            yield CompareProgress(f"{doing} best {state.best:.4f}", state.step, state.iterations)
            if state.heldout is not None:
                curve["iteration"].append(state.step)
                curve["heldout"].append(state.heldout)
            if (
                state.heldout is not None or state.step == state.iterations
            ):  # without a holdout at the end alone
                curve["seconds"] = before + time.process_time() - started
                save_json(home / "curve.json", curve)
                process.save(checkpoint, whose)
        return before + time.process_time() - started

    def _judge(self, cell: Cell, sampler: Sampler, samples: int) -> dict[str, Any]:
        learned = cell.seed is not None
        return {
            "model": self.bench.name,
            "method": cell.method,
            "freedoms": self.method(cell).freedoms if learned else "none",
            "steps": self.method(cell).steps if learned else sampler.policy.steps,
            "afs": sampler.analytic_first,
            "seed": cell.seed,
            "nfe": cell.nfe,
            "calls": counted_nfe(self.denoiser, sampler),
            "solver": describe(sampler.solver)["type"],
            **dict.fromkeys(MEASURED),
            **self.bench.judge(sampler, self.heldout, samples),
            "parameters": 0
            if isinstance(sampler.policy, Fixed)
            else sampler.policy.parameter_count(),
            "device": device_of(self.denoiser).type,
        }

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"

    def _row(self, cell: Cell) -> dict[str, Any]:
        return load_json(self._path(cell))["row"]

    def _finished(self, cell: Cell, identity: Any) -> bool:
        path = self._path(cell)
        return path.exists() and load_json(path)["identity"] == self._digest(identity)

    def _plain_identity(self, cell: Cell, samples: int) -> dict[str, Any]:
        """Of a grid, or of a shipped sampler, which another release may ship otherwise."""
        name = SHIPPED.get(self.bench.name, {}).get(cell.method)
        folder = None if name is None else artifact.SHIPPED / name.format(cell.nfe)
        files = {} if folder is None else {file: checksum(folder / file) for file in FILES}
        return {
            "heldout": self.sizes.heldout,
            "samples": samples,
            "shared": self.bench.shared,
        } | files

    def _fitted_identity(self, cell: Cell) -> dict[str, Any]:
        sizes = {name: getattr(self.sizes, name) for name in ("endpoints", "heldout", "samples")}
        return {
            "method": VARIANTS[cell.method].method,
            "config": asdict(self.method(cell)),
            **sizes,
        }

    def _strangers(self, stored: list[dict[str, Any]]) -> list[str]:
        """Finished rows that this run would not reuse, since they come from other sizes or
        settings.
        """
        rows = [s["row"] for s in stored if s["row"]["method"] != TEACHER and not self._ours(s)]
        return sorted({f"{row['method']} at {row['nfe']} NFE" for row in rows})

    def _ours(self, stored: dict[str, Any]) -> bool:
        cell = _cell(stored["row"])
        try:
            plain = (
                [self._plain_identity(cell, n) for n in (0, self.sizes.samples)]
                if cell.seed is None
                else []
            )
            known = plain or [self._fitted_identity(cell)]
        except (
            KeyError,
            ValueError,
            FileNotFoundError,
        ):  # what is no more, or cannot spend so much any more
            return False
        return stored["identity"] in map(self._digest, known)

    def _digest(self, identity: Any) -> str:
        return digest([*self.bench.identity(), identity])

    def _finish(self, cell: Cell, identity: Any, row: dict[str, Any]) -> None:
        save_json(self._path(cell), {"identity": self._digest(identity), "row": row})
        self.collect()


def _finite(loss: float) -> float | None:
    """A loss as JSON: without a held-out part none was measured."""
    return loss if math.isfinite(loss) else None


def _cell(row: dict[str, Any]) -> Cell:
    """The cell that a row is of."""
    return Cell(row["method"], row["nfe"], row["afs"], row["seed"])

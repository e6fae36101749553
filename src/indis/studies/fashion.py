"""The image study: INDIS and its baselines on the Fashion-MNIST model, cell by cell.

A cell is a method at a number of network evaluations, with or without analytic first step, under a seed. Cells are
compared at equal *NFE*: with the analytic first step a sampler takes one step more for the same number of calls.

    folder/endpoints, folder/heldout   teacher end points for tuning, and others that no fit has seen
    folder/artifacts/<cell>            fitted samplers
    folder/cells/<cell>.json           one result row each; a finished one is not computed again
    folder/fashion.json, curves.json   everything together, what the report reads

The learned global plan gets the same data, loss, batch and iterations as phi, so that a gain is the instance's.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from indis import artifact, grids, losses, solvers
from indis.evaluate import counted_nfe, frechet_of_images, frechet_of_seeds, score_pairs
from indis.methods import IndisConfig, heuristic
from indis.metrics.features import WEIGHTS as FEATURE_WEIGHTS
from indis.models.fashion import Fashion
from indis.policies import Fixed
from indis.sampler import Sampler
from indis.storage import checksum, describe, digest, load_json, save_json
from indis.teacher import Endpoints, TeachConfig, load_endpoints, teach
from indis.training import Fit, FitConfig

GRIDS = ("polynomial:7", "polynomial:5", "polynomial:3", "log_snr", "vp_time:2", "vp_time", "quadratic", "uniform")
# Samplers that come with the package, tuned by this study.
SHIPPED = {"indis (shipped)": "fashion-nfe{}", "global (shipped)": "fashion-nfe{}-global"}

# What each learned method changes in the study's config.
METHODS: dict[str, dict[str, Any]] = {
    "global": {"per_instance": False},
    "global tau": {"per_instance": False, "dtau": 0.0, "gamma": 0.0},
    "indis": {},
    "indis from global": {},
    "indis without dtau": {"dtau": 0.0},
    "indis without gamma": {"gamma": 0.0},
    "indis without class": {"use_condition": False},
    "global +weights": {"per_instance": False, "weights": 0.5},
    "indis +weights": {"weights": 0.5},
}
# The method whose fitted plan another one starts at.
STARTS = {"indis from global": "global"}


@dataclass(frozen=True)
class FashionConfig:
    """Which cells, and how much of everything."""

    methods: tuple[str, ...] = ("global", "indis")
    grids: tuple[str, ...] = GRIDS
    nfe: tuple[int, ...] = (3, 5, 7)
    afs: tuple[bool, ...] = (False,)
    seeds: tuple[int, ...] = (0,)
    samples: int = 10_000
    """Samples for FD-Fashion; 0 leaves it out."""
    endpoints: int = 10_000
    """Teacher end points for tuning (paper: 10 000); the last `fit.holdout` choose the best iteration."""
    heldout: int = 2000
    """Other teacher end points, for the reported distances."""
    bf16: bool = False
    """Run the teacher and draw the samples for FD-Fashion under bfloat16 autocast; fits and pairs stay float32.

    Over 40 seeds the teacher's end points move by a mean square of 6e-6, a thousandth of a 7-step student's error.
    """
    solver: str = "ipndm:3"
    teacher_steps: int = 30
    base: str = "polynomial:7"
    """Base grid of the learned methods."""
    dtau: float = 0.5
    gamma: float = 0.5
    width: int = 128
    shipped: bool = False
    """Also judge the fitted samplers that come with the package."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(iterations=400, batch=64, holdout=500))

    def __post_init__(self) -> None:
        unknown = set(self.methods) - set(METHODS)
        if unknown:
            raise ValueError(f"methods must be among {', '.join(METHODS)}, got {', '.join(sorted(unknown))}")
        if not self.nfe or min(self.nfe) < 1:
            raise ValueError(f"nfe must be at least 1, got {self.nfe}")
        for grid in (*self.grids, self.base):
            grids.named(grid)
        solvers.named(self.solver)


@dataclass(frozen=True)
class Cell:
    """One entry of the table."""

    method: str
    nfe: int
    afs: bool
    seed: int | None  # None where nothing is learned

    @property
    def steps(self) -> int:
        """Steps that cost ``nfe`` calls."""
        return self.nfe + self.afs

    @property
    def name(self) -> str:
        """A file name."""
        seed = "" if self.seed is None else f" s{self.seed}"
        return f"{self.method} nfe{self.nfe}{' afs' if self.afs else ''}{seed}".translate(
            str.maketrans(" ", "-", ":()")
        )


@dataclass(frozen=True)
class StudyProgress:
    """What is being done, and how far that piece is."""

    doing: str
    done: int
    total: int


class FashionStudy:
    """Iterate :meth:`run`; stop whenever, run again to go on."""

    def __init__(self, config: FashionConfig, denoiser: Fashion, folder: Path) -> None:
        self.config, self.denoiser, self.folder = config, denoiser, folder
        self.drawing = denoiser.in_bf16() if config.bf16 else denoiser
        self.loss = losses.named("fashion")

    def run(self) -> Iterator[StudyProgress]:
        """Make end points, then every cell; the collected files are rewritten after each."""
        yield from self._endpoints("endpoints", self.config.endpoints, 0)
        yield from self._endpoints("heldout", self.config.heldout, 1_000_000)
        self.data, _ = load_endpoints(self.folder / "endpoints")
        self.heldout, _ = load_endpoints(self.folder / "heldout")
        yield from self._teacher_cell()
        for cell in self._learned_cells():
            yield from self._learn(cell)
        yield from self._heuristics()
        if self.config.shipped:
            yield from self._shipped()

    def sampler(self, cell: Cell) -> Sampler:
        """The fitted, plain or shipped sampler of a finished cell."""
        if cell.method in SHIPPED:
            return artifact.load(artifact.shipped(SHIPPED[cell.method].format(cell.nfe)))
        if cell.seed is not None:
            return artifact.load(self.folder / "artifacts" / cell.name)
        return heuristic(
            self.denoiser, solver=self.config.solver, grid=cell.method, steps=cell.steps, analytic_first=cell.afs
        )

    def shown(self, rows: list[dict[str, Any]], nfe: int) -> list[tuple[str, Sampler]]:
        """The samplers worth a picture at one NFE: the best grid, then each learned method's first seed, no AFS."""
        here = [row for row in rows if row["nfe"] == nfe and not row["afs"] and row["method"] != "teacher"]
        plain = [row for row in here if row["method"] in self.config.grids]
        best = sorted(plain, key=lambda row: row["heldout_loss"])[:1]
        seed = self.config.seeds[0]
        learned = [
            row for row in here if row["method"] in ("global", "indis", "indis from global") and row["seed"] == seed
        ]
        shipped = [row for row in here if row["method"] in SHIPPED]
        cells = [Cell(row["method"], nfe, False, row["seed"]) for row in (*best, *learned, *shipped)]
        return [(cell.method, self.sampler(cell)) for cell in cells]

    def rows(self) -> list[dict[str, Any]]:
        """All finished rows, this study's and those of earlier runs in the same folder."""
        return [load_json(path)["row"] for path in sorted((self.folder / "cells").glob("*.json"))]

    def collect(self) -> None:
        """Write ``fashion.json`` and ``curves.json``."""
        rows = self.rows()
        teacher = [row for row in rows if row["method"] == "teacher"]
        table = [row for row in rows if row["method"] != "teacher"]
        result = {"rows": table, "teacher": teacher[0] if teacher else None, "notes": self._notes()}
        save_json(self.folder / "fashion.json", result)
        curves = [load_json(path) for path in sorted(self.folder.glob("artifacts/*/curve.json"))]
        save_json(self.folder / "curves.json", {"curves": curves})

    def _notes(self) -> list[str]:
        c = self.config
        dtype = "bfloat16 autocast" if c.bf16 else "float32"
        return [
            f"Teacher: {c.solver}, polynomial:7, {c.teacher_steps} steps; {c.endpoints} end points for tuning "
            f"(seeds from 0), {c.heldout} for the distances (seeds from 1000000).",
            f"Learned rows: student {c.solver}, base grid {c.base}, {c.fit.iterations} iterations of {c.fit.batch}; "
            f"the iteration with the best loss on {c.fit.holdout} of the tuning end points is kept.",
            f"FD-Fashion: seeds from 2000000, balanced classes, network in {dtype}; of the grids, the best alone.",
            "The loss is the perceptual distance of the same feature network that FD-Fashion uses.",
        ]

    def _endpoints(self, name: str, count: int, first_seed: int) -> Iterator[StudyProgress]:
        c = self.config
        teacher = heuristic(self.denoiser, solver=c.solver, grid="polynomial:7", steps=c.teacher_steps)
        config = TeachConfig(count, first_seed, shard=min(count, 500))
        provenance = {
            "model": self.denoiser.name,
            "weights": self.denoiser.fingerprint,
            "bf16": c.bf16,
            "solver": describe(teacher.solver),
            "steps": c.teacher_steps,
        }
        for state in teach(config, self.drawing, teacher, self.folder / name, provenance=provenance):
            yield StudyProgress(f"teacher {name}", state.done, state.count)

    def _teacher_cell(self) -> Iterator[StudyProgress]:
        """The teacher's own FD, from the end points that exist anyway."""
        count = min(self.config.samples, len(self.data))
        cell = Cell("teacher", self.config.teacher_steps, False, None)
        if count < 2 or self._finished(cell, {"samples": count}):
            return
        yield StudyProgress("teacher FD", 0, 1)
        images = (self.denoiser.decode(self.data.target[i : min(i + 500, count)]) for i in range(0, count, 500))
        row = {"model": self.denoiser.name, "method": "teacher", "nfe": cell.nfe, "samples": count}
        self._finish(cell, {"samples": count}, row | {"fd": frechet_of_images(images)})

    def _learned_cells(self) -> list[Cell]:
        c = self.config
        return [Cell(m, n, a, s) for s in c.seeds for n in c.nfe for a in c.afs for m in c.methods]

    def _config(self, cell: Cell) -> IndisConfig:
        c = self.config
        changes = METHODS[cell.method]
        shared: dict[str, Any] = {
            "solver": c.solver,
            "grid": c.base,
            "dtau": c.dtau,
            "gamma": c.gamma,
            "width": c.width,
        }
        fitting = replace(c.fit, seed=int(cell.seed or 0))
        own: dict[str, Any] = {"steps": cell.steps, "analytic_first": cell.afs, "loss": "fashion", "fit": fitting}
        return IndisConfig(**shared | own | changes)

    def _learn(self, cell: Cell) -> Iterator[StudyProgress]:
        config = self._config(cell)
        identity = {"config": asdict(config), "endpoints": self.config.endpoints, "samples": self.config.samples}
        if self._finished(cell, identity):
            return
        start = self.sampler(replace(cell, method=STARTS[cell.method])) if cell.method in STARTS else None
        process = config.tuning(self.denoiser, self.data, self.loss, start=start)
        home = self.folder / "artifacts" / cell.name
        seconds = yield from self._fit(process, home, cell, config)
        provenance = {
            "model": self.denoiser.name,
            "weights": self.denoiser.fingerprint,
            "config": asdict(config),
            "teacher": {"solver": self.config.solver, "grid": "polynomial:7", "steps": self.config.teacher_steps},
            "validation_loss": process.best,
        }
        artifact.save(process.sampler, home, provenance)
        row = yield from self._judge(cell, process.sampler, samples=self.config.samples)
        self._finish(cell, identity, row | {"fit_seconds": round(seconds, 1), "iterations": config.fit.iterations})

    def _fit(self, process: Fit, home: Path, cell: Cell, config: IndisConfig) -> Generator[StudyProgress, None, float]:
        """Iterate with checkpoints; the generator's value is the time it took, earlier runs included."""
        checkpoint, identity = home / "checkpoint.safetensors", self._digest(asdict(config))
        curve: dict[str, Any] = {
            "label": cell.name,
            "steps": cell.steps,
            "iteration": [],
            "heldout": [],
            "seconds": 0.0,
        }
        if checkpoint.exists():
            process.resume(checkpoint, identity)
            curve = load_json(home / "curve.json")
        before, started = curve["seconds"], time.perf_counter()
        for state in process.run():
            yield StudyProgress(f"fit {cell.name} best {state.best:.4f}", state.step, state.iterations)
            if state.heldout is not None:
                curve["iteration"].append(state.step)
                curve["heldout"].append(state.heldout)
                curve["seconds"] = before + time.perf_counter() - started
                save_json(home / "curve.json", curve)
                process.save(checkpoint, identity)
        checkpoint.unlink(missing_ok=True)
        return curve["seconds"]

    def _heuristics(self) -> Iterator[StudyProgress]:
        """Every grid pair by pair; the Frechet distance for the best grid of each NFE alone."""
        for nfe in self.config.nfe:
            for afs in self.config.afs:
                cells = [Cell(grid, nfe, afs, None) for grid in self.config.grids]
                for cell in cells:
                    yield from self._plain(cell, samples=0)
                for best in sorted(cells, key=lambda cell: self._row(cell)["heldout_loss"])[:1]:
                    yield from self._plain(best, samples=self.config.samples)

    def _shipped(self) -> Iterator[StudyProgress]:
        for nfe in self.config.nfe:
            for method in SHIPPED:
                yield from self._plain(Cell(method, nfe, False, None), samples=self.config.samples)

    def _plain(self, cell: Cell, *, samples: int) -> Iterator[StudyProgress]:
        identity = {"heldout": self.config.heldout, "samples": samples, "solver": self.config.solver}
        better = identity | {"samples": self.config.samples}
        if not (self._finished(cell, identity) or self._finished(cell, better)):
            row = yield from self._judge(cell, self.sampler(cell), samples=samples)
            self._finish(cell, identity, row)

    def _judge(self, cell: Cell, sampler: Sampler, *, samples: int) -> Generator[StudyProgress, None, dict[str, Any]]:
        """The row of a sampler; the generator's value."""
        scores = score_pairs(self.denoiser, sampler, self.heldout, self.loss)
        fd = None
        if samples:
            yield StudyProgress(f"FD of {cell.name}", 0, 1)
            fd = frechet_of_seeds(self.drawing, sampler, range(2_000_000, 2_000_000 + samples))
        changes = METHODS.get(cell.method, {})
        freedoms = [name for name in ("dtau", "gamma") if changes.get(name, 1)]
        freedoms += ["weights"] if changes.get("weights") else []
        return {
            "model": self.denoiser.name,
            "method": cell.method,
            "freedoms": "none" if isinstance(sampler.policy, Fixed) else "+".join(["tau", *freedoms]),
            "steps": cell.steps,
            "afs": cell.afs,
            "seed": cell.seed,
            "nfe": counted_nfe(self.denoiser, sampler),
            "heldout_loss": scores.heldout_loss,
            "perceptual": scores.heldout_loss,
            "teacher_mse": scores.teacher_mse,
            "fd": fd,
            "samples": samples,
            "pairs": scores.pairs,
            "parameters": sampler.policy.parameter_count(),
        }

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"

    def _row(self, cell: Cell) -> dict[str, Any]:
        return load_json(self._path(cell))["row"]

    def _finished(self, cell: Cell, identity: Any) -> bool:
        path = self._path(cell)
        return path.exists() and load_json(path)["identity"] == self._digest(identity)

    def _digest(self, identity: Any) -> str:
        """A row holds for these weights of the model and of the feature network that judges it."""
        return digest([self.denoiser.fingerprint, checksum(FEATURE_WEIGHTS), identity])

    def _finish(self, cell: Cell, identity: Any, row: dict[str, Any]) -> None:
        save_json(self._path(cell), {"identity": self._digest(identity), "row": row})
        self.collect()


def heldout_data(folder: Path) -> Endpoints:
    """The end points that no fit of a study has seen."""
    return load_endpoints(folder / "heldout")[0]

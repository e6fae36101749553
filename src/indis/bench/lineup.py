"""Who takes part in a comparison: the cells that were asked for, and the sampler of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from indis import artifact, grids
from indis.bench.cells import TEACHER, Cell
from indis.bench.suite import Bench, Sizes
from indis.bench.variants import VARIANTS, chosen
from indis.methods import Method
from indis.sampler import Sampler
from indis.storage import checksum

# Samplers that come with the package, by the model they are for. The number of evaluations goes
# into the braces.
SHIPPED = {
    "fashion": {
        "indis (shipped)": "fashion-nfe{}",
        "local (shipped)": "fashion-nfe{}-local",
        "god (shipped)": "fashion-nfe{}-god",
    }
}
MAIN = ("god", "indis", "look", "local")  # the methods that a picture shows


@dataclass(frozen=True)
class CompareConfig:
    """Which cells a comparison has.

    Raises:
        ValueError: for none or unknown methods, unknown grids, or fewer than one evaluation.
    """

    methods: tuple[str, ...] = ("all",)
    """Names or groups: all, published, ours, ablation."""
    grids: tuple[str, ...] = ("all",)
    """Heuristic grids; "all" are those of the bench."""
    nfe: tuple[int, ...] = (3, 5, 7)
    """Numbers of network evaluations one after another."""
    afs: tuple[bool, ...] = (False,)
    """Without and with the analytic first step."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the fits."""
    shipped: bool = False
    """Whether the fitted samplers that come with the package are judged, too."""

    def __post_init__(self) -> None:
        chosen(self.methods)
        for name in ("methods", "afs", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be at least one value, got none")
        if not self.nfe or min(self.nfe) < 1:
            raise ValueError(f"nfe must be at least 1, got {self.nfe}")
        for grid in (name for name in self.grids if name != "all"):
            grids.named(grid)


class Lineup:
    """The cells of a configuration on one bench.

    Args:
        config: Which methods, grids, numbers of evaluations and seeds.
        bench: The model and what is shared by all methods.
        sizes: The budget of each fit.
        folder: Folder of the comparison, in which fitted samplers lie.
    """

    def __init__(self, config: CompareConfig, bench: Bench, sizes: Sizes, folder: Path) -> None:
        self.config, self.bench, self.sizes, self.folder = config, bench, sizes, folder
        self.grids = bench.grids if "all" in config.grids else config.grids
        self.skipped: dict[str, str] = {}  # what cannot run, and why

    @property
    def teacher(self) -> Cell:
        """The teacher's own row."""
        return Cell(TEACHER, self.bench.teacher_steps, False, None)

    def heuristic(self) -> list[list[Cell]]:
        """Return the cells of the heuristic grids, those of equal cost together."""
        c = self.config
        return [[Cell(grid, n, a, None) for grid in self.grids] for n in c.nfe for a in c.afs]

    def learned(self) -> list[Cell]:
        """Return the cells of the chosen methods; ``skipped`` notes what a method cannot do.

        A method of two evaluations a step spends an odd number only with an analytic first step,
        and an even number only without. It then gets the cell that it can do.
        """
        c, cells = self.config, []
        for seed in c.seeds:
            for nfe in c.nfe:
                for name in chosen(c.methods):
                    wanted = [Cell(name, nfe, afs, seed) for afs in c.afs]
                    possible = [cell for cell in wanted if self._possible(cell)]
                    other = [replace(cell, afs=not cell.afs) for cell in wanted[:1]]
                    cells += possible or [cell for cell in other if self._possible(cell)]
        return cells

    def shipped(self) -> list[Cell]:
        """Return the cells of samplers that come with the package, if they are asked for."""
        if not self.config.shipped:
            return []
        there = artifact.shipped_names()
        return [
            Cell(method, nfe, False, None)
            for nfe in self.config.nfe
            for method, name in self._shipped_names().items()
            if name.format(nfe) in there
        ]

    def method(self, cell: Cell) -> Method:
        """Return the configured method of a learned cell.

        Raises:
            ValueError: if the method cannot spend that many evaluations.
        """
        variant = VARIANTS[cell.method]
        fitting = replace(self.sizes.recipe, seed=int(cell.seed or 0))
        shared, own = self.bench.shared, self.bench.own(variant.method)
        return variant.config(shared, own, fitting, nfe=cell.nfe, analytic_first=cell.afs)

    def sampler(self, cell: Cell) -> Sampler:
        """Return the fitted, heuristic or shipped sampler of a finished cell."""
        shipped = self._shipped_names()
        if cell.method in shipped:
            return artifact.load(shipped[cell.method].format(cell.nfe))
        if cell.seed is not None:
            return artifact.load(self.folder / "artifacts" / cell.name)
        return self.bench.grid_sampler(cell.method, cell.nfe + cell.afs, analytic_first=cell.afs)

    def shown(self, rows: Iterable[dict[str, Any]], nfe: int) -> list[tuple[str, Sampler]]:
        """Return what a picture shows at one number of evaluations, by name.

        That is the best grid, the first seed of each main method without AFS, and what ships.
        """
        names = self._shipped_names()
        here = [r for r in rows if r["nfe"] == nfe and (r["method"] in names or not r.get("afs"))]
        grids = [row for row in here if row["method"] in self.grids]
        best = sorted(grids, key=lambda row: row["heldout_loss"])[:1]
        there = artifact.shipped_names()
        shipped = (method for method, name in names.items() if name.format(nfe) in there)
        learned = [
            row
            for method in (*MAIN, *shipped)
            for row in here
            if row["method"] == method and row["seed"] in (None, self.config.seeds[0])
        ]
        cells = [Cell(row["method"], nfe, False, row["seed"]) for row in (*best, *learned)]
        return [(cell.method, self.sampler(cell)) for cell in cells]

    def unlearned_identity(self, cell: Cell, samples: int) -> dict[str, Any]:
        """Return what the row of a grid or a shipped sampler depends on.

        Another release may ship another sampler under the same name, so its files count.
        """
        name = self._shipped_names().get(cell.method)
        folder = None if name is None else artifact.SHIPPED / name.format(cell.nfe)
        files = {} if folder is None else {file: checksum(folder / file) for file in artifact.FILES}
        tuning = [self.sizes.endpoints, self.sizes.recipe.holdout]
        sizes = {"heldout": self.sizes.heldout, "samples": samples, "tuning": tuning}
        return sizes | {"shared": self.bench.shared} | files

    def learned_identity(self, cell: Cell) -> dict[str, Any]:
        """Return what the row of a fitted sampler depends on."""
        sizes = {name: getattr(self.sizes, name) for name in ("endpoints", "heldout", "samples")}
        method = {"method": VARIANTS[cell.method].method, "config": asdict(self.method(cell))}
        return method | sizes

    def _shipped_names(self) -> dict[str, str]:
        return SHIPPED.get(self.bench.name, {})

    def _possible(self, cell: Cell) -> bool:
        try:
            method = self.method(cell)
            if not getattr(method, "use_condition", True) and not self._has_condition():
                raise ValueError(f"{self.bench.denoiser.name} has no condition to leave out")
        except ValueError as error:
            name = f"{cell.method} at {cell.nfe} NFE{' with AFS' if cell.afs else ''}"
            self.skipped[name] = str(error)
            return False
        return True

    def _has_condition(self) -> bool:
        return self.bench.denoiser.condition([0]).features is not None

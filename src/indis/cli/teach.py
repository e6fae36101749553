"""``indis teach``: make teacher endpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from indis import grids
from indis.cli.console import WithModel, bar, emit, say, writable, writable_file
from indis.endpoints import TeachConfig, teach_folder
from indis.methods import heuristic
from indis.storage import describe


@dataclass(frozen=True)
class Teach(WithModel):
    """Run a many-step teacher on seeds and store its end points; run again to resume, with a larger
    count to add some.

    Example: indis teach --model fashion --count 10000 --out runs/endpoints
    """

    out: Path
    """Folder that the endpoints are written into, new or of the same teacher."""
    model: str = "fashion"
    """Model: toy, toy:AB, fashion, or fashion:PATH with the folder of `indis train-model` or a file
    of weights."""
    solver: str = "ipndm:3"
    """Teacher's solver: euler, heun, ipndm, adams_bashforth, deis, dpmpp, unipc or midpoint, as
    name[:order[:variant]]."""
    grid: str = "natural"
    """Teacher's grid: natural (polynomial:7, or uniform for a flow), uniform, log_snr, polynomial,
    quadratic, vp_time,
    flow_shift or resolution, as name[:parameter], or list:T0,T1,... of times."""
    steps: int = 30
    """Number of the teacher's steps; many, as its end points are what a fit aims at."""
    config: Annotated[TeachConfig, tyro.conf.arg(name="")] = field(default_factory=TeachConfig)
    """Which seeds."""
    json: Path | None = None
    """Write how many there are, where, and how they were made to this file."""

    def run(self) -> None:
        """Write the shards."""
        denoiser = self.load_model(self.model)
        grid = grids.resolve_grid(self.grid, denoiser.schedule)
        teacher = heuristic(denoiser, solver=self.solver, grid=grid, steps=self.steps)
        provenance = {
            "model": self.model,
            "weights": denoiser.fingerprint,
            "solver": describe(teacher.solver),
            "grid": grid,
            "steps": self.steps,
            "nfe": teacher.nfe,
        }
        writable(self.out)
        writable_file(self.json, {self.out: ("meta.json", "endpoints-*")})
        mended: tuple[str, ...] = ()
        with bar() as progress:
            task = progress.add_task("teacher endpoints", total=self.config.count)
            for state in teach_folder(
                self.config, denoiser, teacher, self.out, provenance=provenance
            ):
                progress.update(task, completed=state.done)
                mended = state.mended
        if mended:
            say(f"made again what was missing or damaged in {self.out}: {', '.join(mended)}")
        say(f"{self.config.count} endpoints of {teacher.nfe} evaluations each in {self.out}")
        emit({"out": str(self.out), **asdict(self.config), **provenance}, self.json)

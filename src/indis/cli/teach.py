"""``indis teach``: make teacher endpoints."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from indis import grids
from indis.checks import require_memory
from indis.cli.console import JsonFile, bar, default, emit, say
from indis.cli.model import WithModel, describe_pipeline
from indis.cli.paths import writable, writable_file
from indis.cli.sampler import MOST_STEPS
from indis.endpoints import TeachConfig, teach_folder
from indis.methods import heuristic
from indis.storage import describe
from indis.writer import one_writer

BANK = "conditions"


@dataclass(frozen=True)
class Teach(WithModel):
    """Run a many-step teacher on seeds and store where it ends.

    Run it again to resume, or with a larger count to add some.

    Example: indis teach --model fashion --count 10000 --out runs/endpoints
    """

    keeps: ClassVar[str] = "meta.json"

    out: Path
    """Folder for the endpoints: a new one, or one of the same teacher."""
    model: str = "fashion"
    """Model that is sampled."""
    solver: str = "ipndm:3"
    """Solver of the teacher."""
    grid: str = "natural"
    """Timesteps of the teacher."""
    prompts: Annotated[Path | None, default("none", "FILE")] = None
    """Prompts for a pipeline, one a line. Seeds take them in turn. Each is encoded once."""
    heldout_prompts: int = 0
    """The last so many prompts are kept out of teaching."""
    judge: bool = False
    """Teach the held-out prompts instead of the others, to evaluate with."""
    guidance: Annotated[float | None, default("the pipeline's own", "G")] = None
    """Guidance scale that a pipeline is called with."""
    size: Annotated[str | None, default("the pipeline's own", "WxH")] = None
    """Width and height of a pipeline's pictures."""
    steps: int = 30
    """Number of the teacher's steps. A fit aims at its samples, so take many."""
    config: Annotated[TeachConfig, tyro.conf.arg(name="")] = field(default_factory=TeachConfig)
    """Which seeds."""
    json: JsonFile = None
    """Write how many there are, where, and how they were made."""

    def run(self) -> None:
        """Write the endpoints.

        Raises:
            ValueError: If the number of steps is out of range.
        """
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"steps must be in 1 ... {MOST_STEPS}, got {self.steps}")
        model = self._spec()
        writable(self.out)  # encoded prompts are the first that is written
        denoiser = self.load_model(model)
        grid = grids.resolve_grid(self.grid, denoiser.schedule)
        teacher = heuristic(denoiser, solver=self.solver, grid=grid, steps=self.steps)
        # A shard's noise, end points and their copies lie in memory at once.
        a_sample = 16 * math.prod(denoiser.shape)
        require_memory("shard", min(self.config.shard, self.config.count), a_sample)
        require_memory("batch", min(self.config.batch, self.config.count), a_sample)
        provenance = {
            "model": model,
            **describe_pipeline(denoiser),
            "weights": denoiser.fingerprint,
            "solver": describe(teacher.solver),
            "grid": grid,
            "steps": self.steps,
            "nfe": teacher.nfe,
        }
        writable_file(self.json, {self.out: ("meta.json", "endpoints-*")})
        remade: tuple[str, ...] = ()
        with one_writer(self.out), bar() as progress:
            task = progress.add_task("teacher endpoints", total=self.config.count)
            for state in teach_folder(
                self.config, denoiser, teacher, self.out, provenance=provenance
            ):
                progress.update(task, completed=state.done)
                remade = state.remade
        if remade:
            say(f"made again what was missing or damaged in {self.out}: {', '.join(remade)}")
        say(f"{self.config.count} endpoints of {teacher.nfe} evaluations each in {self.out}")
        emit({"out": str(self.out), **asdict(self.config), **provenance}, self.json)

    def _spec(self) -> str:
        """Return the model with the options of a pipeline, so that later commands find them.

        Raises:
            ValueError: If such options are given for another model.
        """
        prompts = None if self.prompts is None else self.prompts.resolve()
        options = {
            "prompts": prompts,
            "heldout": self.heldout_prompts or None,
            "guidance": self.guidance,
            "size": self.size,
        }
        given = [f"{name}={value}" for name, value in options.items() if value is not None]
        given += ["judge"] * self.judge
        pipeline = self.model.partition(":")[0] == "diffusers"
        if given and not pipeline:
            name = given[0].partition("=")[0]
            raise ValueError(
                f"{name} must be left out for model {self.model}, which is no pipeline of diffusers"
            )
        if prompts is not None:
            given.append(f"bank={(self.out / BANK).resolve()}")
        return ",".join([self.model, *given])

"""``indis bench toy``: the paper's study of an exact 2-D denoiser."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from indis.bench.toy_study import Cell, ToyConfig, ToyStudy
from indis.cli.console import JsonFile, bar, emit, say
from indis.cli.paths import writable, writable_file
from indis.storage import save_json, save_tensors

OWN = TABLE, SCATTER = "toy.json", "toy_scatter.safetensors"


@dataclass(frozen=True)
class ToyCommand:
    """Compare uniform, global, per-instance and oracle timesteps (paper, Figs. 2-3).

    Example: indis bench toy --quick --json toy.json

    Example: indis bench toy --out runs/toy
    """

    quick: bool = False
    """Use small sizes, for under 90 seconds, where none are given."""
    out: Path | None = None
    """Folder for what `indis bench report` draws."""
    workers: int | None = None
    """Number of processes, by default one for each core. Results do not depend on it."""
    json: JsonFile = None
    """Write the list of cells."""
    config: Annotated[ToyConfig, tyro.conf.arg(name="")] = field(default_factory=ToyConfig)
    """Sizes and settings of the study."""

    def run(self) -> None:
        """Run it and print the cells."""
        if self.out is not None:
            writable(self.out)
        writable_file(self.json, {self.out: OWN} if self.out else {})
        study = ToyStudy(self.config.quick() if self.quick else self.config)
        run_study(study, self._workers(study))
        for line in lines(study):
            say(line)
        if self.out is not None:
            write(study, self.out)
        emit(study.results(), self.json)

    def _workers(self, study: ToyStudy) -> int:
        cores = os.cpu_count() or 1
        return min(cores, len(study.config.steps)) if self.workers is None else self.workers


def run_study(study: ToyStudy, workers: int = 1) -> None:
    """Run under a progress bar."""
    with bar() as progress:
        task = progress.add_task("toy", total=study.total)
        for state in study.run(workers):
            progress.update(task, completed=state.done, description=f"toy: {state.doing}")


def write(study: ToyStudy, folder: Path) -> None:
    """``toy.json`` and ``toy_scatter.safetensors``, what the report reads; the latter is of N = 3
    alone.
    """
    save_json(folder / TABLE, study.results())
    errors = {f"error {name}": value for name, value in study.scatter.items()}
    starts = {f"noise_{split}": data.noise for split, data in study.data.items()}
    if errors:
        save_tensors(folder / SCATTER, errors | starts)
    else:  # that of an earlier run would stand beside numbers of another
        (folder / SCATTER).unlink(missing_ok=True)


def lines(study: ToyStudy) -> list[str]:
    """The cells as aligned text."""
    names = f"{'policy':9} {'freedoms':15} {'N':>2} {'split':8}"
    head = f"{names} {'sq. dist':>9} {'KL':>7} {'W1':>7} {'params':>8}"
    rows = [_line(cell) for cell in study.cells]
    floors = [
        f"floors of exact samples: KL {c.kl_floor:.4f}, W1 {c.w1_floor:.4f}"
        for c in study.cells[:1]
    ]
    return [head, *rows, *floors]


def _line(cell: Cell) -> str:
    named = f"{cell.policy:9} {cell.freedoms:15} {cell.steps:2d} {cell.split:8}"
    return (
        f"{named} {cell.squared_distance:9.5f} {cell.kl:7.4f} {cell.w1:7.4f} {cell.parameters:8d}"
    )

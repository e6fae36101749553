"""``indis report``: a run folder to one HTML page, and its figures to files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from indis.cli.console import emit, say
from indis.cli.paths import writable, writable_file


@dataclass(frozen=True)
class Report:
    """Draw everything that a run folder holds into one self-contained page; loads no model.

    Example: indis report --run runs/demo --out report.html

    Example: indis report --run runs/compare --figures docs
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """Folder with any of results.json, toy.json, samples.safetensors, plans.safetensors,
    curves.json, or with a folder
    for each model, as `indis compare` makes it."""
    out: Path | None = None
    """The page; report.html in the folder by default."""
    figures: Path | None = None
    """Also write PNG files there: compare-<model>-<figure>.png of comparisons (dots, nfe, pareto,
    ablation),
    curves.png or curves-<folder>.png of learning curves, toy_fig2.png and toy_fig3.png of the toy
    study, picture.png of samples."""
    json: Path | None = None
    """Write the page's path, its sections and the figures' paths to this file."""

    def run(self) -> None:
        """Write the page, then the figures."""
        from indis.bench.report.page import SECTIONS, write_figures, write_report

        out = self.out or self.run_folder / "report.html"
        writable_file(self.out)
        drawn = {self.figures: ("*.png",)} if self.figures else {}
        read = [pattern for section in SECTIONS for pattern in (section.file, f"*/{section.file}")]
        writable_file(self.json, {out: ()} | drawn | {self.run_folder: read})
        if self.figures:
            writable(self.figures)
        sections = write_report(self.run_folder, out)
        say(f"{out}: {', '.join(sections)}")
        figures = write_figures(self.run_folder, self.figures) if self.figures else []
        for path in figures:
            say(str(path))
        emit(
            {"page": str(out), "sections": sections, "figures": [str(path) for path in figures]},
            self.json,
        )

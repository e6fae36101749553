"""``indis bench report``: a web page of a folder of results, and its figures as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from indis.cli.console import JsonFile, emit, say
from indis.cli.paths import writable, writable_file


@dataclass(frozen=True)
class Report:
    """Draw everything that a folder of results holds on one web page.

    Example: indis bench report --run runs/demo --out report.html

    Example: indis bench report --run runs/compare --figures docs
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """Folder that an experiment or `indis evaluate --json` wrote, or one that holds several."""
    out: Path | None = None
    """File for the page, by default report.html in that folder."""
    figures: Path | None = None
    """Folder for the figures as PNG files, if they are wanted too."""
    json: JsonFile = None
    """Write where the page and the figures are, and which sections there are."""

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

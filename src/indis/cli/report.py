"""``indis report``: a run folder to one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from indis.cli.console import say


@dataclass(frozen=True)
class Report:
    """Draw everything that a run folder holds into one self-contained page; loads no model.

    Example: indis report --run runs/demo --out report.html
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """Folder with any of toy.json, fashion.json, samples.safetensors, plans.safetensors, curves.json."""
    out: Path | None = None
    """The page; report.html in the folder by default."""

    def run(self) -> None:
        """Write the page."""
        from indis.report.page import write_report

        out = self.out or self.run_folder / "report.html"
        sections = write_report(self.run_folder, out)
        say(f"{out}: {', '.join(sections)}")

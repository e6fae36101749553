"""``indis bench curves``: what an instance gains, as a function of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from indis.bench import suite as bench
from indis.bench.curves import GOD, Curves, CurvesConfig
from indis.cli.console import JsonFile, bar, emit, say
from indis.cli.model import WithModel
from indis.cli.paths import writable, writable_file

OWN = ("endpoints/*", "heldout/*", "curves/*")


@dataclass(frozen=True)
class CurvesCommand(WithModel):
    """Fit one plan for all, phi, look, local and each sample's own plan at length.

    Run it again to go on. `indis bench report OUT/MODEL/curves` draws the curves.

    Example: indis bench curves --model galaxies --steps 3 --pairs 2000 4500
    """

    keeps: ClassVar[str] = "*/curves/*/row.json"

    model: str = "galaxies"
    """Model: toy, fashion or galaxies."""
    out: Path = Path("runs/curves")
    """Folder for the results; the model's is below it."""
    config: Annotated[CurvesConfig, tyro.conf.arg(name="")] = field(default_factory=CurvesConfig)
    """Which lines, and their budgets."""
    json: JsonFile = None
    """Write the settings and all rows."""

    def run(self) -> None:
        """Fit the missing lines, then print one row a line."""
        kind, folder = bench.named(self.model), self.out / self.model
        writable_file(self.json, {folder: OWN})
        curves = Curves(self.config, kind(device=self.place), folder)
        writable(folder)
        with bar() as progress:
            task = progress.add_task(self.model, total=1)
            for state in curves.run():
                progress.update(
                    task, completed=state.done, total=state.total, description=state.doing
                )
        if len(curves.denoiser.shape) == 3 and GOD in self.config.lines:
            for nfe in self.config.steps:
                curves.draw(nfe)
        result = curves.collect()
        say(f"{'line':28} {'held out':>9} {'± error':>8} {'train':>8} {'seconds':>8}")
        for row in result["rows"]:
            train = format(row["train_loss"], ".5f") if "train_loss" in row else ""
            fell = "  fell back to the shared plan" if row.get("fell_back") else ""
            say(
                f"{row['name']:28} {row['loss']:9.5f} {row['error']:8.5f} {train:>8} "
                f"{row['seconds']:8.0f}{fell}"
            )
        emit(result, self.json)

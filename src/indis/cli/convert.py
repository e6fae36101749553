"""``indis convert``: published checkpoints into files that cannot run anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from indis.cli.console import bar, say
from indis.cli.paths import writable
from indis.models.edm import convert


@dataclass(frozen=True)
class Convert:
    """Convert NVIDIA's EDM pickle into safetensors and JSON, without running it.

    Example: indis convert edm edm-cifar10-32x32-uncond-vp.pkl --out edm-cifar10
    """

    family: tyro.conf.Positional[Literal["edm"]]
    """Whose checkpoint it is."""
    file: tyro.conf.Positional[Path]
    """The checkpoint."""
    out: Path
    """Folder that is written, for --model edm:FOLDER."""
    net: Literal["ema", "raw"] = "ema"
    """Network of the file: the averaged one, or the raw one where there is one."""

    def run(self) -> None:
        """Convert it."""
        writable(self.out)
        size = self.file.stat().st_size if self.file.is_file() else None
        with bar() as progress:
            task = progress.add_task("bytes", total=size)
            count = convert.convert(
                self.file, self.out, self.net, lambda done: progress.update(task, completed=done)
            )
        say(f"wrote {count} parameters into {self.out}; use them with --model edm:{self.out}")

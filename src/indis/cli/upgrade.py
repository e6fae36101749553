"""``indis upgrade``: convert an artifact of the previous format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from indis import artifact
from indis.cli.console import say
from indis.cli.paths import writable


@dataclass(frozen=True)
class Upgrade:
    """Convert an artifact of the previous version. What was learned stays the same.

    Example: indis upgrade runs/indis-n3
    """

    folder: tyro.conf.Positional[Path]
    """Folder of the artifact, which is converted in place."""

    def run(self) -> None:
        """Convert it."""
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is not an artifact: there is no such folder")
        artifact.upgrade(writable(self.folder))
        say(f"{self.folder} has format {artifact.FORMAT} now")

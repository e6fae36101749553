"""Finished cells of a comparison on disk: a cache, in which a row stands beside what it depends on.

A row is reused only for the same weights, end points, sizes, configuration and code. The key that
is stored with it is a digest of all of these; with any other key the cell is computed again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indis.bench.provenance import code_version, made_by
from indis.sealed import load_record, save_record
from indis.storage import DamagedFileError, digest

TEACHER = "teacher"
FORMAT = 1
# What a row may or may not have been measured by; every row has all of them, None where it was not.
MEASURED = ("perceptual", "fd", "kl", "w1", "fit_seconds", "validation_loss")


@dataclass(frozen=True)
class Cell:
    """One entry of a comparison's table: a method at a number of evaluations."""

    method: str
    nfe: int
    afs: bool
    seed: int | None  # None where nothing is learned

    @property
    def name(self) -> str:
        """The name of its file."""
        seed = "" if self.seed is None else f" s{self.seed}"
        text = f"{self.method} nfe{self.nfe}{' afs' if self.afs else ''}{seed}"
        return text.translate(str.maketrans(" ", "-", ":()"))

    @classmethod
    def of(cls, row: dict[str, Any]) -> Cell:
        """Return the cell that a row of the table describes."""
        return cls(row["method"], row["nfe"], row["afs"], row["seed"])


class CellCache:
    """The rows in ``folder/cells`` and the fitted samplers in ``folder/artifacts``.

    Args:
        folder: Folder of one model's comparison.
        common: What the scores of all cells depend on, such as the weights of the model.
    """

    def __init__(self, folder: Path, common: Sequence[str]) -> None:
        self.folder, self.common = folder, list(common)

    def key(self, identity: Any) -> str:
        """Return the digest of a cell's own ``identity``, what is common to all, and the code."""
        return digest([*self.common, code_version(), identity])

    def home(self, cell: Cell) -> Path:
        """Return the folder of a cell's fitted sampler, checkpoint and learning curve."""
        return self.folder / "artifacts" / cell.name

    def is_finished(self, cell: Cell, identity: Any) -> bool:
        """Return whether there is a row of this cell for the same identity."""
        path = self._path(cell)
        return path.exists() and read_cell(path)["identity"] == self.key(identity)

    def row(self, cell: Cell) -> dict[str, Any]:
        """Return the row of a finished cell."""
        return read_cell(self._path(cell))["row"]

    def keep(self, cell: Cell, identity: Any, row: dict[str, Any]) -> None:
        """Store a row, with the version and commit that made it."""
        content = {"identity": self.key(identity), "row": row | made_by()}
        save_record(self._path(cell), FORMAT, content)

    def forget(self, cell: Cell) -> None:
        """Remove a cell's row and its fitted sampler."""
        self._path(cell).unlink(missing_ok=True)
        shutil.rmtree(self.home(cell), ignore_errors=True)

    def stored(self) -> list[dict[str, Any]]:
        """Return every stored ``{"identity": ..., "row": ...}``, those of earlier runs included.

        Rows that an earlier version wrote get the keys that they lack, with None.
        """
        parts = [
            read_cell(path, "method", "nfe")
            for path in sorted((self.folder / "cells").glob("*.json"))
        ]
        keys = (*MEASURED, "device", *made_by())
        return [
            part | {"row": dict.fromkeys(keys) | part["row"]}
            if part["row"]["method"] != TEACHER
            else part
            for part in parts
        ]

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"


def read_cell(path: Path, *needs: str) -> dict[str, Any]:
    """Return the ``{"identity": ..., "row": ...}`` of a finished cell.

    Args:
        path: its file.
        needs: what its row must have.

    Raises:
        DamagedFileError: if it is damaged or incomplete.
    """
    content = load_record(path, FORMAT)
    identity, row = content.get("identity"), content.get("row")
    if not isinstance(identity, str) or not isinstance(row, dict):
        raise DamagedFileError(path, "is not a complete cell: delete it to compute it again")
    if absent := [name for name in needs if name not in row]:
        raise DamagedFileError(path, f"is not a complete cell: its row lacks {absent[0]}")
    return {"identity": identity, "row": row}

"""Checks of output paths, made before any work is done. Nothing is created by them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path


def writable(folder: Path) -> Path:
    """Return the folder if files can be written into it, whether it exists yet or not.

    Raises:
        OSError: If they cannot.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        if existing == folder:
            raise NotADirectoryError(f"{folder} is a file, a folder is expected")
        name = os.path.relpath(existing)
        raise NotADirectoryError(f"{folder} cannot be made: {name} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing} is not writable")
    return folder


def writable_file(path: Path | None, own: Mapping[Path, Sequence[str]] | None = None) -> None:
    """Pass if an output file is not wanted, or can be written.

    Args:
        path: The file.
        own: Files and folders that the command writes besides; for each folder patterns of the
            files in it.

    Raises:
        OSError: If it cannot be written.
        ValueError: If it is one of the command's own files, or no plain file.
    """
    if path is None:
        return
    for place, patterns in (own or {}).items():
        whole, root = path.resolve(), place.resolve()
        inside = whole.relative_to(root).as_posix() if whole.is_relative_to(root) else None
        if inside is not None and any(fnmatchcase(inside, part) for part in (".", *patterns)):
            raise ValueError(
                f"json must be another file than those that the command writes itself, got {path}"
            )
    writable(path.parent)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, a file is expected")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        # It would be replaced, not written to.
        raise ValueError(f"{path} is a link or a device, a plain file is expected")

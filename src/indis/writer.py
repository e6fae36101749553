"""One writer a folder: a lock that dies with its process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from indis.storage import TEMPORARY


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Make a folder and be its only writer; remove what dead ones left half-written.

    A folder that is made and stays empty is removed at the end.

    The lock is the system's, on the folder itself: it leaves no file and ends with its process,
    however that dies. Windows has no such lock, so there nothing is locked.

    Raises:
        BlockingIOError: if another process writes into it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{folder} is being written by another process: wait for it, or give another folder"
            ) from None
        for left in folder.rglob(f".*{TEMPORARY}"):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)
        with suppress(OSError):  # one that is not empty stays
            for path in made:
                path.rmdir()

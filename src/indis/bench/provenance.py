"""Which code made a number: rows of a result name it, and cached rows are reused only with it."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import indis
from indis.storage import checksum, digest

PACKAGE = Path(indis.__file__).parent
# Commands, drawings and foreign pipelines do not change a number that a comparison computes.
WITHOUT_NUMBERS = ("cli", "bench/report", "diffusers")


def made_by() -> dict[str, str]:
    """Return the package's version and the commit, which every written row carries.

    In a checkout of this project the commit is what ``git describe --always --dirty`` prints;
    elsewhere it is the version again.
    """
    return {"version": indis.__version__, "commit": _commit()}


@cache
def _commit() -> str:
    def git(*arguments: str) -> str:
        call = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(
            call, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        # An installed package may lie inside somebody else's checkout, whose commit says nothing.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--tags")
    except (OSError, subprocess.SubprocessError):
        return indis.__version__


@cache
def code_version() -> str:
    """Return a digest of the version and of every source file that a number may depend on."""
    skipped = tuple(f"{name}/" for name in WITHOUT_NUMBERS)
    names = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    sources = {name: checksum(PACKAGE / name) for name in names if not name.startswith(skipped)}
    return digest([indis.__version__, sources])

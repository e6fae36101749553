"""Checks that configurations make when they are built, and the wording of numbers in errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args


def require_least(config: object, **least: int) -> None:
    """Refuse a configuration whose named fields are not whole numbers of a least size.

    Args:
        config: the object whose attributes are checked.
        least: the smallest value of each named field.

    Raises:
        ValueError: naming the first field that is not.
    """
    for name, low in least.items():
        value = getattr(config, name)
        if not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")


def require_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a value that is none of a ``Literal``'s; annotations alone refuse nothing.

    Args:
        name: what the value is called in the error.
        value: the value given.
        choices: the ``Literal`` type.

    Raises:
        ValueError: naming the choices.
    """
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"{name} must be {', '.join(known[:-1])} or {known[-1]}, got {value!r}")


def number_text(value: float) -> str:
    """Return the shortest text that reads back as the same number: "80", "0.029167129"."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def memory_left() -> int:
    """Return how many bytes of memory this machine could still give a process."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_memory(name: str, value: int, bytes_each: float, power: int = 1) -> None:
    """Refuse a size that cannot fit into memory, before any work.

    Args:
        name: what the size is called.
        value: the size given.
        bytes_each: memory of a size of one.
        power: of the size in its memory; 2 for the width of a square layer.

    Raises:
        ValueError: naming the largest size that fits.
    """
    left = memory_left()
    if bytes_each * value**power > left:
        most = int((left / bytes_each) ** (1 / power))
        raise ValueError(
            f"{name} must be at most {most} to fit into the {left / 2**30:.1f} GiB of memory that "
            f"are free here, got {value}"
        )

"""Checks that configurations make when they are built, and the wording of numbers in errors."""

from __future__ import annotations

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

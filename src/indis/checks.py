"""What configs ask of themselves when they are built."""

from __future__ import annotations

from typing import Any, get_args


def require_least(config: object, **least: int) -> None:
    """Pass if the named fields of a config are whole numbers, at least so large.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, low in least.items():
        value = getattr(config, name)
        if not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")


def require_choice(name: str, value: str, choices: Any) -> None:
    """Pass if a value is one of a ``Literal``'s; scripts are not held to their annotations.

    Raises:
        ValueError: naming those.
    """
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"{name} must be {', '.join(known[:-1])} or {known[-1]}, got {value!r}")

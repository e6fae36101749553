"""What configs ask of themselves when they are built."""

from __future__ import annotations

from typing import Any, get_args


def require_least(config: object, **least: int) -> None:
    """Pass if the named fields of a config are at least so large.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, low in least.items():
        if getattr(config, name) < low:
            raise ValueError(f"{name} must be at least {low}, got {getattr(config, name)}")


def require_choice(name: str, value: str, choices: Any) -> None:
    """Pass if a value is one of a ``Literal``'s; scripts are not held to their annotations.

    Raises:
        ValueError: naming those.
    """
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"{name} must be {', '.join(known[:-1])} or {known[-1]}, got {value!r}")

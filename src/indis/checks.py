"""What configs ask of themselves when they are built."""

from __future__ import annotations


def require_least(config: object, **least: int) -> None:
    """Pass if the named fields of a config are at least so large.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, low in least.items():
        if getattr(config, name) < low:
            raise ValueError(f"{name} must be at least {low}, got {getattr(config, name)}")

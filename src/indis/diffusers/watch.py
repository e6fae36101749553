"""Watch a method of one object."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

Seen = Callable[[Any, Mapping[str, Any]], Any]


def watch(thing: Any, name: str, seen: Seen) -> Callable[[], None]:
    """Let a function change what a method of this one object returns.

    Args:
        thing: The object.
        name: The name of the method.
        seen: Gets what the method returned and its arguments by name; its result takes the place
            of the former.

    Returns:
        A function that ends it.
    """
    method = getattr(thing, name)
    signature = inspect.signature(method)

    @functools.wraps(method)
    def watched(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return seen(method(*args, **kwargs), bound.arguments)

    return exchange(thing, name, watched)


def exchange(thing: Any, name: str, method: Callable[..., Any]) -> Callable[[], None]:
    """Put a function in the place of a method of this one object.

    Returns:
        A function that takes it away.
    """
    before = vars(thing).get(name)

    def restore() -> None:
        delattr(thing, name) if before is None else setattr(thing, name, before)

    setattr(thing, name, method)
    return restore

"""Finds the classes of a package's files, so that a new solver or method is one new file."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterable
from importlib import import_module


def classes_in(package: str, path: Iterable[str]) -> list[type]:
    """Import all modules of a package and return the classes defined there, by file and line.

    Args:
        package: The package's name.
        path: Its ``__path__``.
    """
    modules = [import_module(f"{package}.{m.name}") for m in pkgutil.iter_modules(path)]
    return [
        kind
        for module in modules
        for kind in vars(module).values()
        if inspect.isclass(kind) and kind.__module__ == module.__name__
    ]

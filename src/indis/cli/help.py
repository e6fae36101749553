"""The names that options take, listed from the registries below every help page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from textwrap import fill
from typing import Any, get_args, get_origin

from indis import artifact, models
from indis.grids import GRIDS
from indis.methods import METHODS
from indis.solvers import SOLVERS

SUFFIXES = "-god is one plan for all samples, -local also corrects each place"

# For each option: what its values are called, the names there are, and what may follow a name.
LISTED: dict[str, tuple[str, Callable[[], Iterable[str]], str]] = {
    "method": ("Methods", lambda: METHODS, ""),
    "solver": ("Solvers", lambda: SOLVERS, "as name[:order[:variant]]"),
    "grid": (
        "Grids",
        lambda: GRIDS,
        "as name[:parameter], or list:T0,T1,... of times; natural is "
        "polynomial:7, or uniform for a flow",
    ),
    "loss": ("Losses", models.loss_names, ""),
    "model": (
        "Models",
        models.families,
        "as name[:detail], or module:function of your own",
    ),
    "artifact": ("Shipped artifacts", artifact.shipped_names, SUFFIXES),
}


def named_below(command: Any) -> str:
    """Return the names that a command's options take, as lines for the foot of its help.

    Args:
        command: A dataclass, or an alias of a generic one whose arguments are dataclasses.
    """
    given = {
        field.name
        for kind in (get_origin(command) or command, *get_args(command))
        if is_dataclass(kind)
        for field in fields(kind)
    }
    width = min(shutil.get_terminal_size().columns, 100)
    lines = []
    for option, (title, names, form) in LISTED.items():
        if {option, f"{option}s"} & given:
            text = f"{title}: {', '.join(names())}" + (f"; {form}" if form else "")
            lines.append(fill(text, width, subsequent_indent="  ", break_on_hyphens=False))
    return "\n".join(lines)

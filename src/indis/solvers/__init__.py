"""Solvers, the stepper and the loop.

A file that is put here is found: a frozen dataclass with a ``name`` is a solver.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from indis.discovery import classes_in
from indis.solvers.adams import DEIS, IPNDM, AdamsBashforth, Euler
from indis.solvers.base import Coefficients, Parallel, Solver
from indis.solvers.dpmpp import DPMSolverPP
from indis.solvers.heun import Heun
from indis.solvers.loop import State, last, solve, trajectory
from indis.solvers.midpoint import Midpoint
from indis.solvers.stepper import Stepper
from indis.solvers.tableau import step_coefficients
from indis.solvers.unipc import UniPC

# All solvers of this package's files, by the name that commands use.
SOLVERS: dict[str, type] = {
    vars(kind)["name"]: kind
    for kind in classes_in(__name__, __path__)
    if isinstance(vars(kind).get("name"), str)
}

__all__ = [
    "DEIS",
    "IPNDM",
    "SOLVERS",
    "AdamsBashforth",
    "Coefficients",
    "DPMSolverPP",
    "Euler",
    "Heun",
    "Midpoint",
    "Parallel",
    "Solver",
    "State",
    "Stepper",
    "UniPC",
    "last",
    "named",
    "solve",
    "step_coefficients",
    "trajectory",
]


def named(spec: str) -> Solver:
    """Return the solver that a text means.

    Args:
        spec: ``name[:order[:variant]]``, for example ``ipndm:4`` or ``unipc:3:bh1``.

    Raises:
        ValueError: If the name is unknown or a parameter is not accepted.
    """
    name, *values = spec.split(":")
    if name not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {name!r}")
    slots = [f for f in fields(SOLVERS[name]) if f.default is not MISSING]
    if len(values) > len(slots):
        raise ValueError(f"solver {name} takes {len(slots)} parameters, got {spec!r}")
    return SOLVERS[name](
        **{
            slot.name: _read(value, slot.default, spec)
            for slot, value in zip(slots, values, strict=False)
        }
    )


def _read(text: str, default: Any, spec: str) -> Any:
    """Read a parameter in the type of its default."""
    if isinstance(default, bool):
        if text in ("true", "false"):
            return text == "true"
    elif isinstance(default, int):
        if text.isdigit():
            return int(text)
    else:
        return text
    raise ValueError(
        f"solver parameter {text!r} in {spec!r} must be of type {type(default).__name__}"
    )

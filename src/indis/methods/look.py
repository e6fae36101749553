"""Look, then plan: INDIS that decides after evaluations too, and corrects multistep weights. Beyond
the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from indis.methods.indis import INDIS


@dataclass(frozen=True)
class Look(INDIS):
    """INDIS with a closed loop (see :mod:`indis.policies.closed`) and all freedoms."""

    look: Literal["never", "first", "every"] = "every"  # when phi reads the answers it gets
    weights: float = 0.5  # largest correction of the multistep weights; 0 for none

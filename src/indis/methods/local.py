"""Look, plan, then correct place by place: *look* with a tiny network for what differs across a
picture.

See :mod:`indis.policies.local`. With ``look="first"`` the plan is made once and places are still
read at every node, which costs half as much. Beyond the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from indis.checks import require_choice, require_least
from indis.denoise import Denoiser
from indis.methods.look import Look
from indis.policies import ClosedLoop, LocalLoop
from indis.policies.local import Correction


@dataclass(frozen=True)
class Local(Look):
    """*Look* with corrections of each place.

    Raises:
        ValueError: for a number outside its range, or an unknown kind of correction.
    """

    loop: ClassVar[type[ClosedLoop]] = LocalLoop

    local: Correction = (
        "both"  # what corrects each place: multistep weights of its own, a free picture, or both
    )
    local_width: int = 24  # channels of the network that reads places
    width: int = 96  # width of the hidden layers; smaller than look's, so that both networks together stay cheap

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("local", self.local, Correction)
        require_least(self, local_width=1)
        if self.look == "never":
            raise ValueError("look must be first or every for corrections of places, got 'never'")

    @property
    def freedoms(self) -> str:
        """Also how places are corrected."""
        return f"{super().freedoms}+local {self.local}"

    def network(self, denoiser: Denoiser, order: int) -> dict[str, Any]:
        """Also what reads places."""
        return super().network(denoiser, order) | {
            "local": self.local,
            "local_width": self.local_width,
        }

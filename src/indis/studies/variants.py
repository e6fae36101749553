"""What is compared: every published method, ours, and the ablations, each a method's name and changes to its config."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from indis import methods
from indis.methods import Method
from indis.training import FitConfig


@dataclass(frozen=True)
class Variant:
    """A row of the comparison: ``start`` names the variant whose fitted sampler it begins at."""

    method: str
    changes: dict[str, Any] = field(default_factory=dict)
    start: str = ""
    kind: str = "published"  # or "ours", "ablation"

    @property
    def type(self) -> type[Method]:
        """The method's class."""
        return methods.named(self.method)

    def config(self, shared: dict[str, Any], fit: FitConfig, *, nfe: int, analytic_first: bool) -> Method:
        """Its config at ``nfe`` evaluations: ``shared`` fields that it has, then its own changes; its own rate.

        Raises:
            ValueError: if it cannot spend exactly ``nfe``.
        """
        steps = self.type.steps_for(nfe, analytic_first=analytic_first)
        known = {f.name for f in fields(self.type)}
        given = {name: value for name, value in shared.items() if name in known} | self.changes
        own = self.type().fit
        tuned = replace(fit, lr=given.pop("lr", own.lr), clip=own.clip)
        return self.type(steps=steps, analytic_first=analytic_first, fit=tuned, **given)


VARIANTS: dict[str, Variant] = {
    "god": Variant("god"),
    "indis": Variant("indis"),
    "indis +weights": Variant("indis", {"weights": 0.5}, kind="ours"),
    "look first": Variant("look", {"look": "first"}, kind="ours"),
    "look": Variant("look", kind="ours"),
    "god +weights": Variant("god", {"weights": 0.5}, kind="ours"),
    "god tau": Variant("god", {"dtau": 0.0, "gamma": 0.0}, kind="ablation"),
    "indis tau": Variant("indis", {"dtau": 0.0, "gamma": 0.0}, kind="ablation"),
    "indis without dtau": Variant("indis", {"dtau": 0.0}, kind="ablation"),
    "indis without gamma": Variant("indis", {"gamma": 0.0}, kind="ablation"),
    "indis without class": Variant("indis", {"use_condition": False}, kind="ablation"),
}


def chosen(names: Iterable[str]) -> list[str]:
    """The variants that names and groups ("all", or a kind such as "ablation") mean, in the order of the table.

    Raises:
        ValueError: for a name that is neither.
    """
    wanted = set(names)
    groups = {"all", *(v.kind for v in VARIANTS.values())}
    if unknown := wanted - groups - set(VARIANTS):
        listed = ", ".join([*VARIANTS, *sorted(groups)])
        raise ValueError(f"methods must be among {listed}, got {', '.join(sorted(unknown))}")
    full = "all" in wanted
    return [n for n, v in VARIANTS.items() if n in wanted or v.kind in wanted or (full and v.kind != "ablation")]

"""What is compared: every published method, ours, and the ablations, each a method's name and
changes to its config.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from indis import methods
from indis.methods import Method
from indis.recipe import Recipe


@dataclass(frozen=True)
class Variant:
    """A row of the comparison."""

    method: str
    changes: dict[str, Any] = field(default_factory=dict)
    kind: str = "published"  # or "ours", "ablation"

    @property
    def type(self) -> type[Method]:
        """The method's class."""
        return methods.named(self.method)

    def config(
        self,
        shared: dict[str, Any],
        own: dict[str, Any],
        fit: Recipe,
        *,
        nfe: int,
        analytic_first: bool,
    ) -> Method:
        """Its config at ``nfe`` evaluations one after another, with the learning rate of its own
        defaults.

        ``shared`` fields are those of all methods of a bench, ``own`` what this method needs there;
        its own changes come last.

        Raises:
            ValueError: if it cannot spend exactly ``nfe``.
        """
        steps = self.type.steps_for(nfe, analytic_first=analytic_first)
        defaults = self.type().recipe
        given = (
            {name: value for name, value in shared.items() if self._takes(name)}
            | own
            | self.changes
        )
        tuned = replace(fit, lr=given.pop("lr", defaults.lr), clip=defaults.clip)
        return self.type(steps=steps, analytic_first=analytic_first, recipe=tuned, **given)

    def _takes(self, name: str) -> bool:
        """A shared field that the method has; a solver or grid of its own, which a paper chose, it
        keeps.
        """
        defaults = {f.name: f.default for f in fields(self.type)}
        general = {f.name: f.default for f in fields(Method)}
        return name in defaults and (
            name not in ("solver", "grid") or defaults[name] == general[name]
        )


VARIANTS: dict[str, Variant] = {
    "god": Variant("god"),
    "indis": Variant("indis"),
    "gits": Variant("gits"),
    "dmn": Variant("dmn"),
    "ays": Variant("ays"),
    "ld3": Variant("ld3"),
    # Published: 33 000 updates of 3 samples at a tenth of this rate.
    "ald3": Variant("ald3", {"lr": 5e-3}),
    "dyweight": Variant("dyweight"),
    "amed": Variant("amed"),
    "amed-plugin": Variant("amed-plugin"),
    "epd": Variant("epd"),
    # Twice the published rate, EPD-Solver's: of so few iterations each must count for more.
    "epd-plugin": Variant("epd-plugin", {"lr": 0.2}),
    "adasde": Variant("adasde"),
    "spanlift": Variant("spanlift"),
    "indis +weights": Variant("indis", {"weights": 0.5}, kind="ours"),
    "look first": Variant("look", {"replan": "first"}, kind="ours"),
    "look": Variant("look", kind="ours"),
    "local": Variant("local", kind="ours"),
    "local weights": Variant("local", {"picture": "weights"}, kind="ours"),
    "local first": Variant("local", {"replan": "first", "picture_width": 16}, kind="ours"),
    "god +weights": Variant("god", {"weights": 0.5}, kind="ours"),
    "god tau": Variant("god", {"dtau": 0.0, "gamma": 0.0}, kind="ablation"),
    "indis tau": Variant("indis", {"dtau": 0.0, "gamma": 0.0}, kind="ablation"),
    "indis without dtau": Variant("indis", {"dtau": 0.0}, kind="ablation"),
    "indis without gamma": Variant("indis", {"gamma": 0.0}, kind="ablation"),
    "indis without class": Variant("indis", {"use_condition": False}, kind="ablation"),
}


def chosen(names: Iterable[str]) -> list[str]:
    """The variants that names and groups ("all", or a kind such as "ablation") mean, in the order
    of the table.

    Raises:
        ValueError: for a name that is neither.
    """
    wanted = set(names)
    groups = {"all", *(v.kind for v in VARIANTS.values())}
    if unknown := wanted - groups - set(VARIANTS):
        listed = ", ".join([*VARIANTS, *sorted(groups)])
        raise ValueError(f"methods must be among {listed}, got {', '.join(sorted(unknown))}")
    full = "all" in wanted
    return [
        n
        for n, v in VARIANTS.items()
        if n in wanted or v.kind in wanted or (full and v.kind != "ablation")
    ]

"""Methods: how a sampler is tuned on teacher end points, one file a paper.

A file that is put here is found: a :class:`Method` with a ``name`` is a method, and a policy that
can be rebuilt is stored in artifacts.
"""

from indis.discovery import classes_in
from indis.methods.adasde import AdaSDE
from indis.methods.ald3 import ALD3
from indis.methods.amed import AMED, AMEDPlugin
from indis.methods.ays import AYS
from indis.methods.dmn import DMN
from indis.methods.dyweight import DyWeight
from indis.methods.epd import EPD, EPDPlugin
from indis.methods.gits import GITS
from indis.methods.indis import GOD, INDIS, EveryN, Local, Look
from indis.methods.ld3 import LD3
from indis.methods.method import Method, heuristic
from indis.methods.spanlift import SpanLift
from indis.policies import Fixed, LearnedPolicy, Policy

__all__ = [
    "ALD3",
    "AMED",
    "AYS",
    "DMN",
    "EPD",
    "GITS",
    "GOD",
    "INDIS",
    "LD3",
    "METHODS",
    "POLICIES",
    "AMEDPlugin",
    "AdaSDE",
    "DyWeight",
    "EPDPlugin",
    "EveryN",
    "Local",
    "Look",
    "Method",
    "SpanLift",
    "heuristic",
    "named",
]


_DEFINED = sorted(
    classes_in(__name__, __path__), key=lambda kind: kind.__module__ != INDIS.__module__
)

METHODS: dict[str, type[Method]] = {
    kind.name: kind for kind in _DEFINED if issubclass(kind, Method) and "name" in vars(kind)
}

# The policies that artifacts hold.
POLICIES: dict[str, type[Policy]] = {
    kind.__name__: kind
    for kind in (Fixed, LearnedPolicy, *_DEFINED)
    if issubclass(kind, Policy) and "rebuild" in vars(kind)
}


def named(name: str) -> type[Method]:
    """Return the method of a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]

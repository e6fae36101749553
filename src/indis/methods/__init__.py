"""Methods: how a policy is learned from teacher endpoints, one file a paper."""

from indis.methods.adasde import AdaSDE
from indis.methods.ald3 import ALD3
from indis.methods.amed import AMED, AMEDPlugin
from indis.methods.ays import AYS
from indis.methods.dmn import DMN
from indis.methods.dyweight import DyWeight
from indis.methods.epd import EPD, EPDPlugin
from indis.methods.every_n import EveryN
from indis.methods.gits import GITS
from indis.methods.god import GOD
from indis.methods.indis import INDIS
from indis.methods.ld3 import LD3
from indis.methods.local import Local
from indis.methods.look import Look
from indis.methods.method import Method, heuristic

__all__ = [
    "ALD3",
    "AMED",
    "AYS",
    "DMN",
    "GITS",
    "EPD",
    "GOD",
    "LD3",
    "METHODS",
    "AMEDPlugin",
    "AdaSDE",
    "DyWeight",
    "EPDPlugin",
    "EveryN",
    "INDIS",
    "Local",
    "Look",
    "Method",
    "heuristic",
    "named",
]

METHODS: dict[str, type[Method]] = {
    "indis": INDIS,
    "look": Look,
    "local": Local,
    "every-n": EveryN,
    "god": GOD,
    "ld3": LD3,
    "dyweight": DyWeight,
    "ald3": ALD3,
    "amed": AMED,
    "amed-plugin": AMEDPlugin,
    "epd": EPD,
    "epd-plugin": EPDPlugin,
    "adasde": AdaSDE,
    "gits": GITS,
    "dmn": DMN,
    "ays": AYS,
}


def named(name: str) -> type[Method]:
    """The method of a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]

"""Methods: how a policy is learned from teacher endpoints, one file a paper."""

from indis.methods.ald3 import ALD3
from indis.methods.dyweight import DyWeight
from indis.methods.god import GOD
from indis.methods.indis import IndisConfig
from indis.methods.ld3 import LD3
from indis.methods.look import Look
from indis.methods.method import Method, heuristic

__all__ = ["ALD3", "GOD", "LD3", "METHODS", "DyWeight", "IndisConfig", "Look", "Method", "heuristic", "named"]

METHODS: dict[str, type[Method]] = {
    "indis": IndisConfig,
    "god": GOD,
    "look": Look,
    "ld3": LD3,
    "dyweight": DyWeight,
    "ald3": ALD3,
}


def named(name: str) -> type[Method]:
    """The method of a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]

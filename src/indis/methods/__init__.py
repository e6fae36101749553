"""Methods: how a policy is learned from teacher endpoints, one file a paper."""

from indis.methods.ays import AYS
from indis.methods.dmn import DMN
from indis.methods.gits import GITS
from indis.methods.god import GOD
from indis.methods.indis import IndisConfig
from indis.methods.method import Method, heuristic

__all__ = ["AYS", "DMN", "GITS", "GOD", "METHODS", "IndisConfig", "Method", "heuristic", "named"]

METHODS: dict[str, type[Method]] = {"indis": IndisConfig, "god": GOD, "gits": GITS, "dmn": DMN, "ays": AYS}


def named(name: str) -> type[Method]:
    """The method of a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]

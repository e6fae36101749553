"""The kinds of pipelines that are known, one file each. A file that is put here is found."""

from __future__ import annotations

from typing import Any

from indis.diffusers.families.base import Family as Family
from indis.discovery import classes_in

FAMILIES: dict[str, type[Family]] = {
    name: kind
    for kind in classes_in(__name__, __path__)
    if issubclass(kind, Family)
    for name in kind.pipelines
}


def family_of(pipe: Any) -> Family:
    """Return the family of a pipeline, by the name of its class.

    Raises:
        ValueError: If it begins at a given picture, or is not known.
    """
    names = [kind.__name__ for kind in type(pipe).__mro__]
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]()
    if any(word in names[0] for word in ("Img2Img", "ImageToVideo", "ImageToImage", "Inpaint")):
        raise ValueError(
            f"pipe must begin at noise, got {names[0]}, which begins at a given picture"
        )
    raise ValueError(
        f"pipe must be one of {', '.join(FAMILIES)}, got {names[0]}: for another one pass "
        "family=, an indis.diffusers.Family that says whether guidance doubles the batch, how "
        "prompts are pooled and how latents are packed"
    )

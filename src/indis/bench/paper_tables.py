"""The paper's pixel tables: which checkpoint each is of, and what was published for it.

FIDs at 3, 5 and 7 evaluations of 50 000 samples. A value stands under the paper that reports it:
"own" is the method's own paper, "INDIS" the INDIS paper's table, "README" the code of Zhou et al.
(diff-sampler). Sources differ in teacher, network calls in parallel and grids, so they are beside
our numbers for orientation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COLUMNS = (3, 5, 7)
Value = float | None


@dataclass(frozen=True)
class Published:
    """FIDs at 3, 5 and 7 evaluations; None where none was published."""

    source: str
    values: tuple[Value, Value, Value]


@dataclass(frozen=True)
class PaperTable:
    """One data set.

    Args:
        title: of the data set.
        file: name of NVIDIA's checkpoint.
        reference: name of NVIDIA's reference statistics.
        network: class of the network.
        arguments: what the checkpoint's network was constructed with.
        recompute: whether a fit's calls must be recomputed in 80 GB.
        published: by variant of the comparison, or by a label where it has none.
        slips: where printed numbers contradict one another.
    """

    title: str
    file: str
    reference: str
    network: str
    arguments: Mapping[str, Any]
    published: Mapping[str, tuple[Published, ...]]
    recompute: bool = False
    slips: tuple[str, ...] = field(default=())


_SONG: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "augment_dim": 9}
_FFHQ = _SONG | {"img_resolution": 64, "channel_mult": [1, 2, 2, 2]}
_ADM: dict[str, Any] = {
    "img_resolution": 64,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 1000,
}

TABLES = {
    "cifar10": PaperTable(
        "CIFAR-10 32 x 32, unconditional",
        "edm-cifar10-32x32-uncond-vp.pkl",
        "cifar10-32x32.npz",
        "SongUNet",
        _SONG | {"img_resolution": 32, "channel_mult": [2, 2, 2]},
        {
            "polynomial:7": (Published("README", (47.98, 13.59, 5.08)),),
            "best heuristic": (Published("INDIS", (57.39, 17.35, 7.61)),),
            "dmn": (Published("INDIS", (77.69, 12.93, 5.42)),),
            "gits": (
                Published("own", (None, 8.38, None)),
                Published("INDIS", (25.98, 6.77, 3.43)),
            ),
            "ld3": (Published("INDIS", (16.52, 5.32, 3.37)),),
            "amed": (Published("own", (18.49, 7.59, 4.36)),),
            "amed-plugin": (Published("own", (10.81, 6.61, 3.65)),),
            "epd": (Published("own", (10.40, 4.33, 2.82)),),
            "epd-plugin": (Published("own", (10.54, 4.47, 3.27)),),
            "adasde": (Published("own", (12.62, 4.18, 2.88)),),
            "dyweight": (Published("own", (8.16, 3.02, None)),),
            "S4S-Alt": (Published("own", (None, 3.73, 2.52)),),
            "indis": (Published("own", (9.26, 3.31, 2.60)),),
        },
        slips=(
            "The paper's row AMED is AMED-Solver; AMED-Plugin on iPNDM, the paper's own student, "
            "is 10.81 at 3 evaluations.",
            "Its best heuristic is worse than plain iPNDM on polynomial:7 in the README of "
            "diff-sampler.",
        ),
    ),
    "ffhq": PaperTable(
        "FFHQ 64 x 64, unconditional",
        "edm-ffhq-64x64-uncond-vp.pkl",
        "ffhq-64x64.npz",
        "SongUNet",
        _FFHQ,
        {
            "polynomial:7": (Published("README", (45.98, 17.17, 7.79)),),
            "best heuristic": (Published("INDIS", (72.29, 17.52, 8.76)),),
            "dmn": (Published("INDIS", (178.09, 20.93, 10.17)),),
            "gits": (
                Published("own", (None, 11.22, None)),
                Published("INDIS", (26.41, 8.85, 5.36)),
            ),
            "ld3": (Published("INDIS", (23.86, 8.56, 4.69)),),
            "amed": (Published("own", (47.31, 14.80, 8.82)),),
            "amed-plugin": (Published("own", (26.87, 12.49, 6.64)),),
            "epd": (Published("own", (21.74, 7.84, 4.81)),),
            "epd-plugin": (Published("own", (19.02, 7.97, 5.09)),),
            "adasde": (Published("own", (23.80, 8.05, 5.11)),),
            "indis": (Published("own", (17.72, 6.91, 3.90)),),
        },
        recompute=True,
        slips=(
            "The paper's row AMED is AMED-Plugin here, and AMED-Solver on CIFAR-10.",
            "GITS has 26.41 at 3 evaluations both here and on ImageNet 64.",
        ),
    ),
    "afhqv2": PaperTable(
        "AFHQv2 64 x 64, unconditional",
        "edm-afhqv2-64x64-uncond-vp.pkl",
        "afhqv2-64x64.npz",
        "SongUNet",
        _FFHQ,
        {
            "best heuristic": (Published("INDIS", (40.24, 9.01, 4.73)),),
            "dmn": (Published("INDIS", (178.76, 26.11, 13.03)),),
            "gits": (Published("INDIS", (24.17, 8.72, 5.48)),),
            "ld3": (Published("INDIS", (17.94, 6.09, 2.77)),),
            "amed": (Published("INDIS", (31.82, 7.34, 4.39)),),
            "indis": (Published("own", (10.15, 3.48, 2.37)),),
        },
        recompute=True,
        slips=("The row AMED does not say whether it is the solver or the plugin.",),
    ),
    "imagenet64": PaperTable(
        "ImageNet 64 x 64, class-conditional",
        "edm-imagenet-64x64-cond-adm.pkl",
        "imagenet-64x64.npz",
        "DhariwalUNet",
        _ADM,
        {
            "polynomial:7": (Published("README", (58.53, 18.99, 9.17)),),
            "best heuristic": (Published("INDIS", (44.93, 15.53, 8.64)),),
            "dmn": (Published("INDIS", (33.72, 10.47, 5.39)),),
            "gits": (
                Published("own", (None, 10.79, None)),
                Published("INDIS", (26.41, 9.85, 6.44)),
            ),
            "ld3": (Published("INDIS", (27.82, 11.55, 5.63)),),
            "amed": (Published("own", (38.10, 10.74, 6.66)),),
            "amed-plugin": (Published("own", (28.06, 13.83, 7.81)),),
            "epd": (Published("own", (18.28, 6.35, 5.26)),),
            "epd-plugin": (Published("own", (19.89, 8.17, 4.81)),),
            "adasde": (Published("own", (18.51, 6.90, 5.26)),),
            "indis": (Published("own", (18.96, 7.28, 4.94)),),
        },
        recompute=True,
        slips=(
            "The paper's row AMED mixes the plugin (28.06) with the solver (10.74, 6.66).",
            "GITS has 26.41 at 3 evaluations both here and on FFHQ.",
        ),
    ),
}


def named(name: str) -> PaperTable:
    """Return the table of a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}, got {name!r}")
    return TABLES[name]

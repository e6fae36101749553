"""How a method is drawn, and where its name stands: a few methods in colour, all others in grey but
named on the spot.

Some twenty methods are more than colours or a legend can tell apart. So those that the comparison
is about keep one look in every figure, and every mark has its name beside it, moved only as far as
needed to not cover another.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from indis.bench.report.comparison import BEST_GRID

FAMILIES = {
    "god": ("#0072B2", "o"),
    "indis": ("#D55E00", "D"),
    "look": ("#009E73", "^"),
    "local": ("#CC79A7", "v"),
    BEST_GRID: ("#000000", "s"),
}
OTHER = "#8c8c8c"
SIZE = 7.5  # points, of a name
ROW = 1.2 * SIZE / 72  # inches
_LETTER = 0.52 * SIZE / 72  # inches, on average
_POINT = 0.08  # inches, half of what a mark takes
_LEADER = {"arrowstyle": "-", "color": "#b0b0b0", "linewidth": 0.6}
Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True)
class Look:
    """Colour and marker; ``main`` methods are drawn larger and above the others."""

    colour: str
    marker: str
    main: bool

    def line(self, **given: Any) -> dict[str, Any]:
        """Options of ``plot``."""
        size, width = (5.5, 2.0) if self.main else (3.5, 0.9)
        look = {"color": self.colour, "marker": self.marker, "markersize": size, "linewidth": width}
        return look | {"zorder": 3 if self.main else 2} | given

    def text(self) -> dict[str, Any]:
        """Options of its name."""
        return {
            "color": self.colour,
            "fontsize": SIZE,
            "fontweight": "bold" if self.main else "normal",
        }


def look(name: str) -> Look:
    """A family's look; what varies it has its colour, but steps back."""
    family = name if name in FAMILIES else re.split(r"[ -]", name.lower())[0]
    colour, marker = FAMILIES.get(family, (OTHER, "o"))
    return Look(colour, marker, main=name == family and family in FAMILIES)


def in_axes(axes: Axes, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Data points ``(count, 2)`` as fractions of the axes, whatever their scales; limits must
    stand.
    """
    return axes.transLimits.transform(axes.transScale.transform(np.array(points, dtype=float)))


# --- names of lines


def name_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], height: float) -> None:
    """Each line's name right of the axes (``height`` inches), as near to the line's end as the
    others allow.
    """
    levels = dict(zip(ends, in_axes(axes, list(ends.values()))[:, 1], strict=True))
    names = sorted(levels, key=lambda name: levels[name])
    places = spread_out([levels[name] for name in names], ROW / height)
    for name, y in zip(names, places, strict=True):
        arrow = {**_LEADER, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3}
        place: dict[str, Any] = {
            "xytext": (1.06, y),
            "textcoords": "axes fraction",
            "va": "center",
            "annotation_clip": False,
        }
        axes.annotate(name, ends[name], arrowprops=arrow, **place, **look(name).text())


def spread_out(wanted: Sequence[float], gap: float) -> list[float]:
    """Increasing positions at least ``gap`` apart in [0, 1], the nearest to the wanted ones in
    least squares.

    Without the gaps that is an isotonic regression: neighbours in the wrong order share their mean.
    """
    blocks: list[list[float]] = []
    for k, value in enumerate(wanted):
        blocks.append([value - k * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    means = [float(np.mean(block)) for block in blocks for _ in block]
    room = max(0.0, 1 - (len(wanted) - 1) * gap)
    return [min(max(mean, 0.0), room) + k * gap for k, mean in enumerate(means)]


# --- names of points


def name_points(
    axes: Axes,
    points: Mapping[str, tuple[float, float]],
    size: tuple[float, float],
    stairs: Sequence[tuple[float, float]] = (),
) -> None:
    """Each point's name where it covers the least of points, names and ``stairs``, first come, best
    served.

    ``size`` is that of the axes in inches; ``stairs`` are the corners of lines along the axes.
    """
    spots = in_axes(axes, list(points.values())) * size
    taken = [_around(spot, _POINT, _POINT) for spot in spots] + _walls(
        in_axes(axes, stairs) * size if stairs else []
    )
    for name, spot in zip(points, spots, strict=True):
        box = _free_box(name, spot, taken, size)
        taken.append(box)
        offset = (np.array([box[0] + box[2], box[1] + box[3]]) / 2 - spot) * 72
        far = float(np.hypot(*_gap(box, spot))) > 1.6 * _POINT
        arrow = {**_LEADER, "shrinkA": 0, "shrinkB": 2} if far else None
        place: dict[str, Any] = {
            "xytext": tuple(offset),
            "textcoords": "offset points",
            "ha": "center",
            "va": "center",
        }
        axes.annotate(name, points[name], arrowprops=arrow, **place, **look(name).text())


def _free_box(name: str, spot: np.ndarray, taken: Sequence[Box], size: tuple[float, float]) -> Box:
    """The nearest of some places around a point that covers the least."""
    half = np.array([len(name) * _LETTER * (1.2 if look(name).main else 1) / 2, ROW / 2])
    ways = [(1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7)]
    boxes = [
        _around(spot + np.array(way) * (half + distance), *half)
        for distance, way in itertools.product(
            (_POINT, 2.5 * _POINT, 4.5 * _POINT, 7 * _POINT), ways
        )
    ]

    def cost(box: Box) -> float:
        return (
            sum(_shared(box, other) for other in taken)
            + _outside(box, size)
            + _crossed(box, spot, taken)
        )

    return min(boxes, key=cost)


def _around(spot: np.ndarray, width: float, height: float) -> Box:
    return (spot[0] - width, spot[1] - height, spot[0] + width, spot[1] + height)


def _walls(corners: Iterable[np.ndarray]) -> list[Box]:
    """The lines between corners, as thin boxes."""
    pairs = itertools.pairwise(corners)
    return [(*(np.minimum(a, b) - 0.01), *(np.maximum(a, b) + 0.01)) for a, b in pairs]


def _gap(box: Box, spot: np.ndarray) -> tuple[float, float]:
    """From a point to the nearest of a box."""
    return (
        max(box[0] - spot[0], spot[0] - box[2], 0.0),
        max(box[1] - spot[1], spot[1] - box[3], 0.0),
    )


def _shared(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def _crossed(box: Box, spot: np.ndarray, taken: Sequence[Box]) -> float:
    """What the way from a point to its name runs over; less bad than a name on a name."""
    way = np.clip(spot, box[:2], box[2:]) - spot
    path = [_around(spot + part * way, 0.005, 0.005) for part in (0.3, 0.5, 0.7, 0.9)]
    others = [other for other in taken if max(_gap(other, spot)) > 0]  # its own mark is no obstacle
    return 20 * sum(_shared(step, other) for step in path for other in others)


def _outside(box: Box, size: tuple[float, float]) -> float:
    whole = (box[2] - box[0]) * (box[3] - box[1])
    return 3 * (whole - _shared(box, (0.0, 0.0, *size)))

"""Sample images, pixel for pixel: strips for the page and one picture for a README."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave

from indis.bench.report.charts import log_axis, png, policy_handles, style, toy_lines
from indis.bench.report.tables import Row, pretty, toy_freedoms

COLUMNS = 16
GAP = 2  # transparent pixels between images
PICTURE_BYTES = 300_000

_INCH = 100  # pixels of the README picture
_WIDTH = 1200
_LABELS = 165
_MARGIN = 14
_CURVE = 310


def ordered(tensors: Mapping[str, np.ndarray], order: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Rows of images as ``(count, H, W, 3)`` uint8, those in ``order`` first.

    Raises:
        ValueError: if the rows are not images of one size.
    """
    missing = [label for label in order if label not in tensors]
    if missing:
        raise ValueError(f"there are no samples {missing[0]!r}")
    labels = [*order, *(label for label in tensors if label not in order)]
    rows = {label: _rgb(label, tensors[label]) for label in labels}
    if len({row.shape[1:] for row in rows.values()}) != 1:
        raise ValueError("rows of samples must be images of one size")
    return rows


def _rgb(label: str, images: np.ndarray) -> np.ndarray:
    images = images[:, None] if images.ndim == 3 else images
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[1] not in (1, 3)
        or not len(images)
    ):
        raise ValueError(
            f"{label!r} must be uint8 images (count, 1 or 3, H, W), got {images.dtype} "
            f"{images.shape}"
        )
    return np.repeat(images, 4 - images.shape[1], 1)[:, :3].transpose(0, 2, 3, 1)


def shared_columns(rows: Mapping[str, np.ndarray], limit: int = COLUMNS) -> int:
    """How many starting noises every row has a sample of."""
    return min(limit, *(len(row) for row in rows.values()))


def mosaic(rows: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """RGBA image of rows of samples with transparent gaps, so that it stands on any background."""
    _, height, width, _ = rows[0].shape
    canvas = np.zeros((len(rows), height + GAP, columns, width + GAP, 4), np.uint8)
    for r, images in enumerate(rows):
        canvas[r, :height, :, :width, :3] = images[:columns].transpose(1, 0, 2, 3)
        canvas[r, :height, :, :width, 3] = 255
    return canvas.reshape(len(rows) * (height + GAP), columns * (width + GAP), 4)[:-GAP, :-GAP]


def strip(images: np.ndarray, columns: int) -> tuple[bytes, int]:
    """One row as a PNG at its own resolution, and the CSS width to show it at: a whole multiple of
    its pixels.
    """
    picture = mosaic([images], columns)
    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(picture), format="png")
    return buffer.getvalue(), picture.shape[1] * scale(images.shape[2])


def scale(width: int) -> int:
    """The whole factor that brings an image to about 56 pixels."""
    return max(1, round(56 / width))


def readme_png(rows: Mapping[str, np.ndarray], cells: Sequence[Row]) -> bytes:
    """Sample rows on the left, the toy's error against N on the right, whichever there are; few
    enough for 300 kB.
    """
    for columns in (COLUMNS, 8, 6, 4, 2):
        picture = png(_compose(rows, cells, columns), dpi=_INCH)
        if len(picture) <= PICTURE_BYTES or not rows:
            break
    return picture


def _compose(rows: Mapping[str, np.ndarray], cells: Sequence[Row], columns: int) -> Figure:
    """Images are placed on whole pixels and enlarged by a whole factor, never resampled."""
    room = _WIDTH - _LABELS - 2 * _MARGIN - (_CURVE + 90 if cells else 0)
    picture = _enlarged(rows, columns, room) if rows else None
    height = max(300 if cells else 0, 0 if picture is None else picture.shape[0]) + 2 * _MARGIN
    figure = Figure(figsize=(_WIDTH / _INCH, height / _INCH), dpi=_INCH)
    if picture is not None:
        top = (height - picture.shape[0]) // 2
        figure.figimage(picture, xo=_MARGIN + _LABELS, yo=top, origin="upper")
        _label_rows(figure, list(rows), top, picture.shape[0], height)
    if cells:
        _curve(figure, cells, height, wide=picture is None)
    return figure


def _enlarged(rows: Mapping[str, np.ndarray], columns: int, room: int) -> np.ndarray:
    """As many columns as fit, each image about 56 pixels or its own size."""
    width = next(iter(rows.values())).shape[2]
    factor = scale(width)
    fitting = max(1, (room + GAP * factor) // ((width + GAP) * factor))
    picture = mosaic(list(rows.values()), min(fitting, shared_columns(rows, columns)))
    return picture.repeat(factor, 0).repeat(factor, 1)


def _label_rows(figure: Figure, labels: Sequence[str], top: int, size: int, height: int) -> None:
    for k, label in enumerate(labels):
        y = height - top - (k + 0.5) * size / len(labels)
        text = "\n".join(textwrap.wrap(label, 20))
        figure.text(
            (_MARGIN + _LABELS - 12) / _WIDTH,
            y / height,
            text,
            ha="right",
            va="center",
            fontsize=10,
        )


def _curve(figure: Figure, cells: Sequence[Row], height: int, *, wide: bool) -> None:
    width = _WIDTH - 110 if wide else _CURVE
    tall = min(height - 140, 420)
    left, bottom = _WIDTH - width - 20, (height - tall) / 2 - 14
    axes = figure.add_axes((left / _WIDTH, bottom / height, width / _WIDTH, tall / height))
    style(axes)
    freedoms = toy_freedoms(cells)[-1]
    toy_lines(axes, cells, freedoms, "squared_distance")
    log_axis(axes)
    axes.set_title(
        f"toy: squared distance to the teacher, {pretty(freedoms)}",
        fontsize=10,
        loc="right",
        pad=26 if wide else 44,
    )
    axes.set_xlabel("Euler steps N", fontsize=10)
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 4 if wide else 2}
    axes.legend(handles=policy_handles(cells, floor=False), fontsize=9, frameon=False, **place)

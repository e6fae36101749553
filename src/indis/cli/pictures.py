"""A labelled sheet of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from indis.pixels import to_bytes
from indis.storage import write_aside

if TYPE_CHECKING:
    from PIL import Image

LEAST_SIDE, WIDTH = 96, 1300  # of a picture and of the sheet, in pixels
GAP, MARGIN, LINE, FONT = 6, 14, 17, 13
INK, GREY = (20, 20, 20), (110, 110, 110)


@dataclass(frozen=True)
class Strip:
    """Samples of one sampler.

    Attributes:
        samples: Images ``(count, 1 or 3, height, width)`` in [-1, 1].
        title: What made them.
    """

    samples: Tensor
    title: str


def save_sheet(strips: Sequence[Strip], captions: Sequence[str], path: Path) -> None:
    """Write a PNG in which every block of rows shows the same samples of each strip.

    The samples of one column are of the same seed. Titles stand above the sheet, in the order of
    the rows; captions stand below each column of a block.

    Args:
        strips: The rows of a block, from top to bottom.
        captions: A line for each sample.
        path: The file.

    Raises:
        ValueError: If the samples are not images.
    """
    # Pillow comes with the image extras; a user of vector models need not have it.
    from PIL import Image, ImageDraw, ImageFont

    pictures = [_images(strip.samples) for strip in strips]
    width, height = pictures[0][0].size
    font = ImageFont.load_default(FONT)
    heading = [_heading(strips, i) for i in range(len(strips))]
    cell = max([width, *(int(font.getlength(text)) + 2 for text in captions)]) + GAP
    columns = max(1, min(10, len(captions), (WIDTH - 2 * MARGIN) // cell))
    block = len(strips) * (height + GAP) + LINE + GAP
    blocks = -(-len(captions) // columns)
    top = MARGIN + LINE * len(heading) + GAP
    longest = max(int(font.getlength(text)) for text in heading)
    size = (2 * MARGIN + max(columns * cell - GAP, longest), top + blocks * block + MARGIN - GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(heading):
        draw.text((MARGIN, MARGIN + i * LINE), text, INK, font)
    for i, caption in enumerate(captions):
        middle = MARGIN + (i % columns) * cell + (cell - GAP) // 2
        y = top + (i // columns) * block
        for row in pictures:
            sheet.paste(row[i], (middle - width // 2, y))
            y += height + GAP
        draw.text((middle, y - 2), caption, GREY, font, anchor="ma")
    write_aside(path, lambda temporary: sheet.save(temporary, format="png"))


def _heading(strips: Sequence[Strip], i: int) -> str:
    """Say which row a strip is, if there are several."""
    if len(strips) == 1:
        return strips[0].title
    row = ("upper row", "lower row")[i] if len(strips) == 2 else f"row {i + 1}"
    return f"{row}: {strips[i].title}"


def _images(samples: Tensor) -> list[Image.Image]:
    """Return images, enlarged by a whole factor if they are small.

    Raises:
        ValueError: If the samples are not images.
    """
    from PIL import Image

    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise ValueError(
            f"only images can be drawn, these samples are {tuple(samples.shape[1:])}: "
            f"use .safetensors"
        )
    height, width = samples.shape[2:]
    zoom = max(1, -(-LEAST_SIDE // max(height, width)))
    pixels = to_bytes(samples).movedim(1, 3).expand(-1, -1, -1, 3).contiguous().numpy()
    size = (width * zoom, height * zoom)
    return [Image.fromarray(one).resize(size, Image.Resampling.NEAREST) for one in pixels]

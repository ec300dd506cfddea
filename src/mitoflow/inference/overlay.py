"""Slices and boxes with the contours of a mask, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from mitoflow.data.network_input import grey_range, stretched
from mitoflow.io import png

CONTOUR, DISAGREEMENT = (0, 200, 150), (255, 40, 0)
CAPTION = 14  # rows of a line of text


def shown(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image (Y, X) of any type as a picture shows it."""
    return stretched(image, *grey_range(image))


def contours_png(slices: Sequence[tuple[NDArray[Any], NDArray[np.uint8]]]) -> bytes:
    """Return images ``(Y, X)`` of one size, each with the contours of its mask in {0, 1}, side by side as a PNG.

    The PNG names mitoflow as its program; see `mitoflow.io.png.is_overlay`.
    """
    return _page([_contoured(image, mask) for image, mask in slices])


def boxes_png(boxes: Sequence[tuple[str, NDArray[Any], NDArray[np.uint8], NDArray[np.float32]]]) -> bytes:
    """Return a row for each box: the contours of its mask, and on the right where a network disagrees with itself.

    Parameters
    ----------
    boxes
        Caption, image, mask in {0, 1} and disagreement in [0, 1] of each; (Y, X) of one size. Pixels are the redder
        the higher the disagreement, by its square root, since it is low in most places.

    Returns
    -------
    PNG, as of `contours_png`
    """
    panels = []
    for caption, image, mask, disagreement in boxes:
        grey = np.repeat(shown(image)[:, :, None], 3, axis=2)
        share = np.sqrt(disagreement)[:, :, None]
        tinted = np.rint(grey * (1 - share) + np.array(DISAGREEMENT) * share).astype(np.uint8)
        panels += [_captioned(_contoured(image, mask), caption), _captioned(tinted, "disagreement")]
    return _page(panels)


def _contoured(image: NDArray[Any], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = np.repeat(shown(image)[:, :, None], 3, axis=2)
    width = max(1, round(max(mask.shape) / 500))
    inner = ndimage.binary_erosion(mask, iterations=width, border_value=1)
    picture[(mask > 0) & ~inner] = CONTOUR
    return picture


def _captioned(picture: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    """Return a picture (Y, X, 3) with a line of text above it."""
    line = Image.new("RGB", (picture.shape[1], CAPTION), "white")
    ImageDraw.Draw(line).text((2, 1), caption, fill="black")
    return np.concatenate([np.asarray(line), picture])


def _page(panels: Sequence[NDArray[np.uint8]]) -> bytes:
    """Return pictures (Y, X, 3) of one size as a PNG, two in a row, with white between them."""
    framed = [np.pad(panel, ((2, 2), (2, 2), (0, 0)), constant_values=255) for panel in panels]
    rows = [np.concatenate(framed[first : first + 2], axis=1) for first in range(0, len(framed), 2)]
    page = np.full((sum(len(row) for row in rows), max(row.shape[1] for row in rows), 3), 255, np.uint8)
    for top, row in zip(np.cumsum([0, *(len(row) for row in rows)]), rows, strict=False):
        page[top : top + len(row), : row.shape[1]] = row
    buffer = io.BytesIO()
    about = PngInfo()
    about.add_text(*png.OVERLAY)
    Image.fromarray(page, "RGB").save(buffer, "PNG", optimize=True, pnginfo=about)
    return buffer.getvalue()

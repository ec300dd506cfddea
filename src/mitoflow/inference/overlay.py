"""Slices with the contours of a mask, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from mitoflow.data.network_input import grey_range, stretched
from mitoflow.io import png

CONTOUR = (0, 200, 150)


def shown(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image (Y, X) of any type as a picture shows it."""
    return stretched(image, *grey_range(image))


def contours_png(slices: Sequence[tuple[NDArray[Any], NDArray[np.uint8]]]) -> bytes:
    """Return images ``(Y, X)`` of one size, each with the contours of its mask in {0, 1}, side by side as a PNG.

    The PNG names mitoflow as its program; see `mitoflow.io.png.is_overlay`.
    """
    panels = []
    for image, mask in slices:
        picture = np.repeat(shown(image)[:, :, None], 3, axis=2)
        width = max(1, round(max(mask.shape) / 500))
        inner = ndimage.binary_erosion(mask, iterations=width, border_value=1)
        picture[(mask > 0) & ~inner] = CONTOUR
        panels.append(np.pad(picture, ((2, 2), (2, 2), (0, 0)), constant_values=255))
    rows = [np.concatenate(panels[first : first + 2], axis=1) for first in range(0, len(panels), 2)]
    page = np.full((sum(len(row) for row in rows), max(row.shape[1] for row in rows), 3), 255, np.uint8)
    for top, row in zip(np.cumsum([0, *(len(row) for row in rows)]), rows, strict=False):
        page[top : top + len(row), : row.shape[1]] = row
    buffer = io.BytesIO()
    about = PngInfo()
    about.add_text(*png.OVERLAY)
    Image.fromarray(page, "RGB").save(buffer, "PNG", optimize=True, pnginfo=about)
    return buffer.getvalue()

"""Parts of a slice at the resolution at which they are shown."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from mitoflow.data import network_input
from mitoflow.io.tiff import Box
from mitoflow.io.volumes import Volume

TILE = 512  # pixels of a side of a tile


def levels(shape: tuple[int, int, int]) -> int:
    """Return how many levels a stack (Z, Y, X) has: level n has every 2**n-th pixel, and the last one is one tile."""
    return 1 + max(0, math.ceil(math.log2(max(shape[1:]) / TILE)))


def exists(shape: tuple[int, int, int], level: int, row: int, column: int) -> bool:
    """Return whether a stack (Z, Y, X) has such a tile."""
    side = TILE << min(level, levels(shape))
    return level < levels(shape) and row * side < shape[1] and column * side < shape[2]


def box(shape: tuple[int, int, int], level: int, row: int, column: int) -> Box:
    """Return the pixels ``y0, y1, x0, x1`` of a slice that a tile shows."""
    side = TILE << level
    y0, x0 = row * side, column * side
    return y0, min(y0 + side, shape[1]), x0, min(x0 + side, shape[2])


def grey_range(volume: Volume, z: int) -> tuple[float, float]:
    """Return the grey values of a slice that are shown as black and white; see `network_input.slice_range`."""
    return network_input.slice_range(lambda part: volume.read(z, part), volume.shape[1:])


def shown(pixels: NDArray[np.generic], grey: tuple[float, float], level: int) -> NDArray[np.uint8]:
    """Return pixels (Y, X) as they are shown at a level, each the mean of those that it stands for."""
    image = network_input.stretched(pixels, *grey)
    if not level:
        return image
    step = 1 << level
    height, width = (-(-length // step) for length in image.shape)
    whole = np.pad(image, [(0, height * step - image.shape[0]), (0, width * step - image.shape[1])], mode="edge")
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

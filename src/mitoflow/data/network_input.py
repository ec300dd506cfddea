"""What a network sees of a stack: a slice with its neighbours (2.5-D), as grey values in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

CAMERA_DEPTHS = (10, 12, 14, 16)
PERCENTILES = (1.0, 99.0)  # of the grey values of a slice, which become black and white


def neighbours(z: int, context: int, step: int, held: range) -> list[int]:
    """Return the slices that slice `z` is seen with: `context` on each side, `step` apart, itself in the middle.

    Where one lies outside `held`, the first or last slice held stands in for it.
    """
    near = range(z - context * step, z + context * step + 1, step)
    return [min(max(place, held.start), held.stop - 1) for place in near]


def camera_depth(maximum: int) -> int:
    """Return the smallest of 10, 12, 14 and 16 bits that holds ``maximum``."""
    return next(depth for depth in CAMERA_DEPTHS if maximum < 1 << depth)


def to_unit(image: npt.NDArray[Any], bit_depth: int) -> npt.NDArray[np.float32]:
    """Return ``image`` (any shape, unsigned) over its largest possible value: float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32((1 << bit_depth) - 1)


def grey_range(image: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the grey values of a slice that become 0 and 1: its 1st and 99th percentile, constant areas left out.

    Padding, saturated resin and missing tiles are constant. They say nothing about how tissue is stained, and a few of
    them would shift the percentiles. A constant area is made of the 3 x 3 squares that have a single value.

    Parameters
    ----------
    image
        (Y, X), any integer or floating-point type; not-a-number counts as constant.

    Returns
    -------
    low, high
        With ``low < high``; where all is constant, the value and the value + 1.
    """
    constant = ~(ndimage.minimum_filter(image, 3) < ndimage.maximum_filter(image, 3))  # not-a-number is neither
    varies = ~ndimage.maximum_filter(constant, 3)
    values = image[varies] if varies.any() else image.ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return low, high if high > low else low + 1


def stretched(image: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Return ``image`` (any shape) with `low` at 0 and `high` at 255, rounded; values outside are clipped."""
    unit = (image.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.asarray(np.rint(np.clip(np.nan_to_num(unit), 0, 1) * 255), np.uint8)

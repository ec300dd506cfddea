"""What a network sees of a stack: a slice with its neighbours (2.5-D), as grey values in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

CAMERA_DEPTHS = (10, 12, 14, 16)
PERCENTILES = (1.0, 99.0)  # of the grey values of a slice, which become black and white
LARGEST_WHOLE = 2**22  # pixels of a slice whose percentiles come from all of it
PATCHES, PATCH = 8, 128  # along y and x of a larger slice, and pixels of a side: its percentiles come from these

#: What the masks hold that a network learns from and is scored by, beside 0 and 1: nobody looked at this pixel.
UNLABELLED = 2

#: Part of a slice: first and past-the-end pixel along y, then along x.
Box = tuple[int, int, int, int]


def neighbours(z: int, context: int, step: int, held: range) -> list[int]:
    """Return the slices that slice `z` is seen with: `context` on each side, `step` apart, itself in the middle.

    Where one lies outside `held`, the first or last slice held stands in for it. With a step of 0 all are slice `z`.
    """
    near = (z + offset * step for offset in range(-context, context + 1))
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
    return _range_of([image])


def slice_range(read: Callable[[Box], npt.NDArray[Any]], shape: tuple[int, int]) -> tuple[float, float]:
    """Return the grey values of a slice that become 0 and 1, reading no more of it than is needed.

    Of a slice of more than 4 million pixels 64 patches are read, spread evenly, however it is cut into blocks and
    whatever part of it is predicted.

    Parameters
    ----------
    read
        Reads a box of the slice, (Y, X).
    shape
        (Y, X) of the slice.

    Returns
    -------
    low, high
        See `grey_range`.
    """
    height, width = shape
    if height * width <= LARGEST_WHOLE:
        return grey_range(read((0, height, 0, width)))
    rows, columns = (_patch_sides(length) for length in shape)
    return _range_of([read((*y, *x)) for y, x in product(rows, columns)])


def _patch_sides(length: int) -> list[tuple[int, int]]:
    """Return first and past-the-end pixel of the patches along an axis."""
    size = min(PATCH, length)
    places = np.linspace(0, length - size, PATCHES + 2)[1:-1]
    return [(start, start + size) for start in sorted({round(place) for place in places.tolist()})]


def _varying(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the finite pixels of an image (Y, X) outside of constant areas, (N,)."""
    constant = ~(ndimage.minimum_filter(image, 3) < ndimage.maximum_filter(image, 3))  # not-a-number is neither
    values = image[~ndimage.maximum_filter(constant, 3)]
    return np.asarray(values[np.isfinite(values)])


def varying_values(images: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return the finite grey values of images (Y, X) outside of constant areas, (N,); all where nothing varies."""
    values = np.concatenate([_varying(image) for image in images])
    return values if values.size else np.concatenate([image[np.isfinite(image)] for image in images])


def is_blank(read: Callable[[Box], npt.NDArray[Any]], shape: tuple[int, int]) -> bool:
    """Return whether a slice has one finite grey value at most, as padding and lost slices do.

    Reads a patch in the middle first, which is enough for most slices that have more. `read` and `shape` are as in
    `slice_range`.
    """
    height, width = shape
    rows = max(1, LARGEST_WHOLE // width)
    middle = [sides[len(sides) // 2] for sides in map(_patch_sides, shape)]
    bands = ((top, min(top + rows, height), 0, width) for top in range(0, height, rows))
    found: set[float] = set()
    for box in chain([(*middle[0], *middle[1])], bands):
        image = read(box)
        values = image[np.isfinite(image)]
        if values.size:
            found |= {float(values.min()), float(values.max())}
        if len(found) > 1:
            return False
    return True


def _range_of(images: Sequence[npt.NDArray[Any]]) -> tuple[float, float]:
    values = varying_values(images)
    if not values.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return low, high if high > low else low + 1


def stretched(image: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Return ``image`` (any shape) with `low` at 0 and `high` at 255, rounded; values outside are clipped."""
    unit = (image.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.asarray(np.rint(np.clip(np.nan_to_num(unit), 0, 1) * 255), np.uint8)

"""What a network sees of a stack: a slice with its neighbours (2.5-D), as grey values in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

CAMERA_DEPTHS = (10, 12, 14, 16)


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

"""Slices on another grid of pixels, a box at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Weights:
    """How some pixels of a new grid along one axis are made of pixels of the old one.

    Attributes
    ----------
    first, last
        First and past-the-end pixel of the old grid that they are made of.
    matrix
        (new pixels, ``last - first``), sparse; each row adds up to 1.
    """

    first: int
    last: int
    matrix: Any


@lru_cache(maxsize=64)
def weights(length: int, size: int, low: int, high: int) -> Weights:
    """Return how the pixels `low` to `high` of an axis of `size` pixels are made of one of `length`.

    Each is the mean of the pixels around its place, weighted by a triangle that falls to zero one pixel away: of the
    old grid where the new one is finer, which is linear interpolation, and of the new grid where that is coarser, so
    that what it cannot hold is averaged and not aliased. A pixel depends on its place alone, and not on `low` and
    `high`: a slice that is resampled box by box has no seams.

    Source: Turkowski, "Filters for Common Resampling Tasks", Graphics Gems I, 1990.
    """
    scale = length / size
    reach = max(scale, 1.0)
    places = (np.arange(low, high) + 0.5) * scale - 0.5
    near = np.ceil(places - reach).astype(int)[:, None] + np.arange(int(2 * reach) + 1)
    shares = np.clip(1 - np.abs(near - places[:, None]) / reach, 0, None) * ((near >= 0) & (near < length))
    shares /= shares.sum(axis=1, keepdims=True)
    rows, columns = np.nonzero(shares)
    used = near[rows, columns]
    first, last = int(used.min()), int(used.max()) + 1
    values = shares[rows, columns].astype(np.float32)
    return Weights(first, last, sparse.csr_array((values, (rows, used - first)), (high - low, last - first)))


def resized(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return all of an image, (Y, X), on a grid of `shape`, as float32."""
    rows, columns = (weights(length, size, 0, size) for length, size in zip(image.shape, shape, strict=True))
    return resample(image, rows, columns)


def resample(image: np.ndarray, rows: Weights, columns: Weights) -> np.ndarray:
    """Return pixels of the new grid, (Y, X) float32, from those of the old grid that they are made of, (Y, X)."""
    return np.asarray((columns.matrix @ (rows.matrix @ image.astype(np.float32)).T).T)

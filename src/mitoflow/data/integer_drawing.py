"""Drawing on integers: the same seed gives the same bytes on every machine.

All arithmetic is on integers, which every processor does alike; random numbers are the raw output of PCG64, the stream
that NumPy guarantees for a seed (the methods of its `Generator` may change). Lengths are in eighths of a pixel (`PX`)
unless called pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[Any]

PX = 8
LONGEST = 128 * PX  # where `root` ends
OPAQUE = 256


class Draws:
    """Random integers that are the same on every machine and with every version of NumPy."""

    def __init__(self, seed: int) -> None:
        self._source = np.random.PCG64(seed)

    def below(self, limit: int, *shape: int) -> Ints:
        """Return int64 in ``[0, limit)`` of ``shape``; the limit is at most 2**40."""
        raw = self._source.random_raw(math.prod(shape)).astype(np.uint64)
        return ((raw >> np.uint64(40)) * np.uint64(limit) >> np.uint64(24)).astype(np.int64).reshape(shape)

    def between(self, low: int, high: int) -> int:
        """Return one integer in ``[low, high]``."""
        return low + int(self.below(high - low + 1, 1)[0])

    def voxel(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the position of one voxel."""
        return tuple(self.between(0, length - 1) for length in shape)

    def bytes(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Return uint8 of ``shape``, all values alike probable."""
        count = math.prod(shape)
        raw = self._source.random_raw(count // 8 + 1).astype("<u8")
        return raw.view(np.uint8)[:count].reshape(shape)


def root(square: Ints) -> Ints:
    """Return the square root, rounded down and below 128 pixels; int32.

    IEEE 754 rounds square roots correctly, so those of small integers are the same everywhere too.
    """
    roots: Ints = np.sqrt(np.minimum(square, LONGEST**2 - 1), dtype=np.float64).astype(np.int32)
    return roots


def ramp(x: Ints, *corners: tuple[int, int]) -> Ints:
    """Return the piecewise linear function of ``x`` through ``corners``, constant beyond the outer ones; int32."""
    (first, start), (last, _) = corners[0], corners[-1]
    table = np.full(last - first + 1, start, np.int32)
    for (x0, y0), (x1, y1) in pairwise(corners):
        table[x0 - first : x1 - first + 1] = y0 + (y1 - y0) * np.arange(x1 - x0 + 1, dtype=np.int32) // (x1 - x0)
    values: Ints = table[np.clip(x, first, last) - first]
    return values


def smooth_noise(draws: Draws, shape: Sequence[int], grain: Sequence[int], amplitude: int) -> Ints:
    """Return a random field of ``shape`` that varies over ``grain`` pixels, within +- ``amplitude``; int32.

    A uniform quadratic B-spline whose control points are random and ``grain`` apart.
    """
    lattice = draws.below(1 << 13, *(length // step + 3 for length, step in zip(shape, grain, strict=True)))
    field = (lattice - (1 << 12)).astype(np.int32)
    for axis, (length, step) in enumerate(zip(shape, grain, strict=True)):
        index, t = np.divmod(np.arange(length, dtype=np.int32), step)
        weights = ((step - t) ** 2, step * step + 2 * step * t - 2 * t * t, t * t)
        column = [-1 if a == axis else 1 for a in range(len(shape))]
        terms = [field.take(index + k, axis) * weight.reshape(column) for k, weight in enumerate(weights)]
        field = (terms[0] + terms[1] + terms[2]) // (2 * step * step)
    return field * amplitude >> 12


def blend(image: Ints, value: Ints | int, opacity: Ints) -> None:
    """Lay ``value`` over ``image``, in place; ``opacity`` is 0 ... 256."""
    image += (value - image) * opacity >> 8

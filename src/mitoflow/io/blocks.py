"""A volume in blocks that fit into memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Shape = tuple[int, int, int]
Region = tuple[slice, slice, slice]

BLOCK: Final[Shape] = (128, 256, 256)  # 8 Mvoxel: 34 MB of labels


@dataclass(frozen=True)
class Grid:
    """The blocks that tile a volume, in raster order: x runs fastest.

    What concerns neighbouring voxels looks at blocks grown by one voxel towards higher z, y and x. Of two voxels that
    share a face, an edge or a corner, take the lower z, the lower y and the lower x: the block that holds this place
    has both of them in its growth, and it is the only one that does so and holds the place. So every pair of
    neighbours is seen, and counts once where each block counts the pairs of its own places.

    Attributes
    ----------
    shape
        ``(Z, Y, X)`` of the volume.
    block
        ``(Z, Y, X)`` of a block; the last ones along an axis are smaller where it does not divide the volume.

    Raises
    ------
    ValueError
        A length is below 1.
    """

    shape: Shape
    block: Shape = BLOCK

    def __post_init__(self) -> None:
        if min(*self.shape, *self.block) < 1:
            raise ValueError(f"a volume of {self.shape} in blocks of {self.block}")

    @property
    def counts(self) -> Shape:
        """How many blocks there are along z, y and x."""
        z, y, x = (-(-length // side) for length, side in zip(self.shape, self.block, strict=True))
        return z, y, x

    def places(self) -> Iterator[Shape]:
        """Yield the place (z, y, x) of each block in the grid."""
        z, y, x = self.counts
        yield from itertools.product(range(z), range(y), range(x))

    def region(self, place: Shape) -> Region:
        """Return the voxels of a block."""
        starts = [at * side for at, side in zip(place, self.block, strict=True)]
        z, y, x = (slice(a, min(a + b, n)) for a, b, n in zip(starts, self.block, self.shape, strict=True))
        return z, y, x

    def grown(self, place: Shape) -> Region:
        """Return the voxels of a block and the next ones towards higher z, y and x, where there are any."""
        z, y, x = (slice(s.start, min(s.stop + 1, n)) for s, n in zip(self.region(place), self.shape, strict=True))
        return z, y, x

    def overlaps(self, region: Region) -> Iterator[tuple[Shape, Region]]:
        """Yield the place of each block that shares voxels with ``region``, and the voxels that they share."""
        z, y, x = (range(s.start // side, -(-s.stop // side)) for s, side in zip(region, self.block, strict=True))
        for place in itertools.product(z, y, x):
            pairs = zip(self.region(place), region, strict=True)
            zs, ys, xs = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in pairs)
            yield place, (zs, ys, xs)


def grown_box(first: Sequence[int], stop: Sequence[int], shape: Shape) -> Region:
    """Return the box from ``first`` to before ``stop`` and a voxel around it, as far as the volume reaches."""
    ends = zip(first, stop, shape, strict=True)
    z, y, x = (slice(max(a - 1, 0), min(b + 1, length)) for a, b, length in ends)
    return z, y, x


def shape_of(region: Region) -> Shape:
    """Return the lengths ``(Z, Y, X)`` of a region."""
    z, y, x = (s.stop - s.start for s in region)
    return z, y, x


def within(region: Region, other: Region) -> Region:
    """Return where ``region`` is in an array that holds the voxels of ``other``."""
    z, y, x = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(region, other, strict=True))
    return z, y, x


def full_box(inside: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """Return the box that the true voxels of an array fill, or None where they have another shape or there are none."""
    for box in ndimage.find_objects(inside.astype(np.uint8)):
        if inside[box].all():
            return tuple(box)
    return None

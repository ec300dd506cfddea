"""The parts of a component that is too large for memory: cells of a coarser grid in place of voxels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mitoflow.io.blocks import Region, Shape, shape_of
from mitoflow.io.spacing import Size

#: Takes how many voxels of the component each cell holds, ``(Z, Y, X)`` int64, how many of them are contacts, of the
#: same shape, and the sides of a cell; returns the parts, ``(Z, Y, X)`` int32, 0 outside of the component.
Split = Callable[[NDArray[np.int64], NDArray[np.int64], Size], NDArray[np.int32]]


@dataclass(frozen=True)
class CoarseParts:
    """The parts of a component, for each cell of a grid.

    Attributes
    ----------
    start
        The voxel (z, y, x) at which the first cell begins.
    cell
        Voxels of a cell along z, y and x.
    parts
        ``(Z, Y, X)`` int32 of the cells: 0 outside of the component, and the parts are 1 to n.
    """

    start: Shape
    cell: Shape
    parts: NDArray[np.int32]

    @classmethod
    def of(
        cls,
        pieces: Iterable[tuple[Region, NDArray[np.bool_], NDArray[np.bool_]]],
        box: Region,
        shape: Shape,
        largest: int,
        voxel_size: Size,
        split: Split,
    ) -> CoarseParts:
        """Count the voxels of a component in each cell, and split the cells that hold some.

        Parameters
        ----------
        pieces
            Regions that tile the box, which of their voxels are of the component, and at which of all their voxels two
            mitochondria touch, ``(Z, Y, X)`` bool.
        box
            From the first to the last voxel of the component along each axis.
        shape
            ``(Z, Y, X)`` of the volume.
        largest
            Cells that are held in memory.
        voxel_size
            (z, y, x) in any unit.
        split
            What splits the cells.
        """
        cell = _cell(shape_of(box), voxel_size, largest)
        # The distance to the background needs a layer of cells without voxels, but for where the volume ends.
        before = [min(s.start, 1) for s in box]
        after = [int(s.stop < length) for s, length in zip(box, shape, strict=True)]
        lengths = [-(-length // side) for length, side in zip(shape_of(box), cell, strict=True)]
        counts = np.zeros(np.sum([before, lengths, after], axis=0), np.int64)
        in_contact = np.zeros_like(counts)
        z, y, x = (s.start - rim * side for s, rim, side in zip(box, before, cell, strict=True))
        for region, inside, contacts in pieces:
            for counted, voxels in ((counts, inside), (in_contact, inside & contacts)):
                places = (np.argwhere(voxels) + [s.start for s in region] - (z, y, x)) // cell
                np.add.at(counted, tuple(places.T), 1)
        sides = voxel_size[0] * cell[0], voxel_size[1] * cell[1], voxel_size[2] * cell[2]
        return cls((z, y, x), cell, split(counts, in_contact, sides))

    def at(self, region: Region) -> NDArray[np.int32]:
        """Return the part of the cell of each voxel of a region, ``(Z, Y, X)``; 0 beyond the cells."""
        places = [
            np.clip((np.arange(s.start, s.stop) - at) // side, 0, length - 1)
            for s, at, side, length in zip(region, self.start, self.cell, self.parts.shape, strict=True)
        ]
        found: NDArray[np.int32] = self.parts[np.ix_(*places)]
        return found


def _cell(shape: Shape, voxel_size: Size, largest: int) -> Shape:
    """Return the sides of a cell in voxels: the shortest is doubled until `largest` cells tile a box and its rim."""
    cell = [1, 1, 1]
    while math.prod(2 - (-length // side) for length, side in zip(shape, cell, strict=True)) > largest:
        divisible = [axis for axis in (2, 1, 0) if cell[axis] < shape[axis]]
        if not divisible:  # a single cell and its rim
            break
        cell[min(divisible, key=lambda axis: cell[axis] * voxel_size[axis])] *= 2
    return cell[0], cell[1], cell[2]

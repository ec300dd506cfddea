"""The planes perpendicular to y and to x of a stack of any size: predicted in slabs, with their sums on disk.

See `mitoflow.inference.predictor.Predictor` for orthogonal planes. Memory holds the planes of one slab: some 200 bytes
for each voxel of a plane. Each slab is written to a place of its own, so one that is predicted again, after a kill,
gives the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr

from mitoflow.inference.parts import Part
from mitoflow.inference.predictor import Predictor
from mitoflow.io.tiff import Box
from mitoflow.io.volumes import Volume

DEPTH: Final = 16  # slices of a chunk on disk
SIDE: Final = 64  # voxels of a chunk along y and x, and planes of a slab


@dataclass(frozen=True)
class Slab:
    """Planes that lie beside each other and are predicted together.

    Attributes
    ----------
    axis
        What they are perpendicular to: 1 for y, 2 for x.
    part
        What they cover of the stack, in voxels as the model sees them.
    """

    axis: int
    part: Part

    @property
    def planes(self) -> int:
        """Number of planes."""
        return self.part.shape[self.axis]

    @property
    def name(self) -> str:
        """Its name, unique among the slabs of an output."""
        return f"planes-{'zyx'[self.axis]}-{self.part.place[self.axis].start}"


@dataclass(frozen=True)
class PlaneSums:
    """The sums of the maps of the planes perpendicular to y and to x.

    Attributes
    ----------
    folder
        Where the sums are kept.
    volume
        The stack as the model sees it.
    predictor
        The model.
    part
        What is wanted of the stack.
    """

    folder: Path
    volume: Volume
    predictor: Predictor
    part: Part

    def create(self) -> None:
        """Make room for the sums, unless an earlier process did."""
        for axis in (1, 2):
            if not (self._path(axis) / "zarr.json").exists():
                chunks = tuple(map(min, self.part.shape, (DEPTH, SIDE, SIDE)))
                zarr.create_array(self._path(axis), shape=self.part.shape, chunks=chunks, dtype=np.float16)

    def slabs(self, axis: int) -> list[Slab]:
        """Return the slabs perpendicular to an axis; those perpendicular to x need those perpendicular to y."""
        first, last = self.part.place[axis].start, self.part.place[axis].stop
        return [self._slab(axis, start, min(start + SIDE, last)) for start in range(first, last, SIDE)]

    def _slab(self, axis: int, start: int, stop: int) -> Slab:
        y0, y1, x0, x1 = self.part.box
        box = (start, stop, x0, x1) if axis == 1 else (y0, y1, start, stop)
        return Slab(axis, Part(self.part.slices, box))

    def predict(self, slab: Slab, advance: Callable[[int], object]) -> None:
        """Predict a slab and write its sums; `advance` is called with the number of planes that were just predicted."""
        region = self.predictor.slab_region(self.volume.shape[1:], slab.part.box, slab.axis)
        place = self._place(slab.part)
        slices = (self.volume.read(z, region.source) for z in range(self.volume.shape[0]))
        source = np.stack([self.predictor.checked(each) for each in slices])
        total = np.asarray(self._open(1)[place]) if slab.axis == 2 else np.zeros(slab.part.shape, np.float16)
        maps = self.predictor.planes(source, slab.axis, slab.part.slices, region)
        for summed, plane in zip(np.moveaxis(total, slab.axis, 0), maps, strict=True):
            summed += plane
            advance(1)
        self._open(slab.axis)[place] = total

    def reader(self, box: Box) -> Callable[[int], np.ndarray]:
        """Return what reads the sums of slice z in a box, (Y, X) float16 in [0, 2]; it keeps those of a chunk."""
        _, rows, columns = self._place(Part(self.part.slices, box))
        held: dict[int, np.ndarray] = {}

        def read(z: int) -> np.ndarray:
            layer, within = divmod(z - self.part.slices.start, DEPTH)
            if layer not in held:
                held.clear()
                held[layer] = np.asarray(self._open(2)[layer * DEPTH : (layer + 1) * DEPTH, rows, columns])
            sums: np.ndarray = held[layer][within]
            return sums

        return read

    def _place(self, part: Part) -> tuple[slice, slice, slice]:
        """Return where a part of the stack lies in the sums."""
        z, y, x = (
            slice(each.start - all_of_it.start, each.stop - all_of_it.start)
            for each, all_of_it in zip(part.place, self.part.place, strict=True)
        )
        return z, y, x

    def _path(self, axis: int) -> Path:
        return self.folder / f"planes-{'zyx'[axis]}.zarr"

    def _open(self, axis: int) -> zarr.Array[Any]:
        return zarr.open_array(self._path(axis), mode="r+")

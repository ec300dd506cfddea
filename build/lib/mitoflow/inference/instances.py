"""From a mask to mitochondria: holes filled, specks removed, those that touch taken apart, in volumes of any size."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from mitoflow.evaluation.instance_scores import label
from mitoflow.inference.blocks import BLOCK, Grid, Region, Shape, shape_of, within

Size = tuple[float, float, float]

LARGEST_BOX: Final = 12_000_000  # voxels; the h-maxima need some 75 bytes for each of them


@dataclass(frozen=True)
class Criteria:
    """What is a mitochondrion, and what is two.

    Attributes
    ----------
    smallest_nm3
        What is smaller is removed; in a single slice, what has less area than the great circle of a ball of this
        volume. The default is a ball of 124 nm; thin mitochondria are 100 to 200 nm across but
        long, and the smallest that is whole in the EPFL training volume has eleven times this volume.
    smallest_voxels
        The same where the voxel size is unknown. The default is a ball of ten voxels across.
    neck
        Two parts of a component are two mitochondria where the neck between them is less than this times as thick as
        the thinner part. From 0, which splits nothing, to below 1, which splits at every constriction. Of the 26
        largest components of the EPFL training volume two have a neck of at most 0.5, and all others are above 0.7.

    Raises
    ------
    ValueError
        A value is out of range.
    """

    smallest_nm3: float = 1e6
    smallest_voxels: int = 500
    neck: float = 0.6

    def __post_init__(self) -> None:
        if not (self.smallest_nm3 >= 0 and self.smallest_voxels >= 0 and 0 <= self.neck < 1):
            raise ValueError(f"{self} has a negative volume or a neck outside of [0, 1)")

    def fewest_voxels(self, shape: Shape, voxel_size: Size | None) -> int:
        """Return the voxels that a mitochondrion has at least, in a volume ``(Z, Y, X)`` of voxels in nm."""
        ball, sides = (self.smallest_voxels, (1.0, 1.0, 1.0)) if voxel_size is None else (self.smallest_nm3, voxel_size)
        if shape[0] > 1:
            return math.ceil(ball / math.prod(sides))
        radius = math.cbrt(0.75 * ball / math.pi)
        return math.ceil(math.pi * radius**2 / math.prod(sides[1:]))


def fill_holes(mask: NDArray[np.bool_], axes: Sequence[int] = (0, 1, 2)) -> NDArray[np.bool_]:
    """Return a mask with its holes: background that no path over faces of voxels leads out of.

    In 3-D and not slice by slice, for the plane of the slices means nothing to a mitochondrion: a bent or ring-shaped
    one encloses cytoplasm in one plane that is open in another. What the border of the array cuts is open.

    Parameters
    ----------
    mask
        ``(Z, Y, X)`` bool.
    axes
        The axes along which there is an outside: (1, 2) for a single slice.
    """
    background = label(~mask, connectivity=6)
    is_open = np.zeros(int(background.max()) + 1, bool)
    for axis in axes:
        for end in (0, -1):
            is_open[background.take(end, axis)] = True
    is_open[0] = False  # the mask itself
    filled: NDArray[np.bool_] = ~is_open[background]
    return filled


def split(
    component: NDArray[np.bool_], neck: float, smallest: int = 1, voxel_size: Size = (1.0, 1.0, 1.0)
) -> NDArray[np.int32]:
    """Take a component apart at its necks: a watershed of the distance to the background.

    Markers are the extended h-maxima (Soille 2003, "Morphological Image Analysis", section 6.3) of the logarithm of
    the distance, with h = -log(neck). So each way from one to another leads through a neck whose distance is less than
    ``neck`` times the largest of either part, and this ratio means the same in thick and in thin mitochondria and at
    any voxel size. Parts smaller than ``smallest`` are left with their neighbours: every voxel of the component is in
    some part.

    Parameters
    ----------
    component
        ``(Z, Y, X)`` bool, 26-connected. The border of the array is no surface: background must be in the array.
    neck
        As in `Criteria`.
    smallest
        In voxels.
    voxel_size
        (z, y, x) in any unit.

    Returns
    -------
    parts
        ``(Z, Y, X)`` int32: 0 outside of the component, and the parts are 1 to n, each 26-connected.
    """
    whole = component.astype(np.int32)
    if neck == 0 or component.all():
        return whole
    h = -math.log(neck)
    distance = ndimage.distance_transform_edt(component, sampling=voxel_size).astype(np.float32)
    height = np.log(distance, out=np.zeros_like(distance), where=component)
    height[~component] = height[component].min() - 2 * h  # so that the highest place is always a marker
    # Not h_maxima of scikit-image: to it, two maxima of equal height are two however shallow the saddle between them.
    lowered = reconstruction(height - np.float32(h), height, footprint=np.ones((3, 3, 3)))
    markers = label(local_maxima(lowered))
    if markers.max() == 1:
        return whole

    def flood(markers: NDArray[Any]) -> NDArray[np.int32]:
        parts: NDArray[np.int32] = watershed(-distance, markers.astype(np.int32), connectivity=3, mask=component)
        return parts

    parts = flood(markers)
    large = np.bincount(parts.ravel()) >= smallest
    large[0] = False
    if large[1:].all():
        return parts
    return flood((large.cumsum() * large)[markers]) if large.sum() > 1 else whole


@dataclass(frozen=True)
class Components:
    """The connected components of a volume, found block by block.

    Attributes
    ----------
    first, stop
        ``(components, 3)`` int64: the bounding box from ``first`` to before ``stop``.
    voxel
        ``(components, 3)`` int64: one voxel of each.
    block
        ``(components,)`` int64: the first grown block in raster order that has voxels of it.
    pieces
        For each block, ``(labels + 1,)`` int64: the component of each label that `label` gives in the grown block, and
        -1 for background.
    """

    first: NDArray[np.int64]
    stop: NDArray[np.int64]
    voxel: NDArray[np.int64]
    block: NDArray[np.int64]
    pieces: list[NDArray[np.int64]]

    @classmethod
    def find(cls, read: Callable[[Region], NDArray[Any]], grid: Grid) -> Components:
        """Label each grown block, and join labels of two blocks that have voxels in common."""
        outlines = [np.empty((0, 9), np.int64)]
        joins = [np.empty((2, 0), np.int64)]
        faces: dict[tuple[int, ...], tuple[NDArray[Any], int]] = {}  # labels, and how many there were before
        counts = []
        total = 0
        for place in grid.places():
            region = grid.grown(place)
            labels = label(read(region))
            outlines.append(_outline(labels, region))
            for axis, (at, blocks) in enumerate(zip(place, grid.counts, strict=True)):
                # The last plane of a grown block is the first of the next. The mask there is the same, so its voxels
                # need no places: they come in the same order. Voxels on edges and corners pass from face to face.
                side = (axis, *place[:axis], *place[axis + 1 :])
                if at > 0:
                    (before, earlier), here = faces.pop(side), _face(labels, 0, axis)
                    joins.append(np.unique(np.stack([before + earlier, here + total], dtype=np.int64), axis=1))
                if at < blocks - 1:
                    faces[side] = _face(labels, -1, axis), total
            counts.append(len(outlines[-1]))
            total += counts[-1]
        ends = np.concatenate(joins, axis=1)
        graph = sparse.coo_array((np.ones(ends.shape[1], bool), (ends[0], ends[1])), shape=(total, total))
        number, of = sparse.csgraph.connected_components(graph, directed=False) if total else (0, np.empty(0, int))
        first, stop, voxel = np.split(np.concatenate(outlines), 3, axis=1)
        firsts, stops = np.full((number, 3), np.iinfo(np.int64).max), np.zeros((number, 3), np.int64)
        np.minimum.at(firsts, of, first)
        np.maximum.at(stops, of, stop)
        earliest = np.unique(of, return_index=True)[1]
        pieces = [np.concatenate([[-1], part]) for part in np.split(of, np.cumsum(counts)[:-1])]
        return cls(firsts, stops, voxel[earliest], np.repeat(np.arange(len(counts)), counts)[earliest], pieces)


def _face(labels: NDArray[Any], end: int, axis: int) -> NDArray[Any]:
    """Return the labels of a face from 0 on, without background."""
    face = labels.take(end, axis)
    return np.asarray(face[face > 0] - 1)


def _outline(labels: NDArray[Any], region: Region) -> NDArray[np.int64]:
    """Return ``(labels, 9)``: the first voxel of the bounding box, the one after its last, and some voxel."""
    number = int(labels.max())
    boxes = np.array([[(s.start, s.stop) for s in box] for box in ndimage.find_objects(labels)], np.int64)
    places = np.flatnonzero(labels)
    some = np.empty(number + 1, np.int64)
    some[labels.ravel()[places]] = places
    voxels = np.stack(np.unravel_index(some[1:], labels.shape), axis=1)
    corner = np.tile([s.start for s in region], 3)
    outline: NDArray[np.int64] = np.concatenate([*np.moveaxis(boxes.reshape(number, 3, 2), 2, 0), voxels], axis=1)
    outline += corner
    return outline


class Separation:
    """The mitochondria of a mask of any size, with labels that do not depend on the blocks it is worked on in.

    One rule gives that: what becomes of a voxel is decided by its connected component as a whole.

    1. The components are found block by block (`Components.find`). Blocks are grown by one voxel, so that any two
       neighbours lie together in one (`blocks.Grid`), and labels of two blocks that share a voxel are one.
    2. Each component is read again in its bounding box, which holds all of it, and filled, weighed and split there. No
       block has a part in that. A component in a hole of another belongs to that one.
    3. A component is due in the first block that it reaches, and blocks are written in order. So when a block is
       written, all that reaches it is known, and each block is written once. A component with another one in its
       hole is due in the same block or an earlier one, and its box begins before, so it has its turn before.

    The labels are the same for all sizes of blocks but for their order. In memory are one block, one bounding box, the
    labels of what reaches into later blocks, compressed, of the foreground on the faces towards later blocks, as few
    bytes each as a block needs, and some numbers for each component of each block.

    A component whose bounding box is larger than ``largest`` is neither filled, split nor removed; it keeps one label,
    and `write` names it. That does not depend on the blocks either.

    Parameters
    ----------
    read
        Returns the mask ``(Z, Y, X)`` of a region, bool or {0, 1}: ``lambda region: probability[region] >= 0.5``. It
        is called twice for each block at most and once for each component, and must give the same each time.
    shape
        ``(Z, Y, X)`` of the mask.
    voxel_size
        (z, y, x) in nm, or None where it is unknown: voxels are cubes then.
    criteria
        What is a mitochondrion.
    block
        ``(Z, Y, X)`` in voxels; best a multiple of the chunks that are read and written.
    largest
        Voxels of the largest bounding box that is held in memory.
    """

    def __init__(
        self,
        read: Callable[[Region], NDArray[Any]],
        shape: Shape,
        *,
        voxel_size: Size | None = None,
        criteria: Criteria | None = None,
        block: Shape = BLOCK,
        largest: int = LARGEST_BOX,
    ) -> None:
        criteria = criteria or Criteria()
        self._read = read
        self._grid = Grid(shape, block)
        self._axes = [axis for axis in range(3) if shape[axis] > 1]
        self._voxel_size = voxel_size or (1.0, 1.0, 1.0)
        self._neck = criteria.neck
        self._fewest = criteria.fewest_voxels(shape, voxel_size)
        self._largest = largest

    def write(self, write: Callable[[Region, NDArray[np.uint32]], None]) -> list[int]:
        """Hand over the labels of each block, in raster order.

        Parameters
        ----------
        write
            Gets a region and its labels ``(Z, Y, X)`` uint32: 0 is background, and the mitochondria of the volume are
            1 to n without gaps.

        Returns
        -------
        unsplit
            The labels of components that were too large to be filled and split.
        """
        found = Components.find(self._read, self._grid)
        # Labels of components that are too large, 0 for all others; the last one is background.
        unsplit = np.zeros(len(found.first) + 1, np.uint32)
        possible = np.prod(found.stop - found.first, axis=1) >= self._fewest
        absorbed = np.zeros(len(found.first), bool)
        due = np.lexsort((*found.first.T[::-1], found.block))
        dues = iter(np.split(due, np.searchsorted(found.block[due], np.arange(1, len(found.pieces)))))
        waiting: defaultdict[Shape, list[tuple[Region, bytes]]] = defaultdict(list)
        number = 0
        for place, pieces in zip(self._grid.places(), found.pieces, strict=True):
            for component in next(dues):
                box = self._box(found.first[component], found.stop[component])
                if math.prod(shape_of(box)) > self._largest:
                    number += 1
                    unsplit[component] = number
                elif possible[component] and not absorbed[component]:
                    parts = self._separate(box, component, found, absorbed)
                    for reached, overlap in self._grid.overlaps(box):
                        part = parts[within(overlap, box)]
                        if part.any():
                            named = np.where(part > 0, part + number, 0).astype(np.uint32)
                            waiting[reached].append((overlap, zlib.compress(named.tobytes(), 1)))
                    number += int(parts.max())
            write(self._grid.region(place), self._block(place, waiting.pop(place, ()), unsplit[pieces]))
        return [int(name) for name in unsplit if name > 0]

    def _box(self, first: NDArray[np.int64], stop: NDArray[np.int64]) -> Region:
        """Return a bounding box and the voxels around it, for the surface of a component needs both its sides."""
        ends = zip(first.tolist(), stop.tolist(), self._grid.shape, strict=True)
        z, y, x = (slice(max(a - 1, 0), min(b + 1, length)) for a, b, length in ends)
        return z, y, x

    def _separate(
        self, box: Region, component: int, found: Components, absorbed: NDArray[np.bool_]
    ) -> NDArray[np.int32]:
        """Return the parts of a component, none where it is too small, and mark those in its holes as absorbed."""
        corner = [s.start for s in box]
        labels = label(self._read(box))
        alone = labels == labels[tuple(found.voxel[component] - corner)]
        filled = fill_holes(alone, self._axes)
        if (labels[filled & ~alone] > 0).any():
            places = found.voxel - corner
            inside = np.flatnonzero(((places >= 0) & (places < labels.shape)).all(1))
            absorbed[inside[filled[tuple(places[inside].T)]]] = True
        if np.count_nonzero(filled) < self._fewest:
            return np.zeros(filled.shape, np.int32)
        return split(filled, self._neck, self._fewest, self._voxel_size)

    def _block(
        self, place: Shape, waiting: Sequence[tuple[Region, bytes]], unsplit: NDArray[np.uint32]
    ) -> NDArray[np.uint32]:
        region = self._grid.region(place)
        labels = np.zeros(shape_of(region), np.uint32)
        if unsplit.any():
            grown = self._grid.grown(place)
            labels = unsplit[label(self._read(grown))][within(region, grown)]
        for overlap, packed in waiting:
            part = np.frombuffer(zlib.decompress(packed), np.uint32).reshape(shape_of(overlap))
            here = labels[within(overlap, region)]
            np.copyto(here, part, where=part > 0)
        return labels


def separate(mask: NDArray[Any], voxel_size: Size | None = None) -> NDArray[np.uint32]:
    """Return the mitochondria of a mask that fits into memory; see `Separation` and `Separation.write`.

    Parameters
    ----------
    mask
        ``(Z, Y, X)`` bool or {0, 1}.
    voxel_size
        (z, y, x) in nm, or None where it is unknown.
    """
    labels = np.zeros(mask.shape, np.uint32)
    depth, height, width = mask.shape
    Separation(lambda region: mask[region], (depth, height, width), voxel_size=voxel_size).write(labels.__setitem__)
    return labels

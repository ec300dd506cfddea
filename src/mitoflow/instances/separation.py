"""From a mask to instances: holes filled, specks removed, touching mitochondria separated, in volumes of any size."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import edt
import numpy as np
from numpy.typing import NDArray
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from mitoflow.config.params import Instances
from mitoflow.instances.coarse_parts import CoarseParts
from mitoflow.instances.components import Components, label
from mitoflow.io.blocks import BLOCK, Grid, Region, Shape, grown_box, shape_of, within
from mitoflow.io.spacing import NM3_PER_UM3, Size

LARGEST_BOX: Final = 12_000_000  # voxels; the h-maxima need some 75 bytes for each of them


def fewest_voxels(criteria: Instances, shape: Sequence[int], voxel_size: Size | None) -> int:
    """Return how many voxels a mitochondrion has at least, in a volume of ``shape`` (Z, Y, X); voxel size in nm."""
    if voxel_size is None:
        ball, sides = float(criteria.smallest_voxels), (1.0, 1.0, 1.0)
    else:
        ball, sides = criteria.smallest_um3 * NM3_PER_UM3, voxel_size
    if shape[0] > 1:
        return math.ceil(round(ball / math.prod(sides), 6))
    radius = math.cbrt(0.75 * ball / math.pi)
    return math.ceil(math.pi * radius**2 / math.prod(sides[1:]))


def large_labels(labels: NDArray[Any], criteria: Instances, voxel_size: Size | None) -> NDArray[np.uint32]:
    """Return the labels (Z, Y, X) of mitochondria that are large enough to count, numbered without gaps from 1."""
    values, places, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    counts = (values > 0) & (sizes >= fewest_voxels(criteria, labels.shape, voxel_size))
    return np.asarray((np.cumsum(counts) * counts)[places].reshape(labels.shape), np.uint32)


def fill_holes(mask: NDArray[np.bool_], axes: Sequence[int] = (0, 1, 2)) -> NDArray[np.bool_]:
    """Return a mask with its holes filled: background that is not 6-connected to the border of the array.

    In 3-D and not slice by slice, because the plane of the slices means nothing to a mitochondrion: a bent or
    ring-shaped one encloses cytoplasm in one plane that is open in another.

    Parameters
    ----------
    mask
        ``(Z, Y, X)`` bool.
    axes
        The axes whose ends are the border: (1, 2) for a single slice.
    """
    # Not fill-voids, which is twice as fast and saves 1 % of `Separation`: release 2.1.2 also fills open background
    # that reaches the border in a single voxel.
    background = label(~mask, connectivity=6)
    is_open = np.zeros(int(background.max()) + 1, bool)
    for axis in axes:
        for end in (0, -1):
            is_open[background.take(end, axis)] = True
    is_open[0] = False  # the mask itself
    filled: NDArray[np.bool_] = ~is_open[background]
    return filled


def split_at_necks(
    component: NDArray[np.bool_],
    neck: float,
    smallest: int = 1,
    voxel_size: Size = (1.0, 1.0, 1.0),
    counts: NDArray[np.int64] | None = None,
    contacts: NDArray[np.bool_] | None = None,
) -> NDArray[np.int32]:
    """Split a component at its necks: a watershed of the distance to the background.

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
        As in `mitoflow.config.params.Instances`.
    smallest
        In voxels.
    voxel_size
        (z, y, x) in any unit.
    counts
        How many voxels each element stands for, ``(Z, Y, X)``, where the elements are cells of a coarser grid.
    contacts
        Where two mitochondria touch, ``(Z, Y, X)`` bool. Distances are measured to these voxels too, so that a line of
        them is a neck, however thick the component is there.

    Returns
    -------
    parts
        ``(Z, Y, X)`` int32: 0 outside of the component, and the parts are 1 to n, each 26-connected.
    """
    whole = component.astype(np.int32)
    inside = component if contacts is None else component & ~contacts
    if neck == 0 or inside.all() or not inside.any():
        return whole
    h = -math.log(neck)
    distance = distance_to_background(inside, voxel_size)
    height = np.log(distance, out=np.zeros_like(distance), where=inside)
    height[~inside] = height[inside].min() - 2 * h  # so that the highest place is always a marker
    # Not h_maxima of scikit-image: to it, two maxima of equal height are two however shallow the saddle between them.
    lowered = reconstruction(height - np.float32(h), height, footprint=np.ones((3, 3, 3)))
    markers = label(local_maxima(lowered))
    if markers.max() == 1:
        return whole

    def flood(markers: NDArray[Any]) -> NDArray[np.int32]:
        parts: NDArray[np.int32] = watershed(-distance, markers.astype(np.int32), connectivity=3, mask=component)
        return parts

    while True:
        parts = flood(markers)
        large = np.bincount(parts.ravel(), None if counts is None else counts.ravel()) >= smallest
        large[0] = False
        if large[1:].all():
            return parts
        if large.sum() <= 1:
            return whole
        # Pixels in contact are all equally low: with fewer markers they go to other parts, and one may get too small.
        markers = (large.cumsum() * large)[markers]


def distance_to_background(mask: NDArray[np.bool_], voxel_size: Size) -> NDArray[np.float32]:
    """Return the exact Euclidean distance of each voxel to the nearest background voxel, in the unit of the voxel size.

    Parameters
    ----------
    mask
        ``(Z, Y, X)`` bool with background in it; the border of the array is none.
    voxel_size
        (z, y, x).
    """
    if len(mask) == 1:  # as a plane: the same distances, and edt takes 20 to 40 times as long for a volume of one slice
        return np.asarray(edt.edt(mask[0], anisotropy=voxel_size[1:])[None])
    return np.asarray(edt.edt(mask, anisotropy=voxel_size))


class Separation:
    """The mitochondria of a mask of any size, with labels that do not depend on how it is divided into blocks.

    The invariant: what becomes of a voxel depends on its connected component alone, and never on a block.

    1. The components are found block by block (`Components.find`).
    2. Each component is read again in its bounding box, which holds all of it, and is filled, measured and split there.
       A component in a hole of another one becomes part of that one.
    3. A component is processed with the first block that it reaches, and blocks are written in raster order. So when a
       block is written, everything that reaches it has been processed, and each block is written once. A component
       with another one in its hole reaches the same block or an earlier one, and its box begins before, so it is
       processed first.

    Other sizes of blocks give the same labels in another order. Memory holds one block, one bounding box, the labels
    for later blocks (compressed), the cells of components that are too large, the labels of the foreground on the faces
    towards later blocks, and a few numbers for each component of each block.

    A component whose bounding box is larger than ``largest`` is not read in one piece. It is split on a coarser grid
    (`coarse_parts.CoarseParts`), so that necks thinner than a cell are not found, a cell is in contact where at least
    half of its voxels are, and its holes stay open. `write` returns the labels of such parts. They do not depend on the
    blocks either.

    Parameters
    ----------
    read
        Returns the mask ``(Z, Y, X)`` of a region, bool or {0, 1}: ``lambda region: probability[region] >= 0.5``. It
        is called at most twice for each block and once for each component, for one that is too large once more for each
        block that it reaches, and must return the same each time.
    shape
        ``(Z, Y, X)`` of the mask.
    criteria
        Smallest size and neck.
    voxel_size
        (z, y, x) in nm, or None where it is unknown: voxels are cubes then.
    block
        ``(Z, Y, X)`` in voxels, preferably a multiple of the chunks that are read and written.
    largest
        Voxels of the largest bounding box that is held in memory.
    contacts
        Returns for a region, ``(Z, Y, X)`` bool, where two mitochondria touch; see `split_at_necks`. None where that is
        not known. It is called once for each component, and for one that is too large once for each block that it
        reaches.
    """

    def __init__(
        self,
        read: Callable[[Region], NDArray[Any]],
        shape: Shape,
        *,
        criteria: Instances,
        voxel_size: Size | None = None,
        block: Shape = BLOCK,
        largest: int = LARGEST_BOX,
        contacts: Callable[[Region], NDArray[np.bool_]] | None = None,
    ) -> None:
        self._read, self._contacts = read, contacts
        self._grid = Grid(shape, block)
        self._axes = [axis for axis in range(3) if shape[axis] > 1]
        self._voxel_size = voxel_size or (1.0, 1.0, 1.0)
        self._neck = criteria.neck
        self._fewest = fewest_voxels(criteria, shape, voxel_size)
        self._largest = largest

    def write(self, write: Callable[[Region, NDArray[np.uint32]], None]) -> list[int]:
        """Compute the labels of each block, in raster order.

        Parameters
        ----------
        write
            Called with a region and its labels ``(Z, Y, X)`` uint32: 0 is background, and the mitochondria of the
            volume are 1 to n without gaps.

        Returns
        -------
        coarse
            The labels of parts that were split on a coarser grid.
        """
        found = Components.find(self._read, self._grid)
        too_large: dict[int, tuple[CoarseParts, int]] = {}  # and the number of labels before
        coarse: list[int] = []
        possible = np.prod(found.stop - found.first, axis=1) >= self._fewest
        absorbed = np.zeros(len(found.first), bool)
        due = np.lexsort((*found.first.T[::-1], found.block))
        dues = iter(np.split(due, np.searchsorted(found.block[due], np.arange(1, len(found.pieces)))))
        waiting: defaultdict[Shape, list[tuple[Region, bytes]]] = defaultdict(list)
        number = 0
        for place, pieces in zip(self._grid.places(), found.pieces, strict=True):
            for component in next(dues):
                # The distance to the background needs background around the component.
                box = grown_box(found.first[component].tolist(), found.stop[component].tolist(), self._grid.shape)
                if math.prod(shape_of(box)) > self._largest:
                    cells = self._separate_cells(component, found)
                    too_large[component] = cells, number
                    coarse += range(number + 1, number + 1 + int(cells.parts.max()))
                    number += int(cells.parts.max())
                elif possible[component] and not absorbed[component]:
                    parts = self._separate(box, component, found, absorbed)
                    for reached, overlap in self._grid.overlaps(box):
                        part = parts[within(overlap, box)]
                        if part.any():
                            named = np.where(part > 0, part + number, 0).astype(np.uint32)
                            waiting[reached].append((overlap, zlib.compress(named.tobytes(), 1)))
                    number += int(parts.max())
            present = {component: cells for component, cells in too_large.items() if (pieces == component).any()}
            write(self._grid.region(place), self._block(place, waiting.pop(place, ()), pieces, present))
        return coarse

    def _separate_cells(self, component: int, found: Components) -> CoarseParts:
        """Return the parts of a component that is too large to be read in one piece."""
        starts, stops = found.first[component].tolist(), found.stop[component].tolist()
        z, y, x = (slice(start, stop) for start, stop in zip(starts, stops, strict=True))

        def pieces() -> Iterator[tuple[Region, NDArray[np.bool_], NDArray[np.bool_]]]:
            for place, overlap in self._grid.overlaps((z, y, x)):
                of_block = found.pieces[int(np.ravel_multi_index(place, self._grid.counts))]
                inside = self._components(place, overlap, of_block) == component
                yield overlap, inside, self._contacts(overlap) if self._contacts else np.zeros_like(inside)

        def split(counts: NDArray[np.int64], contacts: NDArray[np.int64], sides: Size) -> NDArray[np.int32]:
            if counts.sum() < self._fewest:
                return np.zeros(counts.shape, np.int32)
            touching = 2 * contacts >= np.maximum(counts, 1)
            return split_at_necks(counts > 0, self._neck, self._fewest, sides, counts, touching)

        return CoarseParts.of(pieces(), (z, y, x), self._grid.shape, self._largest, self._voxel_size, split)

    def _components(self, place: Shape, region: Region, pieces: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the component of each voxel of a region of a block, -1 for background."""
        grown = self._grid.grown(place)
        components: NDArray[np.int64] = pieces[label(self._read(grown))[within(region, grown)]]
        return components

    def _separate(
        self, box: Region, component: int, found: Components, absorbed: NDArray[np.bool_]
    ) -> NDArray[np.int32]:
        """Return the parts of a component, none where it is too small; mark components in its holes as absorbed."""
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
        contacts = self._contacts(box) if self._contacts else None
        return split_at_necks(filled, self._neck, self._fewest, self._voxel_size, contacts=contacts)

    def _block(
        self,
        place: Shape,
        waiting: Sequence[tuple[Region, bytes]],
        pieces: NDArray[np.int64],
        too_large: Mapping[int, tuple[CoarseParts, int]],
    ) -> NDArray[np.uint32]:
        region = self._grid.region(place)
        labels = np.zeros(shape_of(region), np.uint32)
        if too_large:
            components = self._components(place, region, pieces)
            for component, (cells, number) in too_large.items():
                part = cells.at(region).astype(np.uint32)
                np.copyto(labels, part + np.uint32(number), where=(components == component) & (part > 0))
        for overlap, packed in waiting:
            part = np.frombuffer(zlib.decompress(packed), np.uint32).reshape(shape_of(overlap))
            here = labels[within(overlap, region)]
            np.copyto(here, part, where=part > 0)
        return labels


def separate(
    mask: NDArray[Any],
    criteria: Instances,
    voxel_size: Size | None = None,
    contacts: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint32]:
    """Return the mitochondria of a mask that fits into memory; see `Separation` and `Separation.write`.

    Parameters
    ----------
    mask
        ``(Z, Y, X)`` bool or {0, 1}.
    criteria
        Smallest size and neck.
    voxel_size
        (z, y, x) in nm, or None where it is unknown.
    contacts
        ``(Z, Y, X)`` bool: where two mitochondria touch; None where that is not known.
    """
    labels = np.zeros(mask.shape, np.uint32)
    depth, height, width = mask.shape
    whole = Separation(
        lambda region: mask[region],
        (depth, height, width),
        criteria=criteria,
        voxel_size=voxel_size,
        contacts=None if contacts is None else lambda region: contacts[region],
    )
    whole.write(labels.__setitem__)
    return labels

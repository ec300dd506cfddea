"""Connected components of a volume, in one piece or block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from mitoflow.io.blocks import Grid, Region

CONNECTIVITY: Final = 26  # voxels that share a face, an edge or a corner are of one mitochondrion


def label(mask: NDArray[Any], connectivity: Literal[6, 26] = CONNECTIVITY) -> NDArray[np.unsignedinteger[Any]]:
    """Return the connected components of a mask.

    Mitochondria that touch become one, and one that the stack cuts twice becomes two: in truth as in prediction.

    Parameters
    ----------
    mask
        ``(Z, Y, X)`` bool or {0, 1}.
    connectivity
        6: neighbours share a face. 26: a face, an edge or a corner.

    Returns
    -------
    labels
        ``(Z, Y, X)`` uint16 or uint32: 0 is background, and the components are 1 to n without gaps.
    """
    # As bool it would reserve too few labels for voxels that alternate in a thin volume, and fail; and be no faster.
    labels: NDArray[np.unsignedinteger[Any]] = cc3d.connected_components(
        mask.astype(np.uint8, copy=False), connectivity=connectivity
    )
    return labels


@dataclass(frozen=True)
class Components:
    """The connected components of a volume, found block by block.

    Blocks are grown by one voxel (`blocks.Grid`), so any two neighbours lie together in one of them, and labels of two
    blocks that have a voxel in common belong to one component.

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
    """Return ``(labels, 9)`` of each label in order: where its bounding box begins and ends, and one of its voxels."""
    boxes = np.array([[(s.start, s.stop) for s in box] for box in ndimage.find_objects(labels)], np.int64)
    first, stop = np.moveaxis(boxes.reshape(-1, 3, 2), 2, 0)
    places = np.flatnonzero(labels)
    some = np.empty(len(first) + 1, np.int64)
    some[labels.ravel()[places]] = places
    voxels = np.stack(np.unravel_index(some[1:], labels.shape), axis=1)
    outline: NDArray[np.int64] = np.concatenate([first, stop, voxels], axis=1)
    outline += np.tile([s.start for s in region], 3)
    return outline

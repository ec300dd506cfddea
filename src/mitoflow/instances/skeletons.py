"""The centreline of a mitochondrion: its length, branches, ends and diameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csgraph
from skimage.graph import pixel_graph
from skimage.morphology import skeletonize

from mitoflow.instances.components import label
from mitoflow.instances.separation import distance_to_background
from mitoflow.io.spacing import Size

SMOOTHING: Final = 2.0  # standard deviation of the Gaussian filter, in voxels


@dataclass(frozen=True)
class Skeleton:
    """What the centreline of an object shows.

    Attributes
    ----------
    length
        Of all branches, in the unit of the voxel size. It begins and ends inside of the object, so an unbranched rod is
        up to its own diameter longer.
    branches
        Stretches between junctions and ends; a ring is one branch, and so is a ball.
    ends
        Where a branch ends and no other begins; a ring has none, and neither has a ball that is thinned to one voxel.
    diameter
        Twice the mean distance from the centreline to the background, in the unit of the voxel size.
    """

    length: float
    branches: int
    ends: int
    diameter: float


def measure_skeleton(component: NDArray[np.bool_], voxel_size: Size) -> Skeleton:
    """Thin an object to its centreline, and measure that.

    Voxels are removed from the surface until a line is left: Lee, Kashyap and Chu 1994, "Building skeleton models via
    3-D medial surface/axis thinning algorithms", CVGIP 56, in 3-D; Zhang and Suen 1984, "A fast parallel algorithm for
    thinning digital patterns", CACM 27, in a single slice.

    Drawn and predicted surfaces are rough, and each bump would be a branch. So the object is smoothed before, unless
    it falls apart by that, and branches that are no longer than it is thick where they begin are cut off.

    Parameters
    ----------
    component
        ``(Z, Y, X)`` bool, with background in it. The border of the array is no surface.
    voxel_size
        (z, y, x) in any unit.
    """
    is_slice = len(component) == 1
    distance = distance_to_background(component, voxel_size)
    smooth = _smoothed(component, voxel_size)
    line = skeletonize(smooth[0] if is_slice else smooth).astype(bool)
    if not line.any():  # scikit-image thins a cube of two voxels to nothing
        line.ravel()[distance.argmax()] = True
    sides = voxel_size[1:] if is_slice else voxel_size
    graph, places = pixel_graph(line, connectivity=line.ndim, spacing=sides, sparse_type="array")
    graph, radius = _without_spurs(graph, distance.ravel()[places])
    parts = _Parts.of(graph)
    return Skeleton(
        length=parts.length,
        branches=max(1, parts.branches),
        ends=int(np.count_nonzero(_neighbours(graph) == 1)),
        diameter=2 * float(radius.mean()),
    )


def _smoothed(component: NDArray[np.bool_], voxel_size: Size) -> NDArray[np.bool_]:
    """Return an object without bumps of a voxel or two, measured along the axis of the shortest voxels."""
    axes = (1, 2) if len(component) == 1 else (0, 1, 2)
    finest = min(voxel_size[axis] for axis in axes)
    widths = [SMOOTHING * finest / voxel_size[axis] if axis in axes else 0 for axis in range(3)]
    filtered = ndimage.gaussian_filter(component.astype(np.float32), widths, mode="nearest")
    smooth: NDArray[np.bool_] = component & (filtered > 0.5)
    return smooth if label(smooth).max() == 1 else component


@dataclass(frozen=True)
class _Parts:
    """A skeleton taken apart: junctions, which are voxels with more than two neighbours, and branches between them.

    Attributes
    ----------
    is_junction
        ``(voxels,)`` bool.
    junction, branch
        ``(junction voxels,)`` and ``(other voxels,)`` int: the junction or the branch of each; a junction may have
        several voxels.
    branches
        How many there are.
    length
        Of all edges. Within a junction only its minimum spanning tree counts, because the edges there go in circles.
    """

    is_junction: NDArray[np.bool_]
    junction: NDArray[np.int32]
    branch: NDArray[np.int32]
    branches: int
    length: float

    @classmethod
    def of(cls, graph: Any) -> _Parts:
        is_junction = _neighbours(graph) > 2
        clumps, stretches = graph[is_junction][:, is_junction], graph[~is_junction][:, ~is_junction]
        _, junction = csgraph.connected_components(clumps, directed=False)
        branches, branch = csgraph.connected_components(stretches, directed=False)
        tree = csgraph.minimum_spanning_tree(clumps).sum()
        length = graph.sum() / 2 - clumps.sum() / 2 + tree
        return cls(is_junction, junction, branch, branches, float(length))


def _neighbours(graph: Any) -> NDArray[np.int32]:
    return np.diff(graph.indptr)


def _without_spurs(graph: Any, radius: NDArray[np.float32]) -> tuple[Any, NDArray[np.float32]]:
    """Return a graph, and the distances of its voxels to the background, without spurs.

    A spur is a branch at one junction that is no longer than twice the distance from this junction to the background.
    The shortest at each junction goes first, because the others may be the continuation of the line then.
    """
    while True:
        parts = _Parts.of(graph)
        rows, columns = np.flatnonzero(~parts.is_junction), np.flatnonzero(parts.is_junction)
        steps = graph[rows][:, columns].tocoo()  # from a branch to a junction
        branch, junction = parts.branch[steps.row], parts.junction[steps.col]
        thickness, step = np.zeros(parts.branches), np.full(parts.branches, np.inf)
        np.maximum.at(thickness, branch, radius[columns[steps.col]])
        np.minimum.at(step, branch, steps.data)
        length = step + np.bincount(parts.branch, graph[rows][:, rows].sum(1) / 2, parts.branches)
        pairs = np.unique(np.stack([branch, junction]), axis=1)
        junctions, at = np.bincount(pairs[0], minlength=parts.branches), np.zeros(parts.branches, np.int64)
        at[pairs[0]] = pairs[1]

        spurs = np.flatnonzero((junctions == 1) & (length <= 2 * thickness))
        if not len(spurs):
            return graph, radius
        spurs = spurs[np.argsort(length[spurs], kind="stable")]
        spurs = spurs[np.unique(at[spurs], return_index=True)[1]]
        kept = np.ones(len(radius), bool)
        kept[rows[np.isin(parts.branch, spurs)]] = False
        graph, radius = graph[kept][:, kept], radius[kept]

"""What can be added up over the blocks of a labelled volume: sizes, places, surfaces, grey values and regions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mitoflow.io.blocks import Grid, Region, shape_of

Reals = NDArray[np.float64]
Read = Callable[[Region], NDArray[Any]]

# One of each two opposite neighbours of a voxel, as steps (z, y, x).
STEPS: Final = tuple(step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0))
MOMENTS: Final = tuple(itertools.combinations_with_replacement(range(3), 2))


@dataclass(frozen=True)
class LabelSums:
    """Sums over the voxels of each label, in order of the labels.

    Attributes
    ----------
    labels, voxels
        ``(n,)`` int64.
    first, last
        ``(n, 3)`` int64: the corners of the bounding box, both within it.
    centroid
        ``(n, 3)`` float64, in voxels; the middle of the first voxel is 0.
    covariance
        ``(n, 3, 3)`` float64: of the places of the voxels, in voxels.
    crossings
        ``(n, 13)`` int64: how often a step along each of `STEPS` leads in or out.
    """

    labels: NDArray[np.int64]
    voxels: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    centroid: Reals
    covariance: Reals
    crossings: NDArray[np.int64]

    @classmethod
    def of(cls, read: Read, grid: Grid) -> LabelSums:
        """Add up the labels that ``read`` returns, one block in memory at a time.

        Each voxel and each pair of neighbours counts in one block only (see `Grid`), so nothing depends on the blocks.
        """
        tallies = [_tally(read(grid.grown(place)), grid.region(place)) for place in grid.places()]
        names, sums, firsts, stops = (np.concatenate(parts) for parts in zip(*tallies, strict=True))
        labels, of = np.unique(names, return_inverse=True)
        total = np.zeros((len(labels), sums.shape[1]))
        first = np.full((len(labels), 3), np.iinfo(np.int64).max)
        stop = np.zeros((len(labels), 3), np.int64)
        np.add.at(total, of, sums)
        np.minimum.at(first, of, firsts)
        np.maximum.at(stop, of, stops)

        voxels, places, products, crossings = np.split(total, np.cumsum([1, 3, len(MOMENTS)]), axis=1)
        centroid = places / voxels
        covariance = np.empty((len(labels), 3, 3))
        for (i, j), product in zip(MOMENTS, products.T, strict=True):
            covariance[:, i, j] = covariance[:, j, i] = product / voxels[:, 0] - centroid[:, i] * centroid[:, j]
        sizes, surface = voxels[:, 0].astype(np.int64), crossings.astype(np.int64)
        return cls(labels, sizes, first, stop - 1, centroid, covariance, surface)

    def where(self, kept: NDArray[np.bool_]) -> LabelSums:
        """Return the sums of those labels alone for which ``kept``, (n,), is true."""
        return LabelSums(**{name: values[kept] for name, values in vars(self).items()})


def grey_values(read: Read, read_image: Read, grid: Grid, labels: NDArray[np.int64]) -> tuple[Reals, Reals]:
    """Return the mean and the standard deviation of the grey values of each of ``labels``, which are sorted, (n,).

    ``read`` returns unsigned integers below 2**63.
    """
    sums = np.zeros((3, len(labels)))
    for place in grid.places():
        region = grid.region(place)
        # NumPy compares unsigned with signed integers as float64, which mixes up labels above 2**53.
        found, grey = read(region).astype(np.int64), read_image(region).astype(np.float64)
        inside = np.isin(found, labels)
        of, values = np.searchsorted(labels, found[inside]), grey[inside]
        sums += [np.bincount(of, weight, len(labels)) for weight in (None, values, values**2)]
    mean = sums[1] / sums[0]
    return mean, np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0))


@dataclass(frozen=True)
class Regions:
    """Regions of interest, such as cells, in order of their labels, and the mitochondria in them.

    Attributes
    ----------
    labels, voxels
        ``(regions,)`` int64.
    mitochondrial
        ``(regions,)`` int64: voxels of mitochondria.
    of
        ``(n,)`` int64: the region that has most voxels of a mitochondrion, 0 where most are in none.
    """

    labels: NDArray[np.int64]
    voxels: NDArray[np.int64]
    mitochondrial: NDArray[np.int64]
    of: NDArray[np.int64]

    @classmethod
    def count(cls, read: Read, read_regions: Read, grid: Grid, labels: NDArray[np.int64]) -> Regions:
        """Count the voxels that each of ``labels``, (n,), sorted, shares with each region; other labels do not count.

        Both readers return unsigned integers ``(Z, Y, X)`` below 2**63, with 0 for background.
        """
        shared: dict[tuple[int, int], int] = {}
        for place in grid.places():
            region = grid.region(place)
            found, inside = read(region).ravel().astype(np.int64), read_regions(region).ravel()  # as in `grey_values`
            rank = np.where(np.isin(found, labels), np.searchsorted(labels, found) + 1, 0)
            names, of = np.unique(inside, return_inverse=True)
            pairs, voxels = np.unique(of.astype(np.int64) * (len(labels) + 1) + rank, return_counts=True)
            for (name, label), count in zip(zip(*np.divmod(pairs, len(labels) + 1), strict=True), voxels, strict=True):
                key = int(names[name]), int(label)
                shared[key] = shared.get(key, 0) + int(count)
        names = np.array(sorted({name for name, _ in shared} - {0}), np.int64)
        table = np.zeros((len(names) + 1, len(labels) + 1), np.int64)  # 0 is no region, and no mitochondrion
        for (name, label), count in shared.items():
            table[np.searchsorted(names, name) + 1 if name else 0, label] = count
        most = np.concatenate([[0], names])[table[:, 1:].argmax(0)]
        return cls(names, table[1:].sum(1), table[1:, 1:].sum(1), most)


def _tally(labels: NDArray[Any], region: Region) -> tuple[NDArray[Any], ...]:
    """Add up what one block knows of each label.

    Parameters
    ----------
    labels
        ``(Z, Y, X)`` of the grown block.
    region
        The block itself.

    Returns
    -------
    names
        ``(labels,)`` int64.
    sums
        ``(labels, 23)`` float64: voxels, sums of their places, of the products `MOMENTS` of these, and crossings.
    first, stop
        ``(labels, 3)`` int64: the bounding box; for a label of the growth alone an empty one, which changes no other.
    """
    foreground = labels > 0
    names, ranks = np.unique(labels[foreground], return_inverse=True)
    ranked = np.zeros(labels.shape, np.uint32)
    ranked[foreground] = ranks + 1
    number = len(names) + 1

    core = ranked[tuple(slice(length) for length in shape_of(region))]
    places = np.stack(np.nonzero(core), axis=1)
    of = core[tuple(places.T)]
    corner = [s.start for s in region]
    where = (places + corner).T.astype(np.float64)
    weights = [None, *where, *(where[i] * where[j] for i, j in MOMENTS)]
    sums = [np.bincount(of, weight, number) for weight in weights]
    sums += [_crossings(ranked, step, core.shape, number) for step in STEPS]

    first = np.full((len(names), 3), np.iinfo(np.int64).max)
    stop = np.zeros((len(names), 3), np.int64)
    for rank, box in enumerate(ndimage.find_objects(core, len(names))):
        if box is not None:
            first[rank], stop[rank] = (np.array([(s.start, s.stop) for s in box]) + np.c_[corner]).T
    return names.astype(np.int64), np.stack(sums, axis=1)[1:], first, stop


def _crossings(labels: NDArray[Any], step: tuple[int, ...], core: tuple[int, ...], number: int) -> NDArray[np.int64]:
    """Return ``(number,)``: how many steps lead from a voxel of each label to one of another or back.

    A step is taken where the lowest z, y and x of both its ends is in the core.
    """
    near = tuple(slice(1, None) if d < 0 else slice(-1 if d else n) for d, n in zip(step, core, strict=True))
    far = tuple(slice(-1) if d < 0 else slice(1 if d else 0, None if d else n) for d, n in zip(step, core, strict=True))
    here, there = labels[near], labels[far]
    ends = here != there
    return np.bincount(here[ends], minlength=number) + np.bincount(there[ends], minlength=number)

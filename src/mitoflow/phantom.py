"""The synthetic EM stack that a fresh clone runs on.

It is drawn, not acquired: cells, membranes, mitochondria and their look-alikes are geometric shapes with noise on top.
It exercises the pipeline and shows that training works; no number obtained on it says anything about real tissue.

The same seed gives the same bytes on every machine. Everything is integer arithmetic on fixed-width arrays, which every
processor does alike, and random numbers are raw output of PCG64, whose stream NumPy guarantees for a given seed (its
`Generator` methods carry no such promise). Lengths are in eighths of a pixel (`PX`), square roots and membrane
profiles come from integer tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mitoflow.volumes import write_stack

Ints = npt.NDArray[Any]
Shape = tuple[int, int, int]

PX = 8
ROOTS = np.repeat(np.arange(1024, dtype=np.int32), 2 * np.arange(1024) + 1)  # isqrt of 0 ... 2**20 - 1


class Draws:
    """Random integers that are the same on every machine and with every NumPy."""

    def __init__(self, seed: int) -> None:
        self._source = np.random.PCG64(seed)

    def below(self, limit: int, *shape: int) -> Ints:
        """Return int64 from 0 to ``limit`` - 1 (a scalar array without ``shape``)."""
        raw = self._source.random_raw(math.prod(shape)).astype(np.uint64)
        return ((raw >> np.uint64(40)) * np.uint64(limit) >> np.uint64(24)).astype(np.int64).reshape(shape)

    def between(self, low: int, high: int) -> int:
        """Return one integer from ``low`` to ``high``."""
        return low + int(self.below(high - low + 1, 1)[0])

    def bytes(self, shape: Shape) -> npt.NDArray[np.uint8]:
        """Return uniform bytes."""
        count = math.prod(shape)
        raw = np.asarray(self._source.random_raw((count + 7) // 8), dtype="<u8")
        return raw.view(np.uint8)[:count].reshape(shape)


def smooth_noise(draws: Draws, shape: tuple[int, ...], cells: tuple[int, ...], amplitude: int) -> Ints:
    """Return a random field that is smooth over ``cells`` pixels an axis.

    A quadratic B-spline through a random lattice, which keeps it within ``-amplitude ... amplitude``; int32.
    """
    lattice = draws.below(1 << 13, *(length // cell + 3 for length, cell in zip(shape, cells, strict=True)))
    field = (lattice - (1 << 12)).astype(np.int32)
    for axis, (length, cell) in enumerate(zip(shape, cells, strict=True)):
        index, t = np.divmod(np.arange(length, dtype=np.int32), cell)
        weights = ((cell - t) ** 2, cell * cell + 2 * cell * t - 2 * t * t, t * t)
        along = [-1 if a == axis else 1 for a in range(len(shape))]
        field = sum(field.take(index + k, axis) * w.reshape(along) for k, w in enumerate(weights)) // (2 * cell * cell)
    return field * amplitude >> 12


def profile(x: Ints, *corners: tuple[int, int]) -> Ints:
    """Return the piecewise linear function through ``corners`` (x, y), constant beyond the outer ones."""
    (first, y), last = corners[0], corners[-1][0]
    table = np.full(last - first + 1, y, np.int32)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:], strict=False):
        steps = np.arange(x1 - x0 + 1, dtype=np.int32)
        table[x0 - first : x1 - first + 1] = y0 + (y1 - y0) * steps // (x1 - x0)
    return table[np.clip(x, first, last) - first]


@dataclass
class Seeds:
    """Overlapping discs that make up the cells: positions at slice 0, radii and the cell of each; lengths in PX."""

    y: list[int]
    x: list[int]
    radius: list[int]
    cell: list[int]

    def has_room(self, y: int, x: int, radius: int) -> bool:
        return all(
            16 * ((y - oy) ** 2 + (x - ox) ** 2) > 9 * (radius + r) ** 2
            for oy, ox, r in zip(self.y, self.x, self.radius, strict=True)
        )


def scatter(draws: Draws, height: int, width: int) -> Seeds:
    """Lay out cells of one to five discs: large ones first, then ever smaller ones in the room that is left."""
    seeds, margin, area = Seeds([], [], [], []), 48, (height + 96) * (width + 96)
    for radius, length, share in ((44, 2, 40), (28, 2, 16), (17, 4, 4), (12, 2, 2)):
        for _ in range(area // (radius * radius) * 8 // share):
            r = radius * PX * draws.between(80, 120) // 100
            y, x = (draws.between(-margin * PX, (n + margin) * PX) for n in (height, width))
            if not seeds.has_room(y, x, r):
                continue
            cell = seeds.cell[-1] + 1 if seeds.cell else 0
            dy, dx = draws.between(-64, 64), draws.between(-64, 64)
            for _ in range(draws.between(1, length)):
                seeds.y.append(y), seeds.x.append(x), seeds.radius.append(r), seeds.cell.append(cell)
                norm = max(1, math.isqrt(dy * dy + dx * dx))
                y, x = y + r * dy // norm, x + r * dx // norm
                dy, dx = dy + draws.between(-24, 24), dx + draws.between(-24, 24)
                r = r * draws.between(80, 110) // 100
    return seeds


def partition(draws: Draws, shape: Shape) -> tuple[Ints, Ints]:
    """Divide the volume into cells that bend and shift from slice to slice.

    Each slice is an additively weighted Voronoi diagram of drifting discs in warped coordinates.

    Returns
    -------
    cells: (Z, Y, X) int16
        The cell of every voxel.
    depth: (Z, Y, X) int16
        The in-plane distance to the nearest other cell, in PX.
    """
    layout = scatter(draws, *shape[1:])
    cell, radius = np.array(layout.cell, np.int32), np.array(layout.radius, np.int32)
    count = cell.max() + 1
    sway = [np.stack([smooth_noise(draws, shape[:1], (32,), 40 * PX) for _ in range(count)]) for _ in "yx"]
    slope = [draws.below(2 * PX, count, 1) - PX for _ in "yx"]
    drift = [s + a * np.arange(-(shape[0] // 2), shape[0] - shape[0] // 2) * 1 // 4 for s, a in zip(sway, slope)]
    ys = (np.array(layout.y)[:, None] + drift[0][cell]).astype(np.int32)
    xs = (np.array(layout.x)[:, None] + drift[1][cell]).astype(np.int32)
    coarse = [smooth_noise(draws, shape, (32, 64, 64), 48 * PX) for _ in "yx"]
    fine = [smooth_noise(draws, shape, (16, 24, 24), 7 * PX) for _ in "yx"]
    cells, depth = np.empty(shape, np.int16), np.empty(shape, np.int16)
    for z in range(shape[0]):
        y = np.arange(shape[1], dtype=np.int32)[:, None] * PX + coarse[0][z] + fine[0][z]
        x = np.arange(shape[2], dtype=np.int32)[None, :] * PX + coarse[1][z] + fine[1][z]
        cells[z], depth[z] = nearest_cells(y, x, ys[:, z], xs[:, z], radius, cell)
    return cells, depth


BLOCK, NEAREST = 8, 10


def nearest_cells(y, x, ys, xs, radius, cell):
    """Return the cell at (y, x) and the distance to the next one, in PX.

    Only the discs nearest to the middle of a block of pixels are tried for its pixels.
    """
    shape = y.shape
    pad = [(0, -length % BLOCK) for length in shape]
    y, x = (np.pad(a, pad, mode="edge").reshape(-(-shape[0] // BLOCK), BLOCK, -1, BLOCK) for a in (y, x))
    middle = np.s_[:, BLOCK // 2, :, BLOCK // 2]
    square = (y[middle][..., None] - ys) ** 2 + (x[middle][..., None] - xs) ** 2
    f = (ROOTS[np.minimum(square, len(ROOTS) - 1)] - radius) << 12 | np.arange(len(ys), dtype=np.int32)
    near = np.partition(f, NEAREST, axis=-1)[..., :NEAREST] & 4095
    near = np.moveaxis(near, -1, 0)[:, :, None, :, None]
    f = ROOTS[np.minimum((y - ys[near]) ** 2 + (x - xs[near]) ** 2, len(ROOTS) - 1)] - radius[near] << 12 | near
    best = f.min(0)
    one = best & 4095
    f[cell[near] == cell[one]] = 1 << 30
    second = f.min(0)
    other = second & 4095
    f1, f2 = best >> 12, second >> 12
    a, b = np.maximum(f1 + radius[one], 1).astype(np.int64), np.maximum(f2 + radius[other], 1).astype(np.int64)
    c2 = (ys[one] - ys[other]).astype(np.int64) ** 2 + (xs[one] - xs[other]).astype(np.int64) ** 2
    square = (f2 - f1).astype(np.int64) ** 2 * a * b // np.maximum(c2 - (a - b) ** 2, 64)
    depth = ROOTS[np.minimum(square, len(ROOTS) - 1)]
    rows, columns = np.s_[: shape[0]], np.s_[: shape[1]]
    whole = (y.shape[0] * BLOCK, -1)
    return cell[one].reshape(whole)[rows, columns], depth.reshape(whole)[rows, columns]

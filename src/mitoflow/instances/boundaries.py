"""What the boundary of an object tells: surface and perimeter by counted crossings, and Feret diameters."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, SphericalVoronoi
from scipy.spatial.distance import pdist

from mitoflow.instances.label_sums import STEPS, Reals
from mitoflow.io.spacing import Size


def crofton_weights(voxel_size: Size) -> Reals:
    """Return the surface that a crossing along each of `STEPS` stands for.

    By the formula of Cauchy and Crofton a surface is twice the number of its crossings with parallel lines, over the
    density of the lines and averaged over their directions (Legland, Kieu and Devaux 2007, "Computation of Minkowski
    measures on 2D and 3D binary images", Image Analysis & Stereology 26). A direction counts as much as the part of
    the sphere that is nearer to it than to the others.

    A ball of 5 voxels of radius is within 4 %, one of 10 within 1 %; marching cubes are 7 to 9 % too high for both.
    A single plane is off by 8 % at most, by more where voxels are no cubes (13 % at 2 : 1 : 1, 29 % at 8 : 1 : 1).

    Parameters
    ----------
    voxel_size
        (z, y, x).

    Returns
    -------
    weights
        ``(13,)`` in squares of the unit of ``voxel_size``.
    """
    steps = np.array(STEPS) * voxel_size
    lengths = np.linalg.norm(steps, axis=1)
    directions = steps / lengths[:, None]
    areas = SphericalVoronoi(np.concatenate([directions, -directions])).calculate_areas()[: len(STEPS)]
    weights: Reals = 2 * (2 * areas / (4 * np.pi)) * np.prod(voxel_size) / lengths
    return weights


def crofton_lengths(pixel_size: tuple[float, float]) -> Reals:
    """Return the perimeter that a crossing along each of `STEPS` stands for: `crofton_weights` in a single slice.

    Steps that leave the slice have no weight. For square pixels it is the perimeter of scikit-image's
    `perimeter_crofton` with four directions. Ellipses of 3 : 1 are within 4 %, and edges along an axis 5 to 6 % too
    short.

    Parameters
    ----------
    pixel_size
        (y, x).

    Returns
    -------
    weights
        ``(13,)`` in the unit of ``pixel_size``.
    """
    steps = np.array(STEPS)
    flat = np.flatnonzero(steps[:, 0] == 0)
    steps = steps[flat, 1:] * pixel_size
    angles = np.arctan2(steps[:, 0], steps[:, 1]) % np.pi
    order = np.argsort(angles)
    gaps = np.diff(angles[order], append=angles[order[0]] + np.pi)  # to the next direction of the half circle
    weights = np.zeros(len(STEPS))
    nearer = (gaps + np.roll(gaps, 1)) / 2
    weights[flat[order]] = nearer / 2 * math.prod(pixel_size) / np.linalg.norm(steps[order], axis=1)
    return weights


def feret_diameters(component: NDArray[np.bool_], pixel_size: tuple[float, float]) -> tuple[float, float]:
    """Return the greatest and the least distance between parallel lines that hold an object between them.

    Parameters
    ----------
    component
        ``(Y, X)`` bool. Pixels are rectangles, not points, as in ImageJ.
    pixel_size
        (y, x) in any unit.
    """
    places = np.argwhere(component)
    corners = np.concatenate([places + corner for corner in ((0, 0), (0, 1), (1, 0), (1, 1))]) * pixel_size
    hull = ConvexHull(corners)
    outline = corners[hull.vertices]
    # The least distance is that from an edge of the hull to the corner that is furthest away.
    across = outline @ hull.equations[:, :2].T
    return float(pdist(outline).max()), float(np.ptp(across, axis=0).min())

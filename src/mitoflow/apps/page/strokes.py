"""Corrections that are painted on slices with a round brush."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitoflow.errors import InputError

LARGEST_RADIUS, MOST_POINTS = 500, 10_000

Point = tuple[int, int]


@dataclass(frozen=True)
class Stroke:
    """A line that was painted, or erased, on one slice.

    Whole numbers throughout: `draw` and ``static/strokes.js`` mark the same voxels.

    Attributes
    ----------
    z
        The slice.
    radius
        Of the brush, in voxels; 0 marks single voxels.
    erases
        Whether it makes background, and not mitochondrion.
    points
        x and y of its corners, in voxels; they may lie outside of the slice.
    """

    z: int
    radius: int
    erases: bool
    points: tuple[Point, ...]

    @classmethod
    def read(cls, values: Mapping[str, Any], shape: tuple[int, int, int]) -> Stroke:
        """Read a stroke that a browser sent for a stack of `shape` (Z, Y, X).

        Raises
        ------
        InputError
            It is none.
        """
        z, radius, erases = (values.get(key) for key in ("z", "radius", "erases"))
        points, limit = _points(values.get("points")), 4 * max(shape)
        if not (
            _is_within(z, 0, shape[0] - 1)
            and _is_within(radius, 0, LARGEST_RADIUS)
            and isinstance(erases, bool)
            and points
            and all(_is_within(each, -limit, limit) for point in points for each in point)
        ):
            raise InputError("stroke", "something else", "a line on a slice of the stack", "reload the page")
        return cls(int(z or 0), int(radius or 0), erases, tuple(points))

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    def draw(self, plane: NDArray[np.uint8]) -> None:
        """Mark its voxels in the mask (Y, X) of its slice: 255, or 0 where it erases."""
        r, (height, width) = self.radius, plane.shape
        y, x = np.ogrid[-r : r + 1, -r : r + 1]
        disc = x * x + y * y <= r * r
        for cx, cy in self._centres():
            top, bottom, left, right = max(0, cy - r), min(height, cy + r + 1), max(0, cx - r), min(width, cx + r + 1)
            if top < bottom and left < right:
                part = disc[top - cy + r : bottom - cy + r, left - cx + r : right - cx + r]
                plane[top:bottom, left:right][part] = 0 if self.erases else 255

    def _centres(self) -> Iterator[Point]:
        """Yield where the brush goes, a voxel at a time."""
        yield self.points[0]
        for (x0, y0), (x1, y1) in pairwise(self.points):
            steps = max(abs(x1 - x0), abs(y1 - y0))
            for step in range(1, steps + 1):
                yield _between(x0, x1, step, steps), _between(y0, y1, step, steps)


def _between(start: int, stop: int, step: int, steps: int) -> int:
    """Return where a line is after some of its steps, rounded."""
    return start + (2 * (stop - start) * step + steps) // (2 * steps)


def _points(values: object) -> list[Point]:
    """Return points that a browser sent; none where they are something else."""
    if not isinstance(values, list) or len(values) > MOST_POINTS:
        return []
    points = [(each[0], each[1]) for each in values if isinstance(each, list) and len(each) == 2]
    return points if len(points) == len(values) else []


def _is_within(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high

"""How far apart the slices of a stack are, and which of them a 2.5-D network sees with a slice.

This is the one rule of training, evaluation and prediction. A network learns what changes from a slice to a neighbour
at a certain distance, and neighbours that are much farther apart mislead it. The shipped EPFL model learned from
neighbours 10 nm apart. On its validation slices, the last 20 of the training volume, without orthogonal planes, it has
a Dice of 0.946 with copies of the slice in place of its neighbours, 0.951 with neighbours 5 nm apart, 0.953 at 10,
0.951 at 15, 0.943 at 20, 0.903 at 30 and 0.840 at 40 nm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

FARTHEST = 1.5  # distance of neighbours over that of training, from which on copies of the slice are better
ELONGATED = 1.5  # longest side of a voxel over its shortest, from which on planes along y and x are unlike slices
UNSURE = 1.25  # by how much estimates of one distance differ
UNRELATED = 0.1  # covariance of two slices over that of adjacent pixels, below which they show different things
STRUCTURE = 0.05  # covariance of adjacent pixels over the variance, below which there is noise alone
PADDING = 0.1  # share of pixels in constant areas from which on a patch does not count
PAIRS, ACROSS = 5, 3  # pairs of slices that are looked at, and patches along y and along x of each
SIDE, SMALLEST = 256, 32  # pixels of a side of these patches, and of the smallest that says something
LAGS = 64  # pixels: the largest distance that is estimated

#: Reads the box ``y0, y1, x0, x1`` of slice z of a stack, (Y, X).
ReadBox = Callable[[int, tuple[int, int, int, int]], npt.NDArray[Any]]


@dataclass(frozen=True)
class SliceDistance:
    """The distance from one slice of a stack to the next, as far as it is known.

    Attributes
    ----------
    nm
        Nanometres, as a file or a person says; None where neither does.
    pixels
        Pixels along y and x, as `estimate` finds them; infinite where neighbouring slices show different things.
    pixel_nm
        Nanometres of a pixel along y and x.
    """

    nm: float | None = None
    pixels: float | None = None
    pixel_nm: float | None = None

    @property
    def is_unrelated(self) -> bool:
        """Whether neighbouring slices show different things."""
        return self.pixels == math.inf

    def over(self, other: SliceDistance) -> float | None:
        """Return this distance over the other one; None where they cannot be compared."""
        if self.nm and other.nm:
            return self.nm / other.nm
        if not self.pixels or not other.pixels:
            return None
        ratio = self.pixels / other.pixels
        return ratio * self.pixel_nm / other.pixel_nm if self.pixel_nm and other.pixel_nm else ratio

    def __str__(self) -> str:
        if self.is_unrelated:
            return "unrelated"
        if self.nm:
            return f"{self.nm:.3g} nm apart"
        return f"about {self.pixels:.1f} pixels apart" if self.pixels else "an unknown distance apart"


def measure(read: ReadBox, shape: tuple[int, int, int], spacing: Mapping[str, float]) -> SliceDistance:
    """Return how far apart the slices of a stack are.

    Parameters
    ----------
    read
        Reads a stack whose grey values are as the network sees them.
    shape
        (Z, Y, X).
    spacing
        Nanometres of a voxel along ``z``, ``y`` and ``x``, as far as they are known.
    """
    sides = [spacing[axis] for axis in "yx" if axis in spacing]
    return SliceDistance(spacing.get("z"), estimate(read, shape), math.prod(sides) ** 0.5 if len(sides) == 2 else None)


def estimate(read: ReadBox, shape: tuple[int, int, int]) -> float | None:
    """Return the distance of neighbouring slices in pixels, by how alike they are.

    Two neighbouring slices are as far apart as two pixels of a slice with the same covariance. The covariance with the
    pixel itself is extrapolated from its neighbours, so that noise does not count. It is the median over pairs of
    slices, since single slices are damaged. On EPFL (5 nm, pixels of 5 nm) it is 1.1 pixels, on sections of 45 to 50 nm
    with pixels of 4.6 nm 8.3.

    Source: Sporring et al., "Estimating the thickness of ultra thin sections for electron microscopy by image
    statistics", ISBI 2014.

    Parameters
    ----------
    read, shape
        See `measure`.

    Returns
    -------
    pixels
        Infinite where the slices show different things; None where there is no second slice, or where patches are too
        small, without structure or mostly constant.
    """
    depth, height, width = shape
    side = min(SIDE, height, width)
    if depth < 2 or side < SMALLEST:
        return None
    corners = [(y, x) for y in spread(height - side, ACROSS) for x in spread(width - side, ACROSS)]
    boxes = [(y, y + side, x, x + side) for y, x in corners]
    found = []
    for z in spread(depth - 2, PAIRS):
        first, second = ([read(place, box) for box in boxes] for place in (z, z + 1))
        if (pixels := _pair_distance(first, second)) is not None:
            found.append(pixels)
    return float(np.median(found)) if found else None


def spread(last: int, count: int) -> list[int]:
    """Return at most `count` numbers from 0 to `last`, evenly."""
    return sorted({round(place) for place in np.linspace(0, last, count + 2)[1:-1].tolist()})


def _pair_distance(first: Sequence[npt.NDArray[Any]], second: Sequence[npt.NDArray[Any]]) -> float | None:
    """Return the distance of two slices in pixels from patches (Y, X) of both; see `estimate`."""
    lags = min(LAGS, min(first[0].shape) // 2)
    within, across, variance = np.zeros(lags), 0.0, 0.0
    for patches in zip(first, second, strict=True):
        if max(map(_constant_share, patches)) > PADDING:
            continue
        one, other = (patch - patch.mean() for patch in (each.astype(np.float64) for each in patches))
        across += (one * other).mean()
        variance += ((one**2).mean() + (other**2).mean()) / 2
        within += (_covariances(one, lags) + _covariances(other, lags)) / 2
    if variance == 0 or within[0] < STRUCTURE * variance:
        return None
    if across < UNRELATED * within[0]:
        return math.inf
    curve = np.concatenate([[max(within[0], (4 * within[0] - within[1]) / 3)], within])  # a parabola through 1 and 2
    below = np.flatnonzero(curve <= across)
    if not below.size:
        return float(lags)
    place = int(below[0])
    if place == 0:
        return 0.5  # closer than can be told
    before, after = curve[place - 1], curve[place]
    return float(max(0.5, place - 1 + (before - across) / (before - after)))


def _covariances(deviation: npt.NDArray[np.float64], lags: int) -> npt.NDArray[np.float64]:
    """Return the covariance of pixels 1, 2, ... `lags` apart along y and x in deviations from the mean, (Y, X)."""
    total = np.zeros(lags)
    for axis, length in enumerate(deviation.shape):
        power = np.abs(np.fft.rfft(deviation, length + lags, axis=axis)) ** 2  # so many zeros that no end meets a start
        products = np.fft.irfft(power.sum(1 - axis), length + lags)[1 : lags + 1]
        total += products / (length - np.arange(1, lags + 1)) / deviation.shape[1 - axis] / 2
    return total


def _constant_share(patch: npt.NDArray[Any]) -> float:
    return float((ndimage.minimum_filter(patch, 3) == ndimage.maximum_filter(patch, 3)).mean())


def is_elongated(spacing: Mapping[str, float]) -> bool:
    """Return whether voxels are known to be too long for planes along y and x to look like slices; sides in nm."""
    return {*"zyx"} <= spacing.keys() and max(spacing.values()) > ELONGATED * min(spacing.values())


def neighbour_step(context_step: int, learned: SliceDistance | None, seen: SliceDistance) -> int:
    """Return the distance, in slices, between the neighbours that a network sees in a stack; 0 where it sees copies.

    Neighbours are as far away as in training, so a stack of thinner slices skips some. They are copies where even the
    next slice is more than `FARTHEST` times as far away, where slices show different things, and where nothing says
    how far apart they are.

    Parameters
    ----------
    context_step
        Slices from one neighbour to the next in training; 0 where it knows copies alone.
    learned
        How far apart the slices of training are; None where nobody knows: then those of any stack count as equally far.
    seen
        How far apart the slices of the stack are.
    """
    if context_step == 0 or seen.is_unrelated:
        return 0
    if learned is None:
        return context_step
    ratio = seen.over(learned)
    if ratio is None:
        return 0
    step = max(1, round(context_step / ratio))
    farthest = FARTHEST * (1 if seen.nm and learned.nm else UNSURE)
    return step if step * ratio <= farthest * context_step else 0


def is_as_close(learned: SliceDistance | None, seen: SliceDistance) -> bool:
    """Return whether the slices of a stack are about as close as in training, or closer; see `neighbour_step`."""
    return neighbour_step(1, learned, seen) > 0


def closest(stacks: Sequence[SliceDistance]) -> SliceDistance | None:
    """Return the smallest distance among stacks with neighbours, which a network that begins anew is to learn.

    None where no stack has related slices. Where distances cannot be compared the first one counts.
    """
    related = [stack for stack in stacks if not stack.is_unrelated and (stack.nm or stack.pixels)]
    best = related[0] if related else None
    for stack in related[1:]:
        ratio = stack.over(best) if best else None
        if ratio is not None and ratio < 1:
            best = stack
    return best

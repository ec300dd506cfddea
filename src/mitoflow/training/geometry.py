"""Where a crop comes from: affine maps, joint for image and mask, and the symmetries of a crop."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from mitoflow.config.params import Scale
from mitoflow.data.network_input import UNLABELLED

# Geometric strength 1: the ranges of the `ImageDataGenerator` of the first baseline (Singh, 2025; docs/quality.md).
ROTATION = 90.0  # degrees to either side
SHIFT = 0.3  # of the crop, to either side
SHEAR = 0.5  # degrees to either side
ZOOM = 0.3  # of the scale, to either side, for each axis by itself
FLIP = 0.5  # probability, for each axis by itself

#: Reads the box ``y0, y1, x0, x1`` of a slice, (Y, X).
Read = Callable[[tuple[int, int, int, int]], np.ndarray]


def random_map(sides: tuple[int, int], strength: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a random affine map about the centre of a crop.

    Flip, zoom, shear, shift and rotation are composed into one map, so that a crop is resampled once.

    Parameters
    ----------
    sides
        Pixels of the crop along y and x.
    strength
        In [0, 1]: 0 gives the identity, 1 a rotation of up to 90 degrees, shifts of up to 0.3 of the crop, a shear of
        up to 0.5 degrees, zooms from 0.7 to 1.3 for each axis, and flips of either axis half of the time.
    rng
        Source of the random numbers.

    Returns
    -------
    (3, 3) float64, from homogeneous ``(x, y, 1)`` of the output to that of the input.
    """

    def uniform(limit: float) -> float:
        return rng.uniform(-limit, limit) * strength

    angle, shear = np.deg2rad(uniform(ROTATION)), np.deg2rad(uniform(SHEAR))
    shift_x, shift_y = uniform(SHIFT) * sides[1], uniform(SHIFT) * sides[0]
    zoom_x, zoom_y = 1 + uniform(ZOOM), 1 + uniform(ZOOM)
    flip_x, flip_y = (-1 if rng.random() < FLIP * strength else 1 for _ in "xy")

    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    translation = np.array([[1, 0, shift_x], [0, 1, shift_y], [0, 0, 1]])
    shearing = np.array([[np.cos(shear), 0, 0], [-np.sin(shear), 1, 0], [0, 0, 1]])
    zoom_and_flip = np.diag([zoom_x * flip_x, zoom_y * flip_y, 1])
    centre = (sides[1] - 1) / 2, (sides[0] - 1) / 2
    to_centre, back = np.eye(3), np.eye(3)
    to_centre[:2, 2], back[:2, 2] = np.negative(centre), centre
    return np.asarray(back @ rotation @ translation @ shearing @ zoom_and_flip @ to_centre)


def random_scaling(scale: Scale, rng: np.random.Generator) -> np.ndarray | None:
    """Draw the scale of a crop evenly in log, with a rotation by any angle and a stretch, on a share of the crops.

    Parameters
    ----------
    scale
        How often and how much, relative to the pixel size of the images as they are.
    rng
        Source of the random numbers; none is drawn where the share is 0.

    Returns
    -------
    (2, 2) float64, from a difference ``(x, y)`` in the crop to that in the slice; None for the others.
    """
    if scale.share == 0 or rng.random() >= scale.share:
        return None
    step = np.exp(-rng.uniform(np.log(scale.low), np.log(scale.high)))
    stretch = np.exp(rng.uniform(-1, 1) * np.log(scale.stretch) / 2)
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray(rotation @ np.diag([step * stretch, step / stretch]))


def scaled_sides(sides: tuple[int, int], scaling: np.ndarray | None) -> tuple[int, int]:
    """Return the pixels of a slice along y and x that a crop with these sides sees, but for its rotation."""
    if scaling is None:
        return sides
    step = np.sqrt(abs(np.linalg.det(scaling)))
    return max(1, round(sides[0] * step)), max(1, round(sides[1] * step))


def scaled_map(sides: tuple[int, int], scaling: np.ndarray) -> np.ndarray:
    """Return the map that shows what lies in the box of `scaled_sides` at its corner: (3, 3), as of `random_map`."""
    height, width = scaled_sides(sides, scaling)
    centre = np.array([sides[1] - 1, sides[0] - 1]) / 2
    seen = np.array([width - 1, height - 1]) / 2
    to_box = np.eye(3)
    to_box[:2, :2], to_box[:2, 2] = scaling, seen - scaling @ centre
    return to_box


class Crop:
    """A rectangular crop of a slice, seen through an affine map: one map for images and mask.

    Only the part of the slice that the map reaches is read. What lies outside the slice is its reflection
    (``d c b a | a b c d | d c b a``).

    A map that reads 1.5 pixels or more of the slice for each of the crop would skip some, and what it skips comes back
    as a false pattern (aliasing). There the part is first reduced by a whole number, each pixel being the mean of a
    square, and the map reads that.

    Parameters
    ----------
    corner
        y and x of the crop's first pixel in the slice, where the map is the identity.
    sides
        Pixels of the crop along y and x.
    transform
        (3, 3), from ``(x, y, 1)`` of the crop to where its pixel comes from, counted from the corner, as `random_map`
        draws it; None is the identity, which resamples nothing.
    shape
        Y and X of the slice.
    """

    def __init__(
        self, corner: tuple[int, int], sides: tuple[int, int], transform: np.ndarray | None, shape: tuple[int, int]
    ) -> None:
        self.sides, self._resampled = sides, transform is not None
        bottom, right = sides[0] - 1, sides[1] - 1
        ends = np.array([[0, 0, 1], [0, bottom, 1], [right, 0, 1], [right, bottom, 1]], float).T
        moved = np.eye(3)
        moved[:2, 2] = corner[1], corner[0]
        to_slice = moved if transform is None else moved @ transform
        x, y = (to_slice @ ends)[:2]
        step = np.sqrt(abs(np.linalg.det(to_slice[:2, :2])))
        self._reduction = int(np.clip(np.floor(step + 0.5), 1, min(shape)))
        (y0, y1), (x0, x1) = (self._reach(places, length) for places, length in zip((y, x), shape, strict=True))
        self.box = y0, y1, x0, x1
        self._to_box = to_slice[:2] - [[0, 0, x0], [0, 0, y0]]
        self._to_box[:, 2] -= (self._reduction - 1) / 2  # the centre of a reduced pixel is that of its square
        self._to_box /= self._reduction

    def _reach(self, places: np.ndarray, length: int) -> tuple[int, int]:
        """Return the first and the past-the-end pixel that is needed along an axis, for the reflection too."""
        # A reduced pixel to either side for the interpolation, and one that is cut off where it is not whole.
        before, after = self._reduction, 3 * self._reduction - 1
        low, high = int(np.floor(places.min())) - before, int(np.ceil(places.max())) + after
        if low < 0:
            high = max(high, 1 - low)
        if high > length:
            low = min(low, 2 * length - high - 1)
        return max(low, 0), min(high, length)

    def image(self, read: Read) -> np.ndarray:
        """Return the crop of an image, (Y, X), bilinear, in the dtype of the slice."""
        return self._sample(self._reduced(read(self.box)), cv2.INTER_LINEAR)

    def mask(self, read: Read) -> np.ndarray:
        """Return the crop of a mask, (Y, X): the nearest pixel, or the majority of a square.

        A square in which a pixel was not looked at, `network_input.UNLABELLED`, was not either.
        """
        part = read(self.box)
        if self._reduction > 1:
            foreground, unlabelled = (self._reduced((part == value).astype(np.float32)) for value in (1, UNLABELLED))
            part = np.where(unlabelled > 0, UNLABELLED, foreground >= 0.5).astype(part.dtype)
        return self._sample(part, cv2.INTER_NEAREST)

    def _reduced(self, part: np.ndarray) -> np.ndarray:
        """Return the means of squares of (Y, X); a rest that fills no square is left out."""
        if self._reduction == 1:
            return part
        height, width = (length // self._reduction for length in part.shape)
        whole = part[: height * self._reduction, : width * self._reduction]
        return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA))

    def _sample(self, part: np.ndarray, interpolation: int) -> np.ndarray:
        # A whole shift is exact under either interpolation, so unresampled crops keep their pixels.
        flags = (interpolation if self._resampled else cv2.INTER_NEAREST) | cv2.WARP_INVERSE_MAP
        return np.asarray(
            cv2.warpAffine(part, self._to_box, self.sides[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT)
        )


def random_turn(sides: tuple[int, int], rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Draw one of the eight symmetries of a square, or of the four of a rectangle, which resample nothing.

    The function returned takes (Y, X) or (Y, X, C) with these sides and returns a view of it.
    """
    turns, flipped = int(rng.integers(4)), rng.random() < 0.5
    if sides[0] != sides[1]:
        turns -= turns % 2  # a quarter turn would exchange them

    def turn(image: np.ndarray) -> np.ndarray:
        turned = np.rot90(image, turns)
        return turned[:, ::-1] if flipped else turned

    return turn

"""Augmentation: where a crop comes from, joint for image and mask, and how its grey values vary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

# Geometric strength 1: the ranges of the `ImageDataGenerator` of the first baseline (Singh, 2025; docs/quality.md).
ROTATION = 90.0  # degrees to either side
SHIFT = 0.3  # of the crop, to either side
SHEAR = 0.5  # degrees to either side
ZOOM = 0.3  # of the scale, to either side, for each axis by itself
FLIP = 0.5  # probability, for each axis by itself

# What grey-value strength 1 means, for grey values in [0, 1]; the logarithms are natural.
GAMMA = 0.5  # of its logarithm, to either side
CONTRAST = 0.4  # of its logarithm, to either side
BRIGHTNESS = 0.15  # added, to either side
SLICE_GAIN = 0.1  # of its logarithm, to either side, for each slice by itself
SLICE_OFFSET = 0.05  # added, to either side, for each slice by itself
BLUR = 1.5  # pixels of the Gaussian's standard deviation, at most
NOISE = 0.08  # standard deviation, at most

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


class Crop:
    """A rectangular crop of a slice, seen through an affine map: one map for images and mask.

    Only the part of the slice that the map reaches is read. What lies outside the slice is its reflection
    (``d c b a | a b c d | d c b a``).

    Parameters
    ----------
    corner
        y and x of the crop's first pixel in the slice, where the map is the identity.
    sides
        Pixels of the crop along y and x.
    transform
        (3, 3), from ``(x, y, 1)`` of the crop to where in the crop its pixel comes from, as `random_map` draws it;
        None is the identity, which resamples nothing.
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
        (y0, y1), (x0, x1) = (self._reach(places, length) for places, length in zip((y, x), shape, strict=True))
        self.box = y0, y1, x0, x1
        self._to_box = to_slice[:2] - [[0, 0, x0], [0, 0, y0]]

    @staticmethod
    def _reach(places: np.ndarray, length: int) -> tuple[int, int]:
        """Return the first and the past-the-end pixel that is needed along an axis, for the reflection too."""
        low, high = int(np.floor(places.min())) - 1, int(np.ceil(places.max())) + 2
        if low < 0:
            high = max(high, 1 - low)
        if high > length:
            low = min(low, 2 * length - high - 1)
        return max(low, 0), min(high, length)

    def image(self, read: Read) -> np.ndarray:
        """Return the crop of an image, (Y, X), bilinear, in the dtype of the slice."""
        return self._sample(read, cv2.INTER_LINEAR)

    def mask(self, read: Read) -> np.ndarray:
        """Return the crop of a mask, (Y, X), by nearest neighbour: no values but those of the slice."""
        return self._sample(read, cv2.INTER_NEAREST)

    def _sample(self, read: Read, interpolation: int) -> np.ndarray:
        # A whole shift is exact under either interpolation, so unresampled crops keep their pixels.
        flags = (interpolation if self._resampled else cv2.INTER_NEAREST) | cv2.WARP_INVERSE_MAP
        part = read(self.box)
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


def _uniform(limit: float, strength: float, rng: np.random.Generator, count: int = 1) -> np.ndarray:
    return (rng.uniform(-limit, limit, count) * strength).astype(np.float32)


def vary_gamma(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Raise the grey values to a random power."""
    return np.asarray(image ** np.exp(_uniform(GAMMA, strength, rng)))


def vary_contrast(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Scale the grey values about their mean, and shift them."""
    mean = image.mean()
    scaled = (image - mean) * np.exp(_uniform(CONTRAST, strength, rng)) + mean
    return np.asarray(scaled + _uniform(BRIGHTNESS, strength, rng))


def vary_slices(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Scale and shift the grey values of each slice by itself, as exposures differ."""
    channels = image.shape[-1]
    scaled = image * np.exp(_uniform(SLICE_GAIN, strength, rng, channels))
    return np.asarray(scaled + _uniform(SLICE_OFFSET, strength, rng, channels))


def blur(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Blur with a Gaussian of a random width."""
    sigma = max(1e-3, float(rng.uniform(0, BLUR)) * strength)
    return np.asarray(cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), sigma).reshape(image.shape))


def add_noise(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise of a random standard deviation."""
    deviation = np.float32(rng.uniform(0, NOISE) * strength)
    return np.asarray(image + rng.standard_normal(image.shape, dtype=np.float32) * deviation)


@dataclass(frozen=True)
class GreyValueAugmentation:
    """An augmentation of the image alone.

    Attributes
    ----------
    share
        How often it is applied, in [0, 1], whatever the strength.
    function
        From (Y, X, C) float32 in [0, 1], where C are neighbouring slices, a strength in (0, 1] and a source of random
        numbers to (Y, X, C) float32; values outside [0, 1] are clipped at the end.
    """

    share: float
    function: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


#: The augmentations of grey values, in the order in which they are applied.
GREY_VALUE_AUGMENTATIONS: dict[str, GreyValueAugmentation] = {
    "gamma": GreyValueAugmentation(0.5, vary_gamma),
    "contrast": GreyValueAugmentation(0.8, vary_contrast),
    "slices": GreyValueAugmentation(0.3, vary_slices),
    "blur": GreyValueAugmentation(0.25, blur),
    "noise": GreyValueAugmentation(0.4, add_noise),
}


def vary_grey_values(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Apply `GREY_VALUE_AUGMENTATIONS` at random, as contrast, sharpness and noise differ between microscopes.

    Parameters
    ----------
    image
        (Y, X, C) float32 in [0, 1], where C are neighbouring slices.
    strength
        In [0, 1]; the constants of this module say what 1 means. 0 returns the image as it is.
    rng
        Source of the random numbers.

    Returns
    -------
    (Y, X, C) float32 in [0, 1].
    """
    if strength == 0:
        return image
    for augmentation in GREY_VALUE_AUGMENTATIONS.values():
        if rng.random() < augmentation.share:
            image = augmentation.function(image, strength, rng)
    return np.asarray(np.clip(image, 0, 1))

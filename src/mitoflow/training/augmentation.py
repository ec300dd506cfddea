"""Augmentation of the image alone: how grey values vary between microscopes, and what is missing or damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from mitoflow.config.params import Augmentation

# What grey-value strength 1 means, for grey values in [0, 1]; the logarithms are natural.
GAMMA = 0.5  # of its logarithm, to either side
CONTRAST = 0.4  # of its logarithm, to either side
BRIGHTNESS = 0.15  # added, to either side
SLICE_GAIN = 0.1  # of its logarithm, to either side, for each slice by itself
SLICE_OFFSET = 0.05  # added, to either side, for each slice by itself
BLUR = 1.5  # pixels of the Gaussian's standard deviation, at most
NOISE = 0.08  # standard deviation, at most

# Ranges that need no parameter: pixels of a Gaussian's standard deviation.
SHARPENED = 0.7, 2.5  # of the blur in the unsharp mask
CORRELATED = 0.5, 2.0  # of the blur of the noise


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


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), sigma).reshape(image.shape))


def blur(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Blur with a Gaussian of a random width."""
    return _blurred(image, max(1e-3, float(rng.uniform(0, BLUR)) * strength))


def add_noise(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise of a random standard deviation."""
    deviation = np.float32(rng.uniform(0, NOISE) * strength)
    return np.asarray(image + rng.standard_normal(image.shape, dtype=np.float32) * deviation)


def equalise_locally(image: np.ndarray, limit: float, rng: np.random.Generator) -> np.ndarray:
    """Equalise the contrast of small areas, as detectors and earlier processing do.

    Source: Zuiderveld, "Contrast Limited Adaptive Histogram Equalization", Graphics Gems IV, 1994; with a clip limit
    between 1 and `limit`, and 2 to 8 areas along each axis.
    """
    areas = int(rng.integers(2, 9))
    clahe = cv2.createCLAHE(float(rng.uniform(1, limit)), (areas, areas))
    levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    slices = [clahe.apply(np.ascontiguousarray(levels[..., channel])) for channel in range(image.shape[-1])]
    return np.stack(slices, axis=-1).astype(np.float32) / 255


def shade(image: np.ndarray, limit: float, rng: np.random.Generator) -> np.ndarray:
    """Add a smooth field, the same to all slices, with a standard deviation of at most `limit`."""
    nodes = int(rng.integers(2, 5))
    field = rng.standard_normal((nodes, nodes), dtype=np.float32) * np.float32(rng.uniform(0, limit))
    height, width = image.shape[:2]
    return np.asarray(image + cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)[..., None])


def sharpen(image: np.ndarray, limit: float, rng: np.random.Generator) -> np.ndarray:
    """Add at most `limit` times what a blur takes away: an unsharp mask."""
    amount, sigma = np.float32(rng.uniform(0, limit)), rng.uniform(*SHARPENED)
    return np.asarray(image + amount * (image - _blurred(image, sigma)))


def add_correlated_noise(image: np.ndarray, limit: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise that neighbouring pixels share, as scanning and resampling leave it.

    Its standard deviation is at most `limit`.
    """
    noise = _blurred(rng.standard_normal(image.shape, dtype=np.float32), rng.uniform(*CORRELATED))
    return np.asarray(image + noise * np.float32(rng.uniform(0, limit) / noise.std()))


def invert(image: np.ndarray, limit: float, rng: np.random.Generator) -> np.ndarray:
    """Exchange dark and bright."""
    return 1 - image


def cut_out(image: np.ndarray, limit: float, rng: np.random.Generator) -> np.ndarray:
    """Cover one to three boxes with black, white or grey, in one slice or in all of them; sides of at most `limit`."""
    image = image.copy()
    for _ in range(int(rng.integers(1, 4))):
        sides = np.minimum(rng.integers(4, int(limit), 2, endpoint=True), image.shape[:2])
        y, x = rng.integers(np.array(image.shape[:2]) - sides + 1)
        slices = slice(None) if rng.random() < 0.5 else int(rng.integers(image.shape[-1]))
        image[y : y + sides[0], x : x + sides[1], slices] = rng.choice([0, 1, rng.random()])
    return image


def damage_slice(image: np.ndarray, limit: float, rng: np.random.Generator) -> np.ndarray:
    """Make a neighbour of the middle slice constant, a copy of the next slice inwards, or shift it.

    Shifts are of at most `limit` pixels along each axis, with the reflection for what comes in.
    """
    channels = image.shape[-1]
    if channels == 1:
        return image
    middle = channels // 2
    damaged = int(rng.integers(channels - 1))
    damaged += damaged >= middle
    image = image.copy()
    match int(rng.integers(3)):
        case 0:
            image[..., damaged] = rng.integers(2)
        case 1:
            image[..., damaged] = image[..., damaged + (1 if damaged < middle else -1)]
        case _:
            y, x = rng.integers(-int(limit), int(limit), 2, endpoint=True)
            shift, (height, width) = np.array([[1, 0, x], [0, 1, y]], np.float32), image.shape[:2]
            channel = np.ascontiguousarray(image[..., damaged])
            moved = cv2.warpAffine(
                channel, shift, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT
            )
            image[..., damaged] = moved
    return image


@dataclass(frozen=True)
class GreyValueAugmentation:
    """An augmentation of the image alone.

    Attributes
    ----------
    share
        How often it is applied, in [0, 1], whatever the strength. None: `train.augmentation` says so under the name
        that the augmentation has in the table.
    function
        From (Y, X, C) float32 in [0, 1], where C are neighbouring slices, a strength and a source of random numbers to
        (Y, X, C) float32; values outside [0, 1] are clipped at the end. The strength is `train.intensity_strength`, in
        (0, 1]; where the share comes from `train.augmentation`, so does the `limit` that takes its place.
    """

    share: float | None
    function: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


#: The augmentations of grey values, in the order in which they are applied: as tissue, optics and detector do it, and
#: at the end what is missing in the file.
GREY_VALUE_AUGMENTATIONS: dict[str, GreyValueAugmentation] = {
    "local_contrast": GreyValueAugmentation(None, equalise_locally),
    "gamma": GreyValueAugmentation(0.5, vary_gamma),
    "contrast": GreyValueAugmentation(0.8, vary_contrast),
    "slices": GreyValueAugmentation(0.3, vary_slices),
    "shading": GreyValueAugmentation(None, shade),
    "blur": GreyValueAugmentation(0.25, blur),
    "sharpening": GreyValueAugmentation(None, sharpen),
    "noise": GreyValueAugmentation(0.4, add_noise),
    "correlated_noise": GreyValueAugmentation(None, add_correlated_noise),
    "inversion": GreyValueAugmentation(None, invert),
    "cutout": GreyValueAugmentation(None, cut_out),
    "damaged_slices": GreyValueAugmentation(None, damage_slice),
}


def vary_grey_values(
    image: np.ndarray, strength: float, rng: np.random.Generator, further: Augmentation | None = None
) -> np.ndarray:
    """Apply `GREY_VALUE_AUGMENTATIONS` at random, as contrast, sharpness and noise differ between microscopes.

    Parameters
    ----------
    image
        (Y, X, C) float32 in [0, 1], where C are neighbouring slices.
    strength
        In [0, 1]; the constants of this module say what 1 means. 0 leaves out what depends on it.
    rng
        Source of the random numbers; none is drawn for what is off.
    further
        Shares and ranges of the others; None is off.

    Returns
    -------
    (Y, X, C) float32 in [0, 1]; the image itself where all is off.
    """
    varied = image
    for name, augmentation in GREY_VALUE_AUGMENTATIONS.items():
        share, amount = augmentation.share, strength
        if share is None:
            section = getattr(further, name, None)
            share, amount = getattr(section, "share", 0.0), getattr(section, "limit", 1.0)
        if share * amount > 0 and rng.random() < share:
            varied = augmentation.function(varied, amount, rng)
    return image if varied is image else np.asarray(np.clip(varied, 0, 1))

"""Joint augmentation of images and masks: one random affine map, one resampling."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

# What strength 1 means: the ranges of the student's `ImageDataGenerator`.
ROTATION = 90.0  # degrees to either side
SHIFT = 0.3  # of the patch, to either side
SHEAR = 0.5  # degrees to either side
ZOOM = 0.3  # of the scale, to either side, for each axis by itself
FLIP = 0.5  # probability, for each axis by itself


def random_maps(count: int, size: int, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Draw random affine maps about the centre of a patch.

    Flip, zoom, shear, shift and rotation are composed into one map, so that a patch is resampled once.

    Parameters
    ----------
    count
        Maps to draw.
    size
        Pixels of the patch along y and x.
    strength
        In [0, 1]: 0 gives the identity, 1 a rotation of up to 90 degrees, shifts of up to 0.3 of the patch, a shear of
        up to 0.5 degrees, zooms from 0.7 to 1.3 for each axis, and flips of either axis half of the time.
    rng
        Source of the random numbers.

    Returns
    -------
    (count, 3, 3) float64, from homogeneous ``(x, y, 1)`` of the output to that of the input.
    """

    def uniform(limit: float) -> np.ndarray:
        return rng.uniform(-limit, limit, count) * strength

    angle, shear = np.deg2rad(uniform(ROTATION)), np.deg2rad(uniform(SHEAR))
    shift_x, shift_y = uniform(SHIFT) * size, uniform(SHIFT) * size
    zoom_x, zoom_y = 1 + uniform(ZOOM), 1 + uniform(ZOOM)
    flip_x, flip_y = (np.where(rng.random(count) < FLIP * strength, -1.0, 1.0) for _ in "xy")

    one, zero = np.ones(count), np.zeros(count)

    def matrices(*rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        return np.stack([np.stack(row, axis=-1) for row in (*rows, (zero, zero, one))], axis=1)

    rotation = matrices((np.cos(angle), -np.sin(angle), zero), (np.sin(angle), np.cos(angle), zero))
    translation = matrices((one, zero, shift_x), (zero, one, shift_y))
    shearing = matrices((np.cos(shear), zero, zero), (-np.sin(shear), one, zero))
    zoom_and_flip = matrices((zoom_x * flip_x, zero, zero), (zero, zoom_y * flip_y, zero))
    centre = (size - 1) / 2
    to_centre, back = np.eye(3), np.eye(3)
    to_centre[:2, 2], back[:2, 2] = -centre, centre
    return np.asarray(back @ rotation @ translation @ shearing @ zoom_and_flip @ to_centre)


def resample(images: Any, masks: Any, maps: np.ndarray) -> tuple[Any, Any]:
    """Resample images bilinearly and masks by nearest neighbour, both through the same maps.

    What lies outside a patch is its reflection (``d c b a | a b c d | d c b a``).

    Parameters
    ----------
    images
        (N, Y, X, C) float in [0, 1].
    masks
        (N, Y, X, 1) in {0, 1}; any other values are kept as they are, too: nearest neighbour makes no new ones.
    maps
        (N, 3, 3) as `random_maps` draws them.

    Returns
    -------
    Tensors of the shapes and dtypes of `images` and `masks`.
    """
    transforms = (maps / maps[:, 2:, 2:]).reshape(-1, 9)[:, :8].astype(np.float32)
    affine = keras.ops.image.affine_transform
    return (
        affine(images, transforms, interpolation="bilinear", fill_mode="reflect"),
        affine(masks, transforms, interpolation="nearest", fill_mode="reflect"),
    )

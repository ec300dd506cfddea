"""Dark disks, and a network of one convolution that knows disks of one radius: to test scale and judgement on."""

from __future__ import annotations

import keras
import numpy as np

from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings

RADIUS = 6  # pixels of the disks that the network below knows


def disks(radius: float, shape: tuple[int, int, int] = (3, 1024, 1024)) -> np.ndarray:
    """Return dark disks of a radius in pixels on bright ground, (Z, Y, X) uint8."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    pitch = 5 * radius
    away = np.hypot((y + z) % pitch - pitch / 2, x % pitch - pitch / 2)
    return np.where(away < radius, 60, 190).astype(np.uint8)


def disk_finder() -> Predictor:
    """Return a network of one convolution that is sure of dark disks of `RADIUS`, and less of others."""
    reach = 3 * RADIUS
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1] / (RADIUS / np.sqrt(2))
    squares = (x**2 + y**2) / 2
    laplacian = (squares - 1) * np.exp(-squares)
    kernel = (laplacian - laplacian.mean()) / np.abs(laplacian).sum()
    inputs = keras.Input((None, None, 1))
    outputs = keras.layers.Conv2D(1, 2 * reach + 1, padding="same")(inputs)
    model = keras.Model(inputs, outputs)
    model.layers[-1].set_weights([60 * kernel[..., None, None], np.array([-10.0])])
    return Predictor(model, Settings(bit_depth=8, divisor=1, tile=1024, overlap=0, threshold=0.5))

"""Dark disks, and a network of one convolution that knows disks of one radius: to test scale and judgement on."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np

from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings

RADIUS = 6  # pixels of the disks that the network below knows


@dataclass
class Disks:
    """A volume of dark disks on bright ground, of a radius in pixels."""

    radius: float
    shape: tuple[int, int, int] = (3, 1024, 1024)

    def read(self, z: int, box: tuple[int, int, int, int]) -> np.ndarray:
        y0, y1, x0, x1 = box
        y, x = np.mgrid[y0:y1, x0:x1]
        pitch = 5 * self.radius
        away = np.hypot((y + z) % pitch - pitch / 2, x % pitch - pitch / 2)
        return np.where(away < self.radius, 60, 190).astype(np.uint8)


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

"""The scale that a network expects most of is that of the structures that it knows."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
import pytest

from mitoflow.inference import scale
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings

RADIUS = 6  # pixels of the disks that the network below knows


@pytest.fixture(scope="module")
def finder() -> Predictor:
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


@pytest.mark.parametrize(("radius", "factor"), [(6, 1), (12, 1 / 2), (24, 1 / 4), (17, 1 / 2 / scale.HALF_OCTAVE)])
def test_it_finds_the_scale(finder: Predictor, radius: float, factor: float) -> None:
    def at_scale(factor: float) -> Disks:
        return Disks(radius * factor, (3, round(1024 * factor), round(1024 * factor)))

    found = scale.search(finder, at_scale)  # type: ignore[arg-type]
    assert found.best == pytest.approx(factor)
    assert found.gain(found.best) == 0
    assert all(found.gain(other) > 0 for other in found.confidence if other != found.best)

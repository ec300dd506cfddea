"""Volumes that are derived from another one while they are read: other grey values, pixels of another size."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mitoflow.io import resampling
from mitoflow.io.tiff import Array, Box
from mitoflow.io.volumes import Volume


@dataclass(frozen=True)
class Levels:
    """A linear map of grey values.

    Attributes
    ----------
    low, high
        Two grey values.
    low_to, high_to
        What they become, in [0, 1].
    bit_depth
        Of the new grey values.
    """

    low: float
    high: float
    low_to: float
    high_to: float
    bit_depth: int

    @property
    def only_clips(self) -> bool:
        """Whether all grey values of that many bits stay what they are."""
        return (self.low, self.high, self.low_to, self.high_to) == (0, 2**self.bit_depth - 1, 0, 1)

    def apply(self, image: Array) -> Array:
        """Return `image` with grey values of that many bits, uint8 or uint16; values outside are clipped."""
        slope = (self.high_to - self.low_to) / (self.high - self.low if self.high > self.low else 1)
        unit = np.nan_to_num(np.clip((image.astype(np.float32) - self.low) * slope + self.low_to, 0, 1))
        return np.asarray(np.rint(unit * (2**self.bit_depth - 1)), np.uint8 if self.bit_depth == 8 else np.uint16)


class RegradedVolume:
    """A volume with other grey values."""

    def __init__(self, volume: Volume, levels: Levels) -> None:
        self._volume, self._levels = volume, levels
        self.axes, self.shape, self.spacing, self.files = volume.axes, volume.shape, volume.spacing, volume.files
        self.origin = volume.origin
        self.dtype = np.dtype(np.uint8 if levels.bit_depth == 8 else np.uint16)

    def read(self, z: int, box: Box) -> Array:
        """See `Volume`."""
        return self._levels.apply(self._volume.read(z, box))

    def state(self) -> list[Any]:
        """See `Volume`."""
        return [*self._volume.state(), asdict(self._levels)]


class ResampledVolume:
    """A volume with pixels of another size along y and x; see `mitoflow.io.resampling.weights`.

    Parameters
    ----------
    volume
        Any.
    scale
        New pixels for each old one along y and x.
    """

    def __init__(self, volume: Volume, scale: tuple[float, float]) -> None:
        self._volume = volume
        depth, *sides = volume.shape
        height, width = (max(1, round(side * times)) for side, times in zip(sides, scale, strict=True))
        self.shape = (depth, height, width)
        times = dict(zip("yx", scale, strict=True))
        self.spacing = {axis: size / times.get(axis, 1) for axis, size in volume.spacing.items()}
        self.axes, self.dtype, self.files = volume.axes, volume.dtype, volume.files
        factors = {"z": 1.0, "y": height / sides[0], "x": width / sides[1]}
        self.origin = tuple(start * factors[axis] for axis, start in zip(volume.axes, volume.origin, strict=True))

    def read(self, z: int, box: Box) -> Array:
        """See `Volume`."""
        y0, y1, x0, x1 = box
        rows = resampling.weights(self._volume.shape[1], self.shape[1], y0, y1)
        columns = resampling.weights(self._volume.shape[2], self.shape[2], x0, x1)
        image = self._volume.read(z, (rows.first, rows.last, columns.first, columns.last))
        return np.asarray(np.rint(resampling.resample(image, rows, columns)), self.dtype)

    def state(self) -> list[Any]:
        """See `Volume`."""
        return [*self._volume.state(), self.shape]

"""A model and slices in, a blended probability map out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from scipy.special import expit

from mitoflow import unet, volumes, workspace
from mitoflow.errors import InputError

BATCH = 8  # tiles that go through the network together
REMEDY = "run `dvc repro evaluate` or `dvc pull`"


@dataclass(frozen=True)
class Settings:
    """What inference must know besides the weights.

    Attributes
    ----------
    bit_depth
        Bits of the grey values that the model was trained on.
    divisor
        The U-Net takes sides that are divisible by this: ``2**depth``.
    tile, overlap
        Pixels of a tile, and pixels on each of its sides that are blended with the neighbour.
    threshold
        Probability from which a pixel is mitochondrion.
    """

    bit_depth: int
    divisor: int
    tile: int
    overlap: int
    threshold: float

    def write(self, path: Path) -> None:
        """Write the settings as YAML."""
        workspace.write_yaml(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read settings that `write` wrote; raises `InputError` where they are missing or not whole."""
        keys = [field.name for field in dataclasses.fields(cls)]
        values = workspace.read_yaml(path, REMEDY, keys)
        return cls(**{key: values[key] for key in keys})


class Predictor:
    """Whole-slice inference with overlapping, blended tiles.

    Tiles start every ``tile - 2 * overlap`` pixels, which keeps the U-Net's pooling grid in place, and the slice is
    continued by reflection where the last tile reaches past its end. Across the ``2 * overlap`` pixels that two
    neighbours share, the weight of one falls linearly while that of the other rises, so that the map has no seams.

    Parameters
    ----------
    model
        From (N, Y, X, 1) float32 in [0, 1] to (N, Y, X, 1) logits.
    settings
        See `Settings`.
    """

    def __init__(self, model: keras.Model, settings: Settings) -> None:
        self.model, self.settings = model, settings
        # Compiling for XLA halves the speed of a U-Net on a CPU under TensorFlow.
        model.jit_compile = keras.backend.backend() == "jax"

    @classmethod
    def load(cls, model_path: Path, settings_path: Path) -> Predictor:
        """Read a model and its settings; raises `InputError` where one is missing or broken."""
        return cls(unet.load_model(Path(model_path)), Settings.read(Path(settings_path)))

    def masks(self, images: np.ndarray) -> np.ndarray:
        """Return (N, Y, X) uint8 in {0, 1} for (N, Y, X) images; see `probabilities`."""
        return (self.probabilities(images) >= self.settings.threshold).astype(np.uint8)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the probability of mitochondrion in [0, 1], (N, Y, X) float32, for (N, Y, X) images.

        Raises
        ------
        InputError
            The images are no slices, or their bit depth is not that of the training images.
        """
        probabilities = np.empty(images.shape, np.float32)
        for probability, image in zip(probabilities, images, strict=True):
            probability[...] = self.probability(image)
        return probabilities

    def probability(self, image: np.ndarray) -> np.ndarray:
        """Return (Y, X) float32 in [0, 1] for one slice (Y, X) of uint8 or uint16; see `probabilities`."""
        self._check(image)
        rows, columns = (self._axis(length) for length in image.shape)
        reached = (starts[-1] + tile for starts, tile in (rows, columns))
        padding = [(0, end - length) for end, length in zip(reached, image.shape, strict=True)]
        padded = np.pad(volumes.to_unit(image, self.settings.bit_depth), padding, mode="reflect")
        total, weight = np.zeros_like(padded), np.zeros_like(padded)
        window = np.outer(self._ramp(rows[1]), self._ramp(columns[1]))
        places = [np.s_[y : y + rows[1], x : x + columns[1]] for y in rows[0] for x in columns[0]]
        for first in range(0, len(places), BATCH):
            batch = places[first : first + BATCH]
            for place, tile in zip(batch, self._run(np.stack([padded[place] for place in batch])), strict=True):
                total[place] += window * tile
                weight[place] += window
        return (total / weight)[: image.shape[0], : image.shape[1]]

    def patch_probabilities(self, patches: np.ndarray) -> np.ndarray:
        """Return (N, Y, X) float32 in [0, 1] for patches (N, Y, X), each predicted by itself, without tiling.

        Sides are divisible by `Settings.divisor`; raises like `probabilities`.
        """
        for patch in patches:
            self._check(patch)
        units = volumes.to_unit(patches, self.settings.bit_depth)
        return np.concatenate([self._run(units[first : first + BATCH]) for first in range(0, len(units), BATCH)])

    def _run(self, batch: np.ndarray) -> np.ndarray:
        logits = np.asarray(self.model.predict_on_batch(batch[..., None]), np.float32)[..., 0]
        return np.asarray(expit(logits))

    def _check(self, image: np.ndarray) -> None:
        trained = f"{self.settings.bit_depth}-bit"
        remedy = f"convert the images to {trained}, or train on images like these"
        container = np.uint8 if self.settings.bit_depth == 8 else np.uint16
        if image.ndim != 2 or min(image.shape) < 1:
            raise InputError("images", f"a slice of shape {image.shape}", "slices (Y, X)", "pass an array (N, Y, X)")
        if image.dtype != container:
            expected = f"{np.dtype(container)}: the model was trained on {trained}"
            raise InputError("images", image.dtype, expected, remedy)
        if image.max() >= 2**self.settings.bit_depth:
            raise InputError("images", f"grey value {image.max()}", f"{trained}, as the model was trained on", remedy)

    def _axis(self, length: int) -> tuple[list[int], int]:
        """Return where tiles start along an axis, and their size."""
        tile, overlap, divisor = self.settings.tile, self.settings.overlap, self.settings.divisor
        if length <= tile:
            return [0], -(-length // divisor) * divisor
        step = tile - 2 * overlap
        return [i * step for i in range(1 - (-(length - tile) // step))], tile

    def _ramp(self, tile: int) -> np.ndarray:
        """Return the weights across a tile: two of them, one step apart, add up to 1 where they overlap."""
        places = np.arange(tile) + 0.5
        shared = 2 * self.settings.overlap
        ramp = np.minimum(places, tile - places) / shared if shared else np.ones(tile)
        return np.minimum(ramp, 1).astype(np.float32)

"""A model and slices in, a blended probability map out."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import keras
import numpy as np
from scipy.special import expit

from mitoflow import unet, volumes, workspace
from mitoflow.errors import InputError

BATCH = 8  # tiles that go through the network together
REMEDY = "run `dvc repro evaluate` or `dvc pull`"

#: The symmetries of a tile by their number: quarter turns, and then the direction in which x is read.
VIEWS = {
    1: [(0, 1)],
    4: [(turns, flip) for turns in (0, 2) for flip in (1, -1)],
    8: [(turns, flip) for turns in range(4) for flip in (1, -1)],
}

#: Reads slice z of a stack, (Y, X) uint8 or uint16.
Read = Callable[[int], np.ndarray]


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
    context, context_step
        Neighbouring slices on each side that the model sees with a slice, and slices from one to the next.
    views
        Symmetries of a tile whose predictions are averaged: 1 as it is, 4 with its flips, 8 with quarter turns too.
    median
        Slices, an odd number, over which the probability of a pixel is the median; 1 leaves it as it is.
    """

    bit_depth: int
    divisor: int
    tile: int
    overlap: int
    threshold: float
    context: int = 0
    context_step: int = 1
    views: int = 1
    median: int = 1

    def write(self, path: Path) -> None:
        """Write the settings as YAML."""
        workspace.write_yaml(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read settings that `write` wrote; raises `InputError` where they are missing or not whole.

        Models registered before there was context know nothing of it, and take what the defaults say.
        """
        fields = dataclasses.fields(cls)
        needed = [field.name for field in fields if field.default is dataclasses.MISSING]
        values = workspace.read_yaml(path, REMEDY, needed)
        return cls(**{field.name: values[field.name] for field in fields if field.name in values})


class Predictor:
    """Whole-slice inference with overlapping, blended tiles.

    Tiles start every ``tile - 2 * overlap`` pixels, which keeps the U-Net's pooling grid in place, and the slice is
    continued by reflection where the last tile reaches past its end. Across the ``2 * overlap`` pixels that two
    neighbours share, the weight of one falls linearly while that of the other rises, so that the map has no seams.

    Parameters
    ----------
    model
        From (N, Y, X, 2 context + 1) float32 in [0, 1] to (N, Y, X, 1) logits.
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
        """Return (Z, Y, X) uint8 in {0, 1} for a stack (Z, Y, X); see `probabilities`."""
        return (self.probabilities(images) >= self.settings.threshold).astype(np.uint8)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the probability of mitochondrion in [0, 1], (Z, Y, X) float32, for consecutive slices (Z, Y, X).

        Raises
        ------
        InputError
            The images are no slices, or their bit depth is not that of the training images.
        """
        probabilities = np.empty(images.shape, np.float32)
        for z, probability in enumerate(self.stream(images.__getitem__, range(len(images)))):
            probabilities[z] = probability
        return probabilities

    def stream(self, read: Read, held: range) -> Iterator[np.ndarray]:
        """Yield the probability map of each slice of a stack, (Y, X) float32 in [0, 1], in bounded memory.

        Parameters
        ----------
        read
            Reads slice z of the stack.
        held
            The consecutive slices that there are.
        """
        return median_along_z(self.stream_unfiltered(read, held), self.settings.median)

    def stream_unfiltered(self, read: Read, held: range) -> Iterator[np.ndarray]:
        """Yield what `stream` does, without the median along z."""
        window: dict[int, np.ndarray] = {}
        for z in held:
            near = volumes.neighbours(z, self.settings.context, self.settings.context_step, held)
            # Each slice is read once, and stays as long as a later one needs it.
            window = {place: image for place, image in window.items() if place >= near[0]}
            window |= {place: self._unit(_slice(read(place))) for place in sorted({*near} - window.keys())}
            yield self._blend(np.stack([window[place] for place in near], axis=-1))

    def patch_probabilities(self, patches: np.ndarray) -> np.ndarray:
        """Return (N, Y, X) float32 in [0, 1] for patches with their neighbours, (N, Y, X, 2 context + 1).

        Each is predicted by itself, as it is, without tiling. Sides are divisible by `Settings.divisor`; raises like
        `probabilities`.
        """
        units = np.stack([self._unit(patch) for patch in patches])
        return np.concatenate([self._run(units[first : first + BATCH]) for first in range(0, len(units), BATCH)])

    def _blend(self, image: np.ndarray) -> np.ndarray:
        """Return (Y, X) float32 in [0, 1] for one slice with its neighbours, (Y, X, C) float32 in [0, 1]."""
        height, width = image.shape[:2]
        rows, columns = (self._axis(length) for length in (height, width))
        reached = (starts[-1] + tile for starts, tile in (rows, columns))
        padding = [(0, end - length) for end, length in zip(reached, (height, width), strict=True)]
        padded = np.pad(image, [*padding, (0, 0)], mode="reflect")
        total, weight = (np.zeros(padded.shape[:2], np.float32) for _ in range(2))
        window = np.outer(self._ramp(rows[1]), self._ramp(columns[1]))
        places = [np.s_[y : y + rows[1], x : x + columns[1]] for y in rows[0] for x in columns[0]]
        for first in range(0, len(places), BATCH):
            batch = places[first : first + BATCH]
            tiles = np.stack([padded[place] for place in batch])
            for place, tile in zip(batch, self._average(tiles), strict=True):
                total[place] += window * tile
                weight[place] += window
        return (total / weight)[:height, :width]

    def _average(self, batch: np.ndarray) -> np.ndarray:
        """Return the mean probability over the views of a batch, (N, Y, X) float32."""
        total = np.zeros(batch.shape[:3], np.float32)
        for turns, flip in VIEWS[self.settings.views]:
            seen = self._run(np.rot90(batch, turns, axes=(1, 2))[:, :, ::flip])
            total += np.rot90(seen[:, :, ::flip], -turns, axes=(1, 2))
        return total / self.settings.views

    def _run(self, batch: np.ndarray) -> np.ndarray:
        logits = np.asarray(self.model.predict_on_batch(batch), np.float32)[..., 0]
        return np.asarray(expit(logits))

    def _unit(self, image: np.ndarray) -> np.ndarray:
        """Return grey values as float32 in [0, 1], after a check that they are like those of training."""
        trained = f"{self.settings.bit_depth}-bit"
        remedy = f"convert the images to {trained}, or train on images like these"
        container = np.uint8 if self.settings.bit_depth == 8 else np.uint16
        if image.dtype != container:
            expected = f"{np.dtype(container)}: the model was trained on {trained}"
            raise InputError("images", image.dtype, expected, remedy)
        if image.max() >= 2**self.settings.bit_depth:
            raise InputError("images", f"grey value {image.max()}", f"{trained}, as the model was trained on", remedy)
        return volumes.to_unit(image, self.settings.bit_depth)

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


def _slice(image: np.ndarray) -> np.ndarray:
    if image.ndim != 2 or min(image.shape) < 1:
        raise InputError("images", f"a slice of shape {image.shape}", "slices (Y, X)", "pass an array (Z, Y, X)")
    return image


def median_along_z(maps: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield the median of each map and its neighbours along z: a slice that was misjudged follows those around it.

    Parameters
    ----------
    maps
        Consecutive maps, (Y, X) each.
    size
        Maps, an odd number, of which the median is taken; at the ends of the stack as many of them as there are.
    """
    half = size // 2
    window: deque[np.ndarray | None] = deque(maxlen=size)
    for place, latest in enumerate(chain(maps, repeat(None, half))):
        window.append(latest)
        if place >= half:
            near = [each for each in window if each is not None]
            yield near[0] if len(near) == 1 else np.median(near, axis=0)

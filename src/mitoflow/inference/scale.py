"""At which scale a network sees a stack best, by its own confidence: no labels and no pixel size are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np

from mitoflow.inference.predictor import Predictor
from mitoflow.io.volumes import Volume

OCTAVES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)  # tried first, then half an octave to both sides of the best
HALF_OCTAVE = 2**0.5
CLEARLY = 0.03  # confidence by which another scale must be better than the expected one to be taken
SIDE = 512  # pixels of a window, as the network sees it
SMALLEST = 64  # pixels of a slice at the smallest scale that is tried
#: Where the windows lie in the slices that they come from, as shares of the room along y and x.
PLACES = ((0.5, 0.5), (0.2, 0.8), (0.8, 0.2), (0.2, 0.2), (0.8, 0.8))

#: Returns a volume as the network sees it at a scale.
AtScale = Callable[[float], Volume]


@dataclass(frozen=True)
class Scales:
    """How sure a network is of its masks at several scales.

    Attributes
    ----------
    confidence
        `confidence` over all windows, by scale: pixels of the network to a pixel of the stack.
    """

    confidence: dict[float, float]

    @property
    def best(self) -> float:
        """The scale at which the network is surest; of equals, the one nearest to 1."""
        return max(self.confidence, key=lambda scale: (self.confidence[scale], -abs(math.log(scale))))

    def gain(self, scale: float) -> float:
        """Return how much surer the network is at the best scale than at the tried one that is nearest to `scale`."""
        nearest = min(self.confidence, key=lambda tried: abs(math.log(tried / scale)))
        return self.confidence[self.best] - self.confidence[nearest]

    def chosen(self, expected: float = 1.0) -> float:
        """Return the scale to predict at: the expected one, unless the network is clearly surer at the best one."""
        return self.best if self.gain(expected) > CLEARLY else expected


def search(predictor: Predictor, at_scale: AtScale, expected: float = 1.0) -> Scales:
    """Predict a few windows of a stack at scales from 1/8 to 2, and return how sure the network is at each.

    A network that sees structures of the size that it knows decides clearly; where they are too large or too small, it
    hesitates. On tissue that a network was not trained on, the scale with the highest confidence was the best one by
    the truth, or next to it (docs/quality.md).

    Parameters
    ----------
    predictor
        The model, for windows: see `for_windows`.
    at_scale
        Resamples the stack.
    expected
        A scale that is tried in any case, such as the one that a voxel size suggests.
    """
    found: dict[float, float] = {}

    def try_out(scale: float) -> None:
        volume = at_scale(scale)
        if scale not in found and (min(volume.shape[1:]) >= SMALLEST or scale == expected):
            found[scale] = confidence(predictor, windows(volume))

    for scale in (expected, *OCTAVES):
        try_out(scale)
    best = Scales(found).best
    for scale in (best / HALF_OCTAVE, best * HALF_OCTAVE):
        try_out(scale)
    return Scales(found)


def for_windows(predictor: Predictor) -> Predictor:
    """Return a predictor for windows of slices: each by itself, with grey values that are already as in training."""
    settings = replace(predictor.settings, context_step=0, median=1, orthoplanes=False, normalization="range")
    return predictor.with_settings(settings)


def windows(volume: Volume) -> Iterator[np.ndarray]:
    """Yield windows of up to `SIDE` pixels from all over a volume, (Y, X) as it reads."""
    depth, height, width = volume.shape
    taken = set()
    slices = cycle(sorted({round(place) for place in np.linspace(0, depth - 1, len(PLACES) + 2)[1:-1].tolist()}))
    for z, (down, across) in zip(slices, PLACES, strict=False):
        tall, wide = min(SIDE, height), min(SIDE, width)
        y, x = round((height - tall) * down), round((width - wide) * across)
        if (z, y, x) not in taken:
            taken.add((z, y, x))
            yield volume.read(z, (y, y + tall, x, x + wide))


def confidence(predictor: Predictor, images: Iterable[np.ndarray]) -> float:
    """Return the Dice that the probabilities of a network promise for its masks of images, (Y, X) each, in [0, 1].

    If its probabilities p are right, a mask m has an expected overlap with the truth of ``sum(m p)``, and the truth an
    expected size of ``sum(p)``, so the Dice to be expected is about ``2 sum(m p) / (sum(m) + sum(p))``. On tissue that
    differs from training a network is too sure of itself; `mitoflow.inference.judgement` corrects for that.

    Source: Li et al., "Estimating Model Performance under Domain Shifts with Class-Specific Confidence Scores",
    MICCAI 2022.
    """
    overlap = total = 0.0
    for image in images:
        probability = predictor.probabilities(image[None])[0]
        mask = probability >= predictor.settings.threshold
        overlap += float(probability[mask].sum())
        total += float(probability.sum()) + float(mask.sum())
    return 2 * overlap / total if total else 0.0

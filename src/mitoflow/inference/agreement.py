"""How far a network agrees with itself on a stack: the less it does, the less its masks are worth. No labels needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np

from mitoflow.inference.predictor import Predictor
from mitoflow.io import resampling
from mitoflow.io.volumes import Volume

HALF_OCTAVE = 2**0.5
SIDE = 512  # pixels of a window, as the network sees it
#: Where the windows lie in the slices that they come from, as shares of the room along y and x.
PLACES = ((0.5, 0.5), (0.2, 0.8), (0.8, 0.2), (0.2, 0.2), (0.8, 0.8))
AREA = 2**20  # pixels of a single slice for each window, so that these don't take far longer than its mask

#: Returns a volume as the network sees it at a scale.
AtScale = Callable[[float], Volume]


@dataclass(frozen=True)
class Agreement:
    """How far a network agrees with itself; each in [0, 1], and 1 where nothing changes.

    Where nothing or everything is marked it is 0, since a network that finds nothing agrees with itself anywhere.

    Attributes
    ----------
    mirrored
        Dice between its masks of images and of their mirror images.
    rescaled
        Dice between its masks at a scale and half an octave above.
    """

    mirrored: float
    rescaled: float

    @property
    def product(self) -> float:
        """The two together."""
        return self.mirrored * self.rescaled


def agreements(predictor: Predictor, at_scale: AtScale, scale: float, thresholds: Sequence[float]) -> list[Agreement]:
    """Return how far a network agrees with itself on a few windows of a stack, at each of some thresholds.

    Parameters
    ----------
    predictor
        The model, for windows: see `for_windows`.
    at_scale
        Resamples the stack.
    scale
        Pixels of the network to a pixel of the stack.
    thresholds
        Probabilities from which a pixel is mitochondrion.
    """
    images = list(windows(at_scale(scale), scale))
    maps = [predictor.probabilities(image[None])[0] for image in images]
    mirrored = [predictor.probabilities(image[None, :, ::-1])[0, :, ::-1] for image in images]
    rescaled = [resampling.resized(predictor.probabilities(_enlarged(image)[None])[0], image.shape) for image in images]
    return [
        Agreement(
            *(
                _dice([each >= threshold for each in maps], [each >= threshold for each in others])
                for others in (mirrored, rescaled)
            )
        )
        for threshold in thresholds
    ]


def for_windows(predictor: Predictor) -> Predictor:
    """Return a predictor for windows of slices: each by itself, with grey values that are already as in training.

    It takes no mean over symmetries, with which the masks of mirrored windows would be the same by themselves.
    """
    settings = replace(predictor.settings, context_step=0, tta=1, median=1, orthoplanes=False, normalization="range")
    return predictor.with_settings(settings)


def windows(volume: Volume, scale: float = 1.0) -> Iterator[np.ndarray]:
    """Yield windows of up to `SIDE` pixels from all over a volume, (Y, X) as it reads.

    Up to five of a stack. Of a single slice, one for each megapixel that it had before it was enlarged by `scale`.
    """
    depth, height, width = volume.shape
    places = PLACES if depth > 1 else PLACES[: max(1, round(height * width / scale**2 / AREA))]
    taken = set()
    slices = cycle(sorted({round(place) for place in np.linspace(0, depth - 1, len(PLACES) + 2)[1:-1].tolist()}))
    for z, (down, across) in zip(slices, places, strict=False):
        tall, wide = min(SIDE, height), min(SIDE, width)
        y, x = round((height - tall) * down), round((width - wide) * across)
        if (z, y, x) not in taken:
            taken.add((z, y, x))
            yield volume.read(z, (y, y + tall, x, x + wide))


def _enlarged(image: np.ndarray) -> np.ndarray:
    sides = tuple(round(side * HALF_OCTAVE) for side in image.shape)
    return np.asarray(np.rint(resampling.resized(image, sides)), image.dtype)


def _dice(ones: Iterable[np.ndarray], others: Iterable[np.ndarray]) -> float:
    """Return the Dice of masks; of the background where it is lower, since masks of nearly everything always agree."""
    both = neither = marked = pixels = 0
    for one, other in zip(ones, others, strict=True):
        both += int(np.count_nonzero(one & other))
        neither += int(np.count_nonzero(~(one | other)))
        marked += int(np.count_nonzero(one)) + int(np.count_nonzero(other))
        pixels += one.size + other.size
    shares = ((both, marked), (neither, pixels - marked))
    return min(2 * common / total if total else 0.0 for common, total in shares)

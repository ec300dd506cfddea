"""What Dice to expect of a prediction, and what to do about it: a judgement that needs no labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mitoflow.core import files
from mitoflow.errors import InputError
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.scale import HALF_OCTAVE, AtScale, confidence, windows
from mitoflow.io import resampling

Verdict = Literal["usable", "look closely", "do not use"]

USABLE, LOOK_CLOSELY = 0.8, 0.6  # expected Dice from which a verdict holds


@dataclass(frozen=True)
class Agreement:
    """How far a network agrees with itself on a stack; each in [0, 1], and 1 where it is of one mind.

    Attributes
    ----------
    confidence
        The Dice that its probabilities promise; see `mitoflow.inference.scale.confidence`.
    mirrored
        Dice between its masks of images and of their mirror images.
    rescaled
        Dice between its masks at the scale that was taken and half an octave above.
    """

    confidence: float
    mirrored: float
    rescaled: float

    @property
    def product(self) -> float:
        """The three together."""
        return self.confidence * self.mirrored * self.rescaled


@dataclass(frozen=True)
class Calibration:
    """How Dice follows from agreement, as measured on tissue that a model had not seen.

    ``slope * product + intercept``, within [0, 1], is the expected Dice.

    Attributes
    ----------
    slope, intercept
        Of the straight line through the left-out stacks.
    error
        What four of five of these stacks lay within, in Dice.
    stacks
        How many stacks it was measured on.
    """

    slope: float
    intercept: float
    error: float
    stacks: int

    @classmethod
    def fit(cls, agreements: Sequence[Agreement], dices: Sequence[float]) -> Calibration:
        """Return the calibration for stacks of which both agreement and Dice are known; at least three."""
        products = np.array([agreement.product for agreement in agreements])
        slope, intercept = np.polyfit(products, dices, 1)
        errors = np.abs(np.clip(slope * products + intercept, 0, 1) - dices)
        return cls(float(slope), float(intercept), float(np.quantile(errors, 0.8)), len(products))

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read what `write` wrote; raises `InputError` where it is missing or not whole."""
        names = ("slope", "intercept", "error", "stacks")
        remedy = "take it from where the model came from"
        values = files.read_yaml(path, remedy, names)
        for name in names:
            if type(values[name]) not in (int, float) or not np.isfinite(values[name]):
                raise InputError(f"{path}: {name}", values[name], "a number", remedy)
        return cls(**{name: values[name] for name in names})

    def write(self, path: Path) -> None:
        """Write the calibration as YAML."""
        files.write_yaml(path, asdict(self))

    def dice(self, agreement: Agreement) -> float:
        """Return the Dice to be expected of a stack, in [0, 1]."""
        return float(np.clip(self.slope * agreement.product + self.intercept, 0, 1))


def verdict(dice: float) -> Verdict:
    """Return in words what an expected Dice means."""
    if dice >= USABLE:
        return "usable"
    return "look closely" if dice >= LOOK_CLOSELY else "do not use"


def agreement(predictor: Predictor, at_scale: AtScale, scale: float) -> Agreement:
    """Return how far a network agrees with itself on a few windows of a stack.

    Parameters
    ----------
    predictor
        The model, for windows: see `mitoflow.inference.scale.for_windows`.
    at_scale
        Resamples the stack.
    scale
        At which the stack is predicted.
    """
    images = list(windows(at_scale(scale)))
    masks = [predictor.masks(image[None])[0] for image in images]
    mirrored = [predictor.masks(image[None, :, ::-1])[0, :, ::-1] for image in images]
    larger = [_enlarged(image) for image in images]
    rescaled = [
        _shrunk(predictor.probabilities(image[None])[0], mask.shape) for image, mask in zip(larger, masks, strict=True)
    ]
    threshold = predictor.settings.threshold
    return Agreement(
        confidence(predictor, images),
        _dice(masks, mirrored),
        _dice(masks, [probability >= threshold for probability in rescaled]),
    )


def _enlarged(image: np.ndarray) -> np.ndarray:
    height, width = (round(side * HALF_OCTAVE) for side in image.shape)
    return np.asarray(np.rint(_resampled(image, (height, width))), image.dtype)


def _shrunk(probability: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return _resampled(probability, (shape[0], shape[1]))


def _resampled(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    rows, columns = (resampling.weights(length, size, 0, size) for length, size in zip(image.shape, shape, strict=True))
    return resampling.resample(image, rows, columns)


def _dice(ones: Iterable[np.ndarray], others: Iterable[np.ndarray]) -> float:
    both = total = 0
    for one, other in zip(ones, others, strict=True):
        both += int(np.logical_and(one, other).sum())
        total += int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * both / total if total else 0.0

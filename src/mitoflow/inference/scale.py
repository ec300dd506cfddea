"""At which scale a network sees a stack best, by its agreement with itself: no labels and no pixel size are needed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mitoflow.inference.agreement import HALF_OCTAVE, AtScale, agreement
from mitoflow.inference.predictor import Predictor

OCTAVES = (1 / 4, 1 / 2, 1.0, 2.0)  # tried first, then half an octave to both sides of the best, if that lies between
CLEARLY = 0.05  # agreement by which another scale must be better than the expected one to be taken
SMALLEST = 64  # pixels of a slice at the smallest scale that is tried


@dataclass(frozen=True)
class Scales:
    """How far a network agrees with itself at several scales.

    Attributes
    ----------
    agreement
        `Agreement.product` by scale: pixels of the network to a pixel of the stack.
    """

    agreement: dict[float, float]

    @property
    def best(self) -> float:
        """The scale at which the network agrees most; of equals, the one nearest to 1."""
        return max(self.agreement, key=lambda scale: (self.agreement[scale], -abs(math.log(scale))))

    def chosen(self, expected: float) -> float:
        """Return the scale to predict at: an expected one that was tried, unless the best one is clearly better."""
        return self.best if self.agreement[self.best] - self.agreement[expected] > CLEARLY else expected


def search(predictor: Predictor, at_scale: AtScale, expected: float = 1.0) -> Scales:
    """Predict a few windows of a stack at scales from 1/4 to 2, and return how far the network agrees at each.

    A network that sees structures of the size that it knows marks the same ones when the image is mirrored or a little
    larger; where they are too large or too small, it does not. The best scale lies up to half an octave below the one
    at which structures have the size that it knows, since masks are compared with those of larger windows.

    On tissue that a network was not trained on, the Dice at the scale with the highest agreement is close to that at
    the best one by the truth (docs/quality.md). How sure the network is says less: at small scales it is sure of masks
    that are wrong.

    Parameters
    ----------
    predictor
        The model, for windows: see `mitoflow.inference.agreement.for_windows`.
    at_scale
        Resamples the stack.
    expected
        A scale that is tried in any case, such as the one that a voxel size suggests.
    """
    found: dict[float, float] = {}

    def try_out(scale: float) -> None:
        if scale not in found and (scale == expected or min(at_scale(scale).shape[1:]) >= SMALLEST):
            found[scale] = agreement(predictor, at_scale, scale).product

    for scale in (expected, *OCTAVES):
        try_out(scale)
    best = Scales(found).best
    for scale in (best / HALF_OCTAVE, best * HALF_OCTAVE):
        if OCTAVES[0] <= scale <= OCTAVES[-1]:
            try_out(scale)
    return Scales(found)

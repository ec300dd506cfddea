"""At which scale and threshold a network finds most in a stack, by its agreement with itself: no labels are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mitoflow.inference.agreement import Agreement, AtScale, agreements
from mitoflow.inference.predictor import Predictor

#: Half octaves from about 1/3 to 3. Below, a network may agree with itself on things that are no mitochondria.
SCALES = tuple(2 ** (step / 2) for step in range(-3, 4))
THRESHOLDS = tuple(round(256 * share / 10) / 256 for share in range(1, 10))  # about 0.1 to 0.9
CLEARLY = 0.05  # agreement by which another operating point must be better than a usual one to be taken
SMALLEST = 64  # pixels of a slice at the smallest scale that is tried


class OperatingPoint(NamedTuple):
    """How masks are made: pixels of the network to a pixel of the stack, and the threshold of probabilities."""

    scale: float
    threshold: float


@dataclass(frozen=True)
class OperatingPoints:
    """How far a network agrees with itself at several operating points.

    Attributes
    ----------
    agreement
        By operating point; of several, those are better where `Agreement.product` is higher.
    """

    agreement: dict[OperatingPoint, Agreement]

    @property
    def best(self) -> OperatingPoint:
        """Where the network agrees most; of equals, the scale nearest to 1, then the threshold nearest to 0.5."""
        return max(
            self.agreement,
            key=lambda point: (self.agreement[point].product, -abs(math.log(point.scale)), -abs(point.threshold - 0.5)),
        )

    def chosen(self, usual: OperatingPoint) -> OperatingPoint:
        """Return the operating point to predict at: as usual, unless the agreement is clearly better elsewhere.

        Another scale with the usual threshold goes before another threshold, and that before both.

        Parameters
        ----------
        usual
            One that was tried.
        """
        best = self.best
        enough = self.agreement[best].product - CLEARLY
        preferred = (
            usual,
            self._best_of(threshold=usual.threshold),
            self._best_of(scale=usual.scale),
            best,
        )
        return next(point for point in preferred if self.agreement[point].product >= enough)

    def _best_of(self, **same: float) -> OperatingPoint:
        matching = {
            point: agreed for point, agreed in self.agreement.items() if same.items() <= point._asdict().items()
        }
        return OperatingPoints(matching).best


def search(
    predictor: Predictor,
    at_scale: AtScale,
    usual: OperatingPoint,
    thresholds: Sequence[float] = THRESHOLDS,
    enough: float = 1 - CLEARLY,
) -> OperatingPoints:
    """Predict a few windows of a stack at scales from 1/3 to 3, and return how far the network agrees at each.

    A network that sees structures of the size that it knows marks the same ones when the image is mirrored or a little
    larger; where they are too large or too small, it does not. The best scale lies up to half an octave below the one
    at which structures have the size that it knows, since masks are compared with those of larger windows. Likewise
    masks change least at a threshold that lies between the probabilities of mitochondria and those of the rest. On
    tissue that a network was not trained on, that can be far from the threshold that suits the tissue that it knows.

    On such tissue, the Dice where the agreement is highest is close to that at the best operating point by the truth
    (docs/quality.md). How sure the network is says less: at small scales it is sure of masks that are wrong.

    Parameters
    ----------
    predictor
        The model, for windows: see `mitoflow.inference.agreement.for_windows`.
    at_scale
        Resamples the stack.
    usual
        One that is tried in any case, such as the scale that a voxel size suggests with the threshold of the model.
    thresholds
        Others that are tried at each scale.
    enough
        Agreement at the usual operating point from which no other scale is tried. None can be clearly better than the
        default.
    """
    thresholds = sorted({usual.threshold, *thresholds})
    found: dict[OperatingPoint, Agreement] = {}
    for scale in (usual.scale, *(each for each in SCALES if each != usual.scale)):
        if scale == usual.scale or min(at_scale(scale).shape[1:]) >= SMALLEST:
            for threshold, agreed in zip(thresholds, agreements(predictor, at_scale, scale, thresholds), strict=True):
                found[OperatingPoint(scale, threshold)] = agreed
        if found[usual].product >= enough:
            break
    return OperatingPoints(found)

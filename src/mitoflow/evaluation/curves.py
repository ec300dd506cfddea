"""Predictions over all thresholds: precision and recall, calibration, and the threshold of the highest Dice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitoflow.data.network_input import UNLABELLED
from mitoflow.evaluation.metrics import Counts, dice, precision, recall

BINS = 256
REPORTED_BINS = 16  # of a reliability diagram


THRESHOLDS: NDArray[np.float64] = np.arange(BINS) / BINS


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall at every threshold; three arrays of equal length, thresholds rising."""

    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    @property
    def average_precision(self) -> float:
        """The area under the curve as a sum of steps: precision at each threshold times the recall it gains."""
        return float(np.sum(-np.diff(self.recall, append=0.0) * self.precision))


@dataclass(frozen=True)
class Reliability:
    """Predicted probability of foreground against how often it is foreground, in bins of equal width.

    Only bins that hold pixels: ``probability`` is the mean prediction in each, ``frequency`` the foreground fraction,
    ``pixels`` their number. ``brier`` is the mean squared difference of probability and truth over all pixels.
    """

    probability: NDArray[np.float64]
    frequency: NDArray[np.float64]
    pixels: NDArray[np.int64]
    brier: float

    @property
    def expected_calibration_error(self) -> float:
        """The mean of |probability - frequency| over pixels (Guo et al. 2017, eq. 5, on the foreground class)."""
        return float(np.average(np.abs(self.probability - self.frequency), weights=self.pixels))


class ProbabilityHistogram:
    """Predictions of any number of slices, summed up so that any threshold can be tried afterwards.

    A pixel of probability p falls into bin floor(256 p), and 1 into the last. Multiplying by 256 is exact in floating
    point, so p >= k/256 holds for exactly the pixels in the bins from k on: for the thresholds k/256, k = 0 ... 255,
    the counts are those of the rule ``probability >= threshold`` and not an estimate. A slice costs 4 KiB, whatever
    its size.

    Examples
    --------
    >>> import numpy as np
    >>> histogram = ProbabilityHistogram()
    >>> histogram.add(truth=np.array([[0, 0, 1, 1]]), probability=np.array([[0.1, 0.6, 0.7, 0.9]]))
    >>> histogram.counts_at(0.5).tolist()
    [[2, 1, 0, 1]]
    >>> best_threshold([histogram])
    0.6015625
    """

    def __init__(self) -> None:
        self._rows: list[NDArray[np.int64]] = []
        self._probability_sum = np.zeros(BINS)
        self._squared_error = 0.0

    def add(self, truth: NDArray[Any], probability: NDArray[Any]) -> None:
        """Add the pixels of a slice as one row.

        Parameters
        ----------
        truth, probability
            ``(..., Y, X)``: bool or {0, 1}, and float in [0, 1]. Pixels whose truth is `UNLABELLED` do not count.

        Raises
        ------
        ValueError
            The shapes differ, or a probability is not a number in [0, 1].
        """
        if truth.shape != probability.shape:
            raise ValueError(f"truth {truth.shape} and probability {probability.shape} differ in shape")
        if not np.all((probability >= 0) & (probability <= 1)):
            raise ValueError("a probability is NaN or outside [0, 1]")
        labelled = truth != UNLABELLED
        truth, probability = truth[labelled].astype(bool), probability[labelled]
        bins = np.minimum((probability * BINS).astype(np.intp), BINS - 1).ravel()
        self._rows.append(np.bincount(bins + BINS * truth.ravel(), minlength=2 * BINS).reshape(2, BINS))
        self._probability_sum += np.bincount(bins, weights=probability.ravel(), minlength=BINS)
        self._squared_error += float(np.sum(np.square(probability - truth, dtype=np.float64)))

    def counts_at(self, threshold: float) -> Counts:
        """Return the confusion counts of each row, ``(rows, 4)``, for the rule ``probability >= threshold``.

        Raises
        ------
        ValueError
            ``threshold`` is not one of k/256, k = 0 ... 255.
        """
        if threshold not in THRESHOLDS:
            raise ValueError(f"threshold {threshold} is not one of k/{BINS}, k = 0 ... {BINS - 1}")
        return _counts_at_all(np.array(self._rows, np.int64).reshape(-1, 2, BINS))[:, int(threshold * BINS)]

    def dice(self) -> NDArray[np.float64]:
        """Return the Dice of all rows together at each of `THRESHOLDS`, ``(256,)``."""
        return dice(_counts_at_all(self._pooled()))

    def precision_recall(self) -> PrecisionRecall:
        """Return the curve over all thresholds, of all rows together."""
        counts = _counts_at_all(self._pooled())
        return PrecisionRecall(THRESHOLDS, precision(counts), recall(counts))

    def reliability(self, bins: int = REPORTED_BINS) -> Reliability:
        """Return the calibration of all rows together, in ``bins`` bins; ``bins`` divides 256."""
        pixels, probability_sum = self._bins(bins)
        return _reliability(pixels, probability_sum, self._squared_error / float(pixels.sum()))

    def _bins(self, bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return pixels by truth and bin, ``(2, bins)``, and the sum of the probabilities in each bin, ``(bins,)``."""
        return self._pooled().reshape(2, bins, -1).sum(-1), self._probability_sum.reshape(bins, -1).sum(-1)

    def _pooled(self) -> NDArray[np.int64]:
        """Return pixels by truth and bin, ``(2, 256)``, over all rows."""
        if not self._rows:
            raise ValueError("no slice was added to the histogram")
        pooled: NDArray[np.int64] = np.sum(self._rows, axis=0)
        return pooled


def best_threshold(histograms: Sequence[ProbabilityHistogram]) -> float:
    """Return the threshold of the highest Dice, and of equals the one nearest to 0.5.

    Of several histograms, one for each set, it is that of the highest mean of their Dice: each set counts alike.
    """
    scores = np.mean([histogram.dice() for histogram in histograms], axis=0)
    best = THRESHOLDS[scores == scores.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def mean_precision_recall(histograms: Sequence[ProbabilityHistogram]) -> PrecisionRecall:
    """Return precision and recall at every threshold, of several sets the mean of theirs."""
    curves = [histogram.precision_recall() for histogram in histograms]
    return PrecisionRecall(
        THRESHOLDS,
        np.mean([curve.precision for curve in curves], axis=0),
        np.mean([curve.recall for curve in curves], axis=0),
    )


def mean_reliability(histograms: Sequence[ProbabilityHistogram]) -> Reliability:
    """Return the calibration, of several sets that of pixels of which each set has the same share."""
    first, *others = histograms
    if not others:
        return first.reliability()
    sides = [histogram._bins(REPORTED_BINS) for histogram in histograms]
    total = sum(int(pixels.sum()) for pixels, _ in sides)
    weights = [total / len(sides) / int(pixels.sum()) for pixels, _ in sides]
    pixels = np.sum([weight * pixels for weight, (pixels, _) in zip(weights, sides, strict=True)], axis=0)
    probability_sum = np.sum([weight * summed for weight, (_, summed) in zip(weights, sides, strict=True)], axis=0)
    brier = float(np.mean([histogram.reliability().brier for histogram in histograms]))
    return _reliability(pixels, probability_sum, brier)


def _reliability(pixels: NDArray[Any], probability_sum: NDArray[np.float64], brier: float) -> Reliability:
    """Return the calibration of pixels by truth and bin, ``(2, bins)``, whose probabilities have this sum by bin."""
    total = pixels.sum(0)
    held = total > 0
    return Reliability(
        probability=probability_sum[held] / total[held],
        frequency=pixels[1, held] / total[held],
        pixels=np.asarray(np.ceil(total[held]), np.int64),
        brier=brier,
    )


def _counts_at_all(histogram: NDArray[np.int64]) -> Counts:
    """Turn pixels by truth and bin, ``(..., 2, 256)``, into the counts at each of `THRESHOLDS`, ``(..., 256, 4)``."""
    predicted = np.cumsum(histogram[..., ::-1], axis=-1)[..., ::-1]
    background, foreground = np.moveaxis(predicted[..., :1] - predicted, -2, 0)
    fp, tp = np.moveaxis(predicted, -2, 0)
    return np.stack([tp, fp, foreground, background], axis=-1)

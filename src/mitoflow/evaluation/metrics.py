"""What a segmentation is worth: confusion counts, scores, intervals, and curves over all thresholds.

Everything starts from the four confusion counts of a slice. Counts add up, over patches, slices and stacks, so a score
of many slices is always the score of their summed counts and never a mean of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Score = Callable[[NDArray[Any]], NDArray[np.float64]]


def count(truth: NDArray[Any], prediction: NDArray[Any], owned: NDArray[Any] | None = None) -> Counts:
    """Count the pixels of each slice that agree and disagree.

    Parameters
    ----------
    truth, prediction
        ``(..., Y, X)`` bool or {0, 1}.
    owned
        ``(..., Y, X)`` bool; only pixels where it is true are counted. Reflected margins of patches are not owned.

    Returns
    -------
    counts
        ``(..., 4)`` int64: true positives, false positives, false negatives, true negatives.

    Raises
    ------
    ValueError
        ``truth`` and ``prediction`` differ in shape.
    """
    truth, prediction = truth.astype(bool), prediction.astype(bool)
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    inside = np.ones(truth.shape[-2:], bool) if owned is None else owned
    cells = (truth & prediction, ~truth & prediction, truth & ~prediction, ~(truth | prediction))
    return np.stack([np.sum(cell & inside, axis=(-2, -1), dtype=np.int64) for cell in cells], axis=-1)


def accuracy(counts: Counts) -> NDArray[np.float64]:
    """Return the fraction of pixels that are right; ``counts`` is ``(..., 4)``, 0/0 is 1."""
    return ratio(counts[..., 0] + counts[..., 3], counts.sum(-1))


def dice(counts: Counts) -> NDArray[np.float64]:
    """Return 2 TP / (2 TP + FP + FN), the F1 score of the foreground; ``counts`` is ``(..., 4)``, 0/0 is 1."""
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    return ratio(2 * tp, 2 * tp + fp + fn)


def iou(counts: Counts) -> NDArray[np.float64]:
    """Return TP / (TP + FP + FN), the Jaccard index of the foreground; ``counts`` is ``(..., 4)``, 0/0 is 1."""
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    return ratio(tp, tp + fp + fn)


def precision(counts: Counts) -> NDArray[np.float64]:
    """Return TP / (TP + FP); ``counts`` is ``(..., 4)``, 0/0 is 1: nothing predicted, nothing predicted wrongly."""
    return ratio(counts[..., 0], counts[..., 0] + counts[..., 1])


def recall(counts: Counts) -> NDArray[np.float64]:
    """Return TP / (TP + FN); ``counts`` is ``(..., 4)``, 0/0 is 1: nothing to find, nothing missed."""
    return ratio(counts[..., 0], counts[..., 0] + counts[..., 2])


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Return part / whole, and 1 for 0/0: where there is nothing to get wrong, nothing is wrong."""
    return np.divide(part, whole, out=np.ones(np.shape(whole)), where=whole != 0)


SCORES: Mapping[str, Score] = MappingProxyType(
    {"dice": dice, "iou": iou, "accuracy": accuracy, "precision": precision, "recall": recall}
)


QUANTILES: Mapping[str, float] = MappingProxyType({"min": 0.0, "q05": 0.05, "median": 0.5, "q95": 0.95})


def slice_dice(counts: Counts) -> NDArray[np.float64]:
    """Return the Dice of each slice with mitochondria, true or predicted; ``counts`` is ``(slices, 4)``.

    Slices without any are always right and would hide the others; they count only where there are no others.
    """
    held = counts[:, :3].any(axis=1)
    return dice(counts[held] if held.any() else counts)


def slice_dice_quantiles(counts: Counts) -> dict[str, float]:
    """Return `QUANTILES` of `slice_dice` by name; ``counts`` is ``(slices, 4)``, one slice at least."""
    values = np.quantile(slice_dice(counts), list(QUANTILES.values()))
    return dict(zip(QUANTILES, values.tolist(), strict=True))

"""Scores of a segmentation, from counts: of pixels here, of boundaries and instances as their modules count them.

Counts add up, over patches, slices and stacks, so a score of many slices is always the score of their summed counts and
never a mean of scores. `SCORES` has all of them: a score that is added there is in ``metrics.json``, in MLflow, in the
reports and for `mitoflow.tracking.gate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mitoflow.data.network_input import UNLABELLED

Counts = NDArray[np.int64]
#: A function of counts, ``(..., columns)``, to values ``(...)``.
OfCounts = Callable[[NDArray[Any]], NDArray[np.float64]]
#: What is counted: pixels by `count`, boundaries by `boundary.count`, pixels that are not near them by
#: `boundary.count_off_boundary`, and instances that match at an IoU of 0.5 and of 0.75 by
#: `instance_scores.Matching.objects`.
Counted = Literal["pixels", "boundaries", "off_boundary", "instances_50", "instances_75"]


def count(truth: NDArray[Any], prediction: NDArray[Any], owned: NDArray[Any] | None = None) -> Counts:
    """Count the pixels of each slice that agree and disagree.

    Parameters
    ----------
    truth, prediction
        ``(..., Y, X)`` bool or {0, 1}. Pixels where the truth is `network_input.UNLABELLED` are not counted.
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
    labelled = truth != UNLABELLED
    truth, prediction = truth.astype(bool), prediction.astype(bool)
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    inside = labelled if owned is None else labelled & owned
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


def boundary_f1(counts: Counts) -> NDArray[np.float64]:
    """Return the harmonic mean of the matched shares of both boundaries; ``counts`` is ``(..., 6)``
    by `mitoflow.evaluation.boundary.COLUMNS`.

    It is 1 where both have no boundary, and 0 where one of them has none or nothing is matched.
    """
    predicted, predicted_matched, true, true_matched, _, _ = np.moveaxis(counts, -1, 0)
    precision, recall = ratio(predicted_matched, predicted), ratio(true_matched, true)
    both = precision + recall
    return np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)


def error_near_boundary(counts: Counts) -> NDArray[np.float64]:
    """Return the share of wrong pixels that are near the true boundary; ``counts`` is ``(..., 6)``, 0/0 is 1."""
    return ratio(counts[..., 5], counts[..., 4])


def panoptic_quality(objects: NDArray[Any]) -> NDArray[np.float64]:
    """Return the sum of IoU over TP + FP / 2 + FN / 2: Kirillov et al. 2019, equation 1.

    It is the F1 of the instances times the mean IoU of those that match, and 1 where there are none at all.

    Parameters
    ----------
    objects
        ``(..., 4)``: the summed rows of `mitoflow.evaluation.instance_scores.Matching.objects` at 0.5.
    """
    tp, fp, fn, iou = np.moveaxis(objects, -1, 0)
    return ratio(iou, tp + fp / 2 + fn / 2)


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Return part / whole, and 1 for 0/0: where there is nothing to get wrong, nothing is wrong."""
    return np.divide(part, whole, out=np.ones(np.shape(whole)), where=whole != 0)


@dataclass(frozen=True)
class Score:
    """A score and how it is shown.

    Attributes
    ----------
    function
        Returns the score of summed counts: values in [0, 1].
    title
        What reports call it.
    counted
        What the counts are of.
    percent
        Whether reports show it in per cent.
    higher_is_better
        Whether ``required`` in ``promotion.yaml`` is the least or the most that it may be.
    """

    function: OfCounts
    title: str
    counted: Counted = "pixels"
    percent: bool = False
    higher_is_better: bool = True

    def __call__(self, counts: NDArray[Any]) -> NDArray[np.float64]:
        """Return the score of counts ``(..., columns)`` as ``(...)``."""
        return self.function(counts)


#: All scores by name, in the order in which they are shown.
SCORES: dict[str, Score] = {
    "dice": Score(dice, "Dice"),
    "iou": Score(iou, "IoU"),
    "accuracy": Score(accuracy, "Pixel accuracy", percent=True),
    "precision": Score(precision, "Precision"),
    "recall": Score(recall, "Recall"),
    "boundary_f1": Score(boundary_f1, "Boundary F1 at 2 px", "boundaries"),
    "error_near_boundary": Score(error_near_boundary, "Errors within 2 px of the boundary", "boundaries", percent=True),
    "dice_off_boundary": Score(dice, "Dice without 2 px at the boundary", "off_boundary"),
    "instance_f1_50": Score(dice, "Instance F1 at IoU 0.5", "instances_50"),
    "instance_f1_75": Score(dice, "Instance F1 at IoU 0.75", "instances_75"),
    "panoptic_quality": Score(panoptic_quality, "Panoptic quality", "instances_50"),
}


def scores_of(*counted: Counted) -> dict[str, Score]:
    """Return those of `SCORES` that are made of these counts."""
    return {name: score for name, score in SCORES.items() if score.counted in counted}


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

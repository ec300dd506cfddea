"""Mitochondria as objects: connected components in 3-D, and which true and predicted ones are the same.

The scores of voxels forgive a mitochondrion that is missed where others are large, and two that are merged by a bridge
a few voxels thick. Who counts mitochondria or measures each of them needs to know how many are found whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Matching:
    """The true and predicted instances that are the same: those that overlap with an IoU above 1/2.

    Above 1/2 no instance has two partners (Kirillov et al. 2019, CVPR, "Panoptic Segmentation", section 4.1), so there
    is nothing to assign.

    Attributes
    ----------
    true_instances, predicted_instances
        How many there are, with and without partner.
    true, predicted
        ``(pairs,)`` labels of the partners.
    iou
        ``(pairs,)`` float64 in (0.5, 1].
    """

    true_instances: int
    predicted_instances: int
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    iou: NDArray[np.float64]

    def objects(self, threshold: float = 0.5) -> NDArray[Any]:
        """Return one row for each pair with an IoU above ``threshold``, and for each instance that is in none.

        Rows add up as the counts of `mitoflow.evaluation.metrics` do, over stacks too: `metrics.dice`,
        `metrics.precision` and `metrics.recall` of their sum are F1, precision and recall of the instances.

        Returns
        -------
        objects
            ``(objects, 4)`` float64: true positives, false positives and false negatives, one of which is 1, and the
            IoU of a true positive.

        Raises
        ------
        ValueError
            ``threshold`` is below 1/2, where instances could have several partners.
        """
        if threshold < 0.5:
            raise ValueError(f"an IoU threshold of {threshold} is below 0.5")
        iou = self.iou[self.iou > threshold]
        pairs = len(iou)
        rows = np.repeat(np.eye(4)[:3], [pairs, self.predicted_instances - pairs, self.true_instances - pairs], axis=0)
        rows[:pairs, 3] = iou
        return rows


def match(truth: NDArray[Any], prediction: NDArray[Any]) -> Matching:
    """Find the true and predicted instances that are the same.

    Parameters
    ----------
    truth, prediction
        ``(Z, Y, X)`` unsigned integers: 0 is background, each other value an instance, gaps allowed; as of `label`.

    Raises
    ------
    ValueError
        ``truth`` and ``prediction`` differ in shape.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    # Only foreground is gathered, a few per cent of a stack: 64-bit copies of all of it would not fit into memory.
    true_sizes, predicted_sizes = (np.bincount(labels[labels > 0], minlength=1) for labels in (truth, prediction))
    shared = (truth > 0) & (prediction > 0)
    pairs = truth[shared].astype(np.int64) * len(predicted_sizes) + prediction[shared]
    pairs, voxels = np.unique(pairs, return_counts=True)
    true, predicted = np.divmod(pairs, len(predicted_sizes))
    iou = voxels / (true_sizes[true] + predicted_sizes[predicted] - voxels)
    same = iou > 0.5
    return Matching(
        true_instances=int(np.count_nonzero(true_sizes)),
        predicted_instances=int(np.count_nonzero(predicted_sizes)),
        true=true[same],
        predicted=predicted[same],
        iou=iou[same],
    )

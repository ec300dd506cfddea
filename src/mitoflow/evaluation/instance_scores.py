"""Mitochondria as objects: connected components in 3-D, and which true and predicted ones are the same.

The scores of voxels forgive a mitochondrion that is missed where others are large, and two that are merged by a bridge
a few voxels thick. Who counts mitochondria or measures each of them needs to know how many are found whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitoflow.io.blocks import full_box

#: A function of voxels ``(Z, Y, X)`` to the labels of their instances, unsigned integers of the same shape.
Label = Callable[[NDArray[Any]], NDArray[Any]]


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


def match_looked_at(
    truth: NDArray[Any], prediction: NDArray[Any], looked_at: NDArray[np.bool_], label_truth: Label, label: Label
) -> Matching:
    """Find the instances of what was looked at that are the same: in 3-D, or slice by slice.

    Where all was looked at, or a box, instances are mitochondria, as in a stack that ends there. Between other parts,
    such as single slices of a stack, nobody knows what is connected: instances are then profiles, those of each slice
    by itself, with the smallest size of a profile.

    Parameters
    ----------
    truth, prediction
        ``(Z, Y, X)``, 0 for background.
    looked_at
        ``(Z, Y, X)`` bool; what lies outside does not count.
    label_truth, label
        Return the instances of a part of the truth, and of the prediction.

    Raises
    ------
    ValueError
        ``truth`` and ``prediction`` differ in shape.
    """
    if (box := full_box(looked_at)) is not None:
        return match(label_truth(truth[box]), label(prediction[box]))
    both = ((truth, label_truth), (prediction, label))
    return match(*(_label_slices(np.where(looked_at, voxels, 0), function) for voxels, function in both))


def _label_slices(voxels: NDArray[Any], label: Label) -> NDArray[np.uint32]:
    """Return the profiles of all slices, which have labels of their own in each."""
    labels, used = np.zeros(voxels.shape, np.uint32), 0
    for z, one in enumerate(voxels):
        named = label(one[None])[0].astype(np.uint32)
        labels[z] = np.where(named, named + used, 0)
        used += int(named.max())
    return labels

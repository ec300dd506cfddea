"""Compare a mask with an annotated one."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitoflow.config.params import Instances
from mitoflow.errors import InputError
from mitoflow.evaluation import boundary, instance_scores, metrics
from mitoflow.instances.label_files import is_mask, read_mitochondria
from mitoflow.instances.separation import large_labels, separate
from mitoflow.io.blocks import full_box
from mitoflow.io.spacing import (
    Notify,
    Size,
    Spacing,
    as_warnings,
    known_voxel_size,
    replace_stated,
    warn_of_other_size,
)


def score(
    prediction: str,
    truth: str,
    criteria: Instances | None = None,
    spacing: Spacing | None = None,
    notify: Notify = lambda _: None,
) -> dict[str, float]:
    """Return the scores of a mask or of labels against the truth; both are read into memory.

    Parameters
    ----------
    prediction, truth
        Files as `mitoflow predict` reads and writes them, of one size. What is not 0 is mitochondrion; where there are
        antialiased edges, what is above half (see `mitoflow.data.masks`). Where there are more values than one
        besides, each is an instance; else the mask is taken apart as `evaluate` and `predict` do. In a mask of 0, 128
        and 255, what nobody looked at is 128 and does not count; see `instance_scores.match_looked_at`.
    criteria
        What counts as a mitochondrion; labels that are too small do not either. The defaults where it is None.
    spacing
        The voxel size, in place of that of the prediction or, along axes where that does not state it, of the truth.
    notify
        See `mitoflow.instances.label_files.read_mitochondria`; also called where instances are those of slices, or
        have no scores.

    Returns
    -------
    scores
        All of `mitoflow.evaluation.metrics.SCORES`; precision and recall of instances at an IoU of 0.5 and 0.75;
        ``volume_fraction`` and ``true_volume_fraction``; the numbers of instances. Scores of instances are NaN where
        there are objects, and all are too small to count.

    Raises
    ------
    InputError
        A file cannot be read, they differ in size, or no voxel was looked at in both.
    """
    of_prediction, of_truth = (read_mitochondria(path, notify) for path in (prediction, truth))
    predicted, true = of_prediction.voxels, of_truth.voxels
    if predicted.shape != true.shape:
        found, expected = (" x ".join(map(str, each.shape)) for each in (predicted, true))
        raise InputError(prediction, f"{found} voxels", f"{expected}, as in {truth}", "name the truth of this stack")
    if not spacing:
        warn_of_other_size(of_truth.spacing, truth, of_prediction.spacing, prediction, as_warnings(notify))
    stated = replace_stated({**of_truth.spacing, **of_prediction.spacing}, spacing, prediction, notify)
    voxel_size = known_voxel_size(stated, len(true))
    looked_at = of_prediction.looked_at & of_truth.looked_at
    if not looked_at.any():
        raise InputError(prediction, f"no voxel that was looked at, as in {truth}", "some", "name masks of one part")
    label_truth, label = (_labelling(each, criteria or Instances(), voxel_size) for each in (true, predicted))
    predicted, true = (np.where(looked_at, voxels, 0) for voxels in (predicted, true))
    matching = instance_scores.match_looked_at(true, predicted, looked_at, label_truth, label)
    if full_box(looked_at) is None:
        notify(f"note: {prediction}: what was looked at is no box, so instances are the profiles of single slices")
    half, strict = (matching.objects(iou).sum(axis=0) for iou in (0.5, 0.75))
    counts: dict[metrics.Counted, NDArray[Any]] = {
        "pixels": metrics.count(true > 0, predicted > 0, looked_at).sum(axis=0),
        "boundaries": boundary.count(true > 0, predicted > 0, looked_at=looked_at).sum(axis=0),
        "off_boundary": boundary.count_off_boundary(true > 0, predicted > 0, looked_at).sum(axis=0),
        "instances_50": half,
        "instances_75": strict,
    }
    of_instances = {
        "instance_precision_50": float(metrics.precision(half)),
        "instance_recall_50": float(metrics.recall(half)),
        "instance_precision_75": float(metrics.precision(strict)),
        "instance_recall_75": float(metrics.recall(strict)),
    }
    scores = {name: float(score(counts[score.counted])) for name, score in metrics.SCORES.items()} | of_instances
    if (predicted.any() or true.any()) and not matching.predicted_instances + matching.true_instances:
        notify(f"note: {prediction}: all objects of both are too small to count, so scores of instances are blank")
        scores |= dict.fromkeys([*metrics.scores_of("instances_50", "instances_75"), *of_instances], math.nan)
    return {
        **scores,
        "volume_fraction": float((predicted > 0)[looked_at].mean()),
        "true_volume_fraction": float((true > 0)[looked_at].mean()),
        "instances": matching.predicted_instances,
        "true_instances": matching.true_instances,
    }


def _labelling(voxels: NDArray[Any], criteria: Instances, voxel_size: Size | None) -> instance_scores.Label:
    """Return what finds the instances in a part of a mask, which is taken apart, or of labels."""
    if is_mask(voxels):
        return lambda part: separate(part > 0, criteria, voxel_size)
    return partial(large_labels, criteria=criteria, voxel_size=voxel_size)

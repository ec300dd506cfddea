"""Compare a mask with an annotated one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitoflow.config.params import Instances
from mitoflow.data.masks import NOT_LOOKED_AT
from mitoflow.errors import InputError
from mitoflow.evaluation import boundary, instance_scores, metrics
from mitoflow.inference.label_files import is_mask, is_partial, read_labels, warn_of_dense_mask
from mitoflow.instances.separation import fewest_voxels, separate
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
        Files as `mitoflow predict` reads and writes them, of one size. What is not 0 is mitochondrion; of a TIFF with
        antialiased edges, what is above half (see `mitoflow.data.masks`). Where there are more values than one
        besides, each is an instance; else the mask is taken apart as `evaluate` and `predict` do. In a truth of 0, 128
        and 255, what nobody looked at is 128 and does not count.
    criteria
        What counts as a mitochondrion; labels that are too small do not either. The defaults where it is None.
    spacing
        The voxel size, in place of that of the prediction or, along axes where that does not state it, of the truth.
    notify
        See `mitoflow.inference.label_files.read_labels`; also called where a mask may be inverted.

    Returns
    -------
    scores
        All of `mitoflow.evaluation.metrics.SCORES`; precision and recall of instances at an IoU of 0.5 and 0.75;
        ``volume_fraction`` and ``true_volume_fraction``; the numbers of instances.

    Raises
    ------
    InputError
        A file cannot be read, or they differ in size.
    """
    (predicted, its_spacing), (true, other_spacing) = (read_labels(path, notify) for path in (prediction, truth))
    if predicted.shape != true.shape:
        found, expected = (" x ".join(map(str, each.shape)) for each in (predicted, true))
        raise InputError(prediction, f"{found} voxels", f"{expected}, as in {truth}", "name the truth of this stack")
    looked_at = np.ones(true.shape, bool)
    if is_partial(true):
        looked_at = true != NOT_LOOKED_AT
        notify(f"note: {truth}: {1 - looked_at.mean():.0%} of the voxels are {NOT_LOOKED_AT}, which nobody looked at")
        predicted, true = (np.where(looked_at, voxels, 0) for voxels in (predicted, true))
    for path, voxels in ((prediction, predicted), (truth, true)):
        warn_of_dense_mask(voxels[looked_at], path, notify)
    if not spacing:
        warn_of_other_size(other_spacing, truth, its_spacing, prediction, as_warnings(notify))
    stated = replace_stated({**other_spacing, **its_spacing}, spacing, prediction, notify)
    voxel_size = known_voxel_size(stated, len(true))
    labels = (_labels(each, criteria or Instances(), voxel_size) for each in (true, predicted))
    matching = instance_scores.match(*labels)
    half, strict = (matching.objects(iou).sum(axis=0) for iou in (0.5, 0.75))
    counts: dict[metrics.Counted, NDArray[Any]] = {
        "pixels": metrics.count(true > 0, predicted > 0, looked_at).sum(axis=0),
        "boundaries": boundary.count(true > 0, predicted > 0).sum(axis=0),
        "off_boundary": boundary.count_off_boundary(true > 0, predicted > 0).sum(axis=0),
        "instances_50": half,
        "instances_75": strict,
    }
    return {
        **{name: float(score(counts[score.counted])) for name, score in metrics.SCORES.items()},
        "instance_precision_50": float(metrics.precision(half)),
        "instance_recall_50": float(metrics.recall(half)),
        "instance_precision_75": float(metrics.precision(strict)),
        "instance_recall_75": float(metrics.recall(strict)),
        "volume_fraction": float((predicted > 0)[looked_at].mean()),
        "true_volume_fraction": float((true > 0)[looked_at].mean()),
        "instances": matching.predicted_instances,
        "true_instances": matching.true_instances,
    }


def _labels(voxels: NDArray[Any], criteria: Instances, voxel_size: Size | None) -> NDArray[Any]:
    """Return the instances that count, numbered without large gaps; what has one value only is taken apart."""
    if is_mask(voxels):
        return separate(voxels > 0, criteria, voxel_size)
    values, places, sizes = np.unique(voxels, return_inverse=True, return_counts=True)
    counts = (values > 0) & (sizes >= fewest_voxels(criteria, voxels.shape, voxel_size))
    return np.asarray((np.cumsum(counts) * counts)[places].reshape(voxels.shape), np.uint32)

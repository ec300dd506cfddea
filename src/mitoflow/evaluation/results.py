"""The scores of a model on the test part, from what was measured there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mitoflow.evaluation import boundary, metrics
from mitoflow.evaluation.bootstrap import Interval, bootstrap_interval
from mitoflow.evaluation.curves import PrecisionRecall, Reliability
from mitoflow.evaluation.metrics import Counts
from mitoflow.evaluation.protocols import PATCH_WISE_THRESHOLD, Choice, Measured, Shapes


@dataclass(frozen=True)
class ProtocolScores:
    """The scores of one protocol: its threshold, and an interval for each of `metrics.SCORES` of pixels."""

    threshold: float
    intervals: Mapping[str, Interval]


@dataclass(frozen=True)
class Results:
    """All scores of a model on the test part.

    Attributes
    ----------
    choice
        What validation decided.
    whole_slice, patch_wise
        The scores of both protocols.
    stacks, z
        For each slice, in the order of stacks and z, the name of its stack and its place there.
    counts, boundaries
        For each slice its counts ``(slices, 4)`` by the whole-slice protocol, and those of its boundary ``(slices, 6)``
        by `boundary.COLUMNS`.
    shapes
        Boundary and instance scores of the whole-slice masks, by the names of `metrics.SCORES`.
    true_instances, predicted_instances
        How many mitochondria there are, in 3-D.
    curve, reliability
        Of the whole-slice probabilities.
    """

    choice: Choice
    whole_slice: ProtocolScores
    patch_wise: ProtocolScores
    stacks: Sequence[str]
    z: Sequence[int]
    counts: Counts
    boundaries: Counts
    shapes: Mapping[str, Interval]
    true_instances: int
    predicted_instances: int
    curve: PrecisionRecall
    reliability: Reliability

    def summary(self) -> dict[str, Any]:
        """Return the figures of ``metrics.json``; an interval is three of them."""
        return {
            "patch_wise": _flat(self.patch_wise.intervals),
            "whole_slice": _flat(self.whole_slice.intervals),
            "threshold": self.choice.threshold,
            "median": self.choice.median,
            "validation_dice": self.choice.dice,
            **_flat(self.shapes),
            "true_instances": self.true_instances,
            "predicted_instances": self.predicted_instances,
            **{f"slice_dice_{name}": value for name, value in metrics.slice_dice_quantiles(self.counts).items()},
            "average_precision": self.curve.average_precision,
            "calibration_error": self.reliability.expected_calibration_error,
            "brier": self.reliability.brier,
        }

    def slices(self) -> dict[str, Sequence[Any] | np.ndarray]:
        """Return the columns of ``slices.csv`` by their names, a value for each slice."""
        return {
            "slice": range(len(self.counts)),
            "stack": self.stacks,
            "z": self.z,
            "dice": metrics.dice(self.counts),
            "iou": metrics.iou(self.counts),
            **dict(zip(("tp", "fp", "fn", "tn"), self.counts.T, strict=True)),
            "boundary_f1": metrics.boundary_f1(self.boundaries),
            "error_near_boundary": metrics.error_near_boundary(self.boundaries),
            **dict(zip(boundary.COLUMNS, self.boundaries.T, strict=True)),
        }


def score(measured: Measured, choice: Choice, block: int, resamples: int, seed: int) -> Results:
    """Return the scores of what was measured with the choice of validation.

    Parameters
    ----------
    measured, choice
        The masks of ``measured`` are those at the threshold of ``choice``.
    block, resamples, seed
        See `mitoflow.evaluation.bootstrap.bootstrap_interval`.
    """
    stacks = [stack.name for stack in measured.stacks for _ in stack.truth]
    counts = measured.whole_slice.counts_at(choice.threshold)
    patch_wise = np.concatenate([stack.patch_wise for stack in measured.stacks])
    shapes = [stack.shapes for stack in measured.stacks]

    def score_pixels(threshold: float, of: Counts) -> ProtocolScores:
        scores = metrics.scores_of("pixels").items()
        intervals = {name: bootstrap_interval(of, score, block, resamples, seed, stacks) for name, score in scores}
        return ProtocolScores(threshold, intervals)

    return Results(
        choice=choice,
        whole_slice=score_pixels(choice.threshold, counts),
        patch_wise=score_pixels(PATCH_WISE_THRESHOLD, patch_wise),
        stacks=stacks,
        z=[z for stack in measured.stacks for z in range(len(stack.truth))],
        counts=counts,
        boundaries=np.concatenate([stack.boundary for stack in shapes]),
        shapes=score_shapes(shapes, stacks, block, resamples, seed),
        true_instances=sum(stack.matching.true_instances for stack in shapes),
        predicted_instances=sum(stack.matching.predicted_instances for stack in shapes),
        curve=measured.whole_slice.precision_recall(),
        reliability=measured.whole_slice.reliability(),
    )


def score_shapes(
    shapes: Sequence[Shapes], stacks: Sequence[str], block: int, resamples: int, seed: int
) -> dict[str, Interval]:
    """Return the scores of all stacks together, each with its 95 % interval.

    Boundaries are drawn in blocks of slices, as pixels are. Instances reach through many slices, so these are drawn one
    by one, matched pairs and those without partner alike. Instances that were split or merged are drawn as if they had
    nothing to do with each other, which makes their interval somewhat narrow; where all are found, or none, nothing
    else can be drawn, and the interval is a point that says nothing.

    Parameters
    ----------
    shapes
        Of each stack, in the order of `stacks`.
    stacks, block, resamples, seed
        See `mitoflow.evaluation.bootstrap.bootstrap_interval`.

    Returns
    -------
    scores
        Those of `metrics.SCORES` that are of boundaries or instances, by name.
    """
    half, strict = (np.concatenate([stack.matching.objects(iou) for stack in shapes]) for iou in (0.5, 0.75))
    objects = {"instances_50": half, "instances_75": strict}
    boundaries = np.concatenate([stack.boundary for stack in shapes])
    by_slice, by_object = metrics.scores_of("boundaries"), metrics.scores_of("instances_50", "instances_75")
    return {
        name: bootstrap_interval(boundaries, score, block, resamples, seed, stacks) for name, score in by_slice.items()
    } | {
        name: bootstrap_interval(objects[score.counted], score, 1, resamples, seed) for name, score in by_object.items()
    }


def _flat(scores: Mapping[str, Interval]) -> dict[str, float]:
    return {key: figure for name, interval in scores.items() for key, figure in interval.as_dict(name).items()}

"""The scores of a model on the test part, from what was measured there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitoflow.evaluation import boundary, metrics
from mitoflow.evaluation.bootstrap import Interval, bootstrap_interval
from mitoflow.evaluation.curves import PrecisionRecall, Reliability, mean_precision_recall, mean_reliability
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

    Of several sets, each score is the mean of the sets' scores, so that each set counts alike, however many pixels it
    has; instances are counted together, and the quantiles of the slices are those of all slices.

    Attributes
    ----------
    choice
        What validation decided.
    whole_slice, patch_wise, single_slice
        The scores of each protocol: slices in their stacks, patches by themselves, and slices by themselves, which is
        None where it is the first.
    datasets, stacks, z
        For each slice, in the order of sets, stacks and z, the names of its set and its stack, and its place there.
    counts, boundaries
        For each slice its counts ``(slices, 4)`` by the whole-slice protocol, and those of its boundary ``(slices, 6)``
        by `boundary.COLUMNS`.
    shapes
        Boundary and instance scores of the whole-slice masks, by the names of `metrics.SCORES`.
    true_instances, predicted_instances
        How many mitochondria there are, in 3-D; where parts with gaps between them were looked at, profiles.
    curve, reliability
        Of the whole-slice probabilities; of several sets see `mitoflow.evaluation.curves`.
    sets
        The scores of each set by its name; empty where there is one set.
    """

    choice: Choice
    whole_slice: ProtocolScores
    patch_wise: ProtocolScores
    single_slice: ProtocolScores | None
    datasets: Sequence[str]
    stacks: Sequence[str]
    z: Sequence[int]
    counts: Counts
    boundaries: Counts
    shapes: Mapping[str, Interval]
    true_instances: int
    predicted_instances: int
    curve: PrecisionRecall
    reliability: Reliability
    sets: Mapping[str, Results] = field(default_factory=dict)

    @property
    def by_set(self) -> Mapping[str, Results]:
        """The scores of each set by its name, also where there is one."""
        return self.sets or {self.datasets[0]: self}

    @property
    def average_precision(self) -> float:
        """That of the curve; of several sets the mean of theirs."""
        return float(np.mean([each.curve.average_precision for each in self.by_set.values()]))

    @property
    def calibration_error(self) -> float:
        """The expected calibration error; of several sets the mean of theirs."""
        return float(np.mean([each.reliability.expected_calibration_error for each in self.by_set.values()]))

    def summary(self) -> dict[str, Any]:
        """Return the figures of ``metrics.json``; an interval is three of them.

        With several sets, ``sets`` has those of each set.
        """
        protocols = {"patch_wise": self.patch_wise, "whole_slice": self.whole_slice, "single_slice": self.single_slice}
        summary = {
            **{name: _flat(scores.intervals) for name, scores in protocols.items() if scores},
            "threshold": self.choice.threshold,
            "median": self.choice.median,
            "validation_dice": self.choice.dice,
            **_flat(self.shapes),
            "true_instances": self.true_instances,
            "predicted_instances": self.predicted_instances,
            **{f"slice_dice_{name}": value for name, value in metrics.slice_dice_quantiles(self.counts).items()},
            "average_precision": self.average_precision,
            "calibration_error": self.calibration_error,
            "brier": self.reliability.brier,
        }
        return summary | ({"sets": {name: self._summary_of(name) for name in self.sets}} if self.sets else {})

    def _summary_of(self, dataset: str) -> dict[str, Any]:
        """Return the figures of one of several sets, without those that hold for all."""
        chosen = ("threshold", "median", "validation_dice")
        figures = {key: value for key, value in self.sets[dataset].summary().items() if key not in chosen}
        validated = self.choice.sets.get(dataset)  # a set may have no validation slices
        return figures | ({} if validated is None else {"validation_dice": validated})

    def slices(self) -> dict[str, Sequence[Any] | np.ndarray]:
        """Return the columns of ``slices.csv`` by their names, a value for each slice."""
        return {
            "slice": range(len(self.counts)),
            **({"set": self.datasets} if self.sets else {}),
            "stack": self.stacks,
            "z": self.z,
            "dice": metrics.dice(self.counts),
            "iou": metrics.iou(self.counts),
            **dict(zip(("tp", "fp", "fn", "tn"), self.counts.T, strict=True)),
            "boundary_f1": metrics.boundary_f1(self.boundaries),
            "error_near_boundary": metrics.error_near_boundary(self.boundaries),
            **dict(zip(boundary.COLUMNS, self.boundaries.T, strict=True)),
        }


def score(measured: Mapping[str, Measured], choice: Choice, block: int, resamples: int, seed: int) -> Results:
    """Return the scores of what was measured with the choice of validation, over all sets and of each.

    Parameters
    ----------
    measured, choice
        By the name of the set; the masks of ``measured`` are those at the threshold of ``choice``.
    block, resamples, seed
        See `mitoflow.evaluation.bootstrap.bootstrap_interval`.
    """
    bootstrap = (block, resamples, seed)
    sets = {name: _score({name: each}, choice, *bootstrap) for name, each in measured.items()}
    return _score(measured, choice, *bootstrap, sets) if len(sets) > 1 else next(iter(sets.values()))


def _score(
    measured: Mapping[str, Measured],
    choice: Choice,
    block: int,
    resamples: int,
    seed: int,
    sets: Mapping[str, Results] | None = None,
) -> Results:
    """Return the scores over all sets, which has those of `sets` beside them."""
    places = [(name, stack) for name, each in measured.items() for stack in each.stacks]
    datasets = [name for name, stack in places for _ in stack.truth]
    stacks = [stack.name for _, stack in places for _ in stack.truth]
    histograms = [each.whole_slice for each in measured.values()]
    whole = [metrics.count(stack.truth, stack.mask) for _, stack in places]
    counts = np.concatenate(whole)
    alone = [stack.single_slice for _, stack in places]
    shapes = [stack.shapes for _, stack in places]

    def score_pixels(threshold: float, of_stacks: Sequence[Counts]) -> ProtocolScores:
        rows, scores = np.concatenate(of_stacks), metrics.scores_of("pixels").items()
        intervals = {
            name: bootstrap_interval(rows, score, block, resamples, seed, stacks, datasets) for name, score in scores
        }
        return ProtocolScores(threshold, intervals)

    is_other = any(counts is not None for counts in alone)
    by_itself = [in_stack if single is None else single for in_stack, single in zip(whole, alone, strict=True)]
    return Results(
        choice=choice,
        whole_slice=score_pixels(choice.threshold, whole),
        patch_wise=score_pixels(PATCH_WISE_THRESHOLD, [stack.patch_wise for _, stack in places]),
        single_slice=score_pixels(choice.threshold, by_itself) if is_other else None,
        datasets=datasets,
        stacks=stacks,
        z=[z for _, stack in places for z in range(len(stack.truth))],
        counts=counts,
        boundaries=np.concatenate([stack.boundary for stack in shapes]),
        shapes=score_shapes(shapes, stacks, block, resamples, seed, [name for name, _ in places], counts.any(axis=1)),
        true_instances=sum(stack.matching.true_instances for stack in shapes),
        predicted_instances=sum(stack.matching.predicted_instances for stack in shapes),
        curve=mean_precision_recall(histograms),
        reliability=mean_reliability(histograms),
        sets=sets or {},
    )


def score_shapes(
    shapes: Sequence[Shapes],
    stacks: Sequence[str],
    block: int,
    resamples: int,
    seed: int,
    datasets: Sequence[str] | None = None,
    looked_at: NDArray[np.bool_] | None = None,
) -> dict[str, Interval]:
    """Return the scores of all stacks together, each with its 95 % interval; of several sets, the mean of theirs.

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
    datasets
        For each of `shapes` the set of its stack; None for one set.
    looked_at
        ``(slices,)``: whether anybody looked at a pixel of each slice; None for all.

    Returns
    -------
    scores
        Those of `metrics.SCORES` that are of boundaries or instances, by name.
    """
    names = datasets or [""] * len(shapes)
    by_slice = {
        "boundaries": np.concatenate([stack.boundary for stack in shapes]),
        "off_boundary": np.concatenate([stack.off_boundary for stack in shapes]),
    }
    of_slices = [name for name, stack in zip(names, shapes, strict=True) for _ in stack.boundary]
    seen = np.ones(len(of_slices), bool) if looked_at is None else looked_at
    objects = {"instances_50": _objects(shapes, names, 0.5), "instances_75": _objects(shapes, names, 0.75)}
    scores = {
        name: bootstrap_interval(by_slice[score.counted], score, block, resamples, seed, stacks, of_slices, seen)
        for name, score in metrics.scores_of("boundaries", "off_boundary").items()
    }
    for name, score in metrics.scores_of("instances_50", "instances_75").items():
        rows, of_rows = objects[score.counted]
        scores[name] = bootstrap_interval(rows, score, 1, resamples, seed, datasets=of_rows)
    return scores


def _objects(shapes: Sequence[Shapes], names: Sequence[str], iou: float) -> tuple[NDArray[Any], list[str]]:
    """Return the instances of all stacks as `instance_scores.Matching.objects` has them, and the set of each."""
    rows, labels = [], []
    for name in dict.fromkeys(names):
        matchings = [stack.matching for stack, of_set in zip(shapes, names, strict=True) if of_set == name]
        found = np.concatenate([matching.objects(iou) for matching in matchings])
        found = found if len(found) else np.zeros((1, 4))  # a set without any counts too, as 0/0
        rows.append(found)
        labels += [name] * len(found)
    return np.concatenate(rows), labels


def _flat(scores: Mapping[str, Interval]) -> dict[str, float]:
    return {key: figure for name, interval in scores.items() for key, figure in interval.as_dict(name).items()}

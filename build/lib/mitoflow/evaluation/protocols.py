"""Measure a model: the threshold on validation, then both protocols on the test part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import tee
from typing import Any

import numpy as np
from tqdm import tqdm

from mitoflow.data import patches
from mitoflow.evaluation import boundary, instance_scores, metrics
from mitoflow.evaluation.metrics import Counts, Interval, ProbabilityHistogram
from mitoflow.inference.instances import separate
from mitoflow.inference.predictor import OnSections, Predictor, median_along_z
from mitoflow.io import tiff

PATCH_WISE_THRESHOLD = 0.5


@dataclass(frozen=True)
class Choice:
    """What validation decided: the threshold, the median along z (see `inference.Settings`), and their Dice."""

    threshold: float
    median: int
    dice: float


def choose(
    predictor: Predictor,
    validation: patches.Patches,
    medians: Sequence[int],
    stacks: Sequence[tiff.Stack] | None = None,
) -> Choice:
    """Return the threshold and the median along z of the highest whole-slice Dice on the validation slices.

    Every slice is predicted once, whatever the number of `medians`; of equals, the first is chosen.

    Parameters
    ----------
    predictor
        The model.
    validation
        The slices that count.
    medians
        Windows along z to choose from.
    stacks
        The stacks that these slices are the ends of: the model then sees them with all that lies before them, as it
        does in use. Without them it sees the validation slices alone.
    """
    histograms = [ProbabilityHistogram() for _ in medians]
    total = sum(len(held) for held in validation.ranges.values())
    with tqdm(desc="evaluate: threshold", unit="slice", total=total) as bar:
        for stack, held in validation.ranges.items():
            whole = held if stacks is None else range(stacks[stack].shape[0])
            read = partial(validation.image, stack) if stacks is None else stacks[stack].slice
            near = range(max(whole.start, held.start - max(medians) // 2), held.stop)
            maps = predictor.stream_unfiltered(read, whole, near, on_sections=_sections())
            filtered = (median_along_z(copy, size) for copy, size in zip(tee(maps, len(medians)), medians, strict=True))
            for z, candidates in zip(near, zip(*filtered, strict=True), strict=True):
                if z not in held:  # its map is in the medians of those that are
                    continue
                truth = validation.mask(stack, z)
                for histogram, probability in zip(histograms, candidates, strict=True):
                    histogram.add(truth, probability)
                bar.update()
    choices = []
    for histogram, median in zip(histograms, medians, strict=True):
        threshold = histogram.best_threshold()
        choices.append(Choice(threshold, median, float(metrics.dice(histogram.counts_at(threshold).sum(0)))))
    return max(choices, key=lambda choice: choice.dice)


@dataclass(frozen=True)
class Measured:
    """What a model did on the test part, slice by slice, in the order of stacks and z.

    Attributes
    ----------
    stacks, z
        Name of the stack and place in it, for each slice.
    patch_wise
        (slices, 4) counts of all owned pixels of the patches of each slice, cut without overlap and each predicted by
        itself, at threshold 0.5: the protocol of the student's report.
    whole_slice
        The predicted probabilities of each slice, from overlapping tiles that are blended.
    masks
        For each stack by its name, the mask at the predictor's threshold, (Z, Y, X) uint8 in {0, 1}.
    """

    stacks: list[str]
    z: list[int]
    patch_wise: Counts
    whole_slice: ProbabilityHistogram
    masks: dict[str, np.ndarray]


def measure(predictor: Predictor, pairs: list[tiff.Pair], rule: tiff.Rule, size: int) -> Measured:
    """Predict every slice of `pairs` by both protocols.

    Parameters
    ----------
    predictor
        The model.
    pairs, rule
        The test part, and how its masks are read.
    size
        Pixels of the patches of the patch-wise protocol, along y and x.

    Raises
    ------
    InputError
        The images are of another bit depth than those that the model was trained on.
    """
    stacks, places, counts, histogram = [], [], [], ProbabilityHistogram()
    masks: dict[str, np.ndarray] = {}
    settings = predictor.settings
    with tqdm(total=sum(pair.image.shape[0] for pair in pairs), desc="evaluate: test", unit="slice") as bar:
        for pair in pairs:
            held = range(pair.image.shape[0])
            masks[pair.name] = np.empty(pair.image.shape, np.uint8)
            maps = predictor.stream(pair.image.slice, held, on_sections=_sections())
            for z, probability in zip(held, maps, strict=True):
                truth = tiff.binarise(pair.mask.slice(z), rule)
                histogram.add(truth, probability)
                masks[pair.name][z] = probability >= settings.threshold
                near = tiff.neighbours(z, settings.context, settings.context_step, held)
                images = np.stack([pair.image.slice(place) for place in near], axis=-1)
                counts.append(_count_patches(predictor, images, truth, size))
                stacks.append(pair.name)
                places.append(z)
                bar.update()
    return Measured(stacks, places, np.array(counts), histogram, masks)


def count(predictor: Predictor, pairs: list[tiff.Pair], rule: tiff.Rule) -> tuple[list[str], Counts]:
    """Return the stack and the whole-slice counts, (slices, 4), of every slice of `pairs`; raises like `measure`."""
    stacks, counts = [], []
    for pair in pairs:
        maps = predictor.stream(pair.image.slice, range(pair.image.shape[0]), on_sections=_sections())
        for truth, probability in zip(pair.mask.slices(), maps, strict=True):
            counts.append(metrics.count(tiff.binarise(truth, rule), probability >= predictor.settings.threshold))
            stacks.append(pair.name)
    return stacks, np.array(counts)


def _sections() -> OnSections:
    """Return what shows how far the sections of a stack are, where there are any."""
    bar: tqdm[Any] | None = None

    def show(share: float) -> None:
        nonlocal bar
        bar = bar or tqdm(desc="evaluate: sections", total=100, unit="%", leave=False)
        bar.update(int(100 * share) - bar.n)
        if share == 1:
            bar.close()

    return show


def _count_patches(predictor: Predictor, images: np.ndarray, truth: np.ndarray, size: int) -> Counts:
    """Count one slice, (Y, X, C) with its neighbours, by the patch-wise protocol."""
    channels = [patches.cut(image, size, size)[0] for image in np.moveaxis(images, -1, 0)]
    truths, boxes = patches.cut(truth, size, size)
    predicted = predictor.patch_probabilities(np.stack(channels, axis=-1)) >= PATCH_WISE_THRESHOLD
    counts: Counts = metrics.count(truths, predicted, patches.owned(boxes[:, 2:], size)).sum(axis=0)
    return counts


@dataclass(frozen=True)
class Shapes:
    """How the predicted mitochondria of one stack compare with the true ones, beyond single pixels.

    Attributes
    ----------
    boundary
        (slices, 6) counts by `boundary.COLUMNS`.
    matching
        The 3-D instances, and which of them are the same.
    """

    boundary: Counts
    matching: instance_scores.Matching


def compare_shapes(truth: np.ndarray, mask: np.ndarray) -> Shapes:
    """Compare boundaries, slice by slice, and 3-D instances of ``truth`` and ``mask``: (Z, Y, X) uint8 in {0, 1}.

    Instances are what `mitoflow predict --instances` gives where no voxel size is known, of the truth as of the mask.

    Raises
    ------
    ValueError
        They differ in shape.
    """
    return Shapes(boundary.count(truth, mask), instance_scores.match(separate(truth), separate(mask)))


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
        See `mitoflow.evaluation.metrics.bootstrap_interval`.

    Returns
    -------
    scores
        ``boundary_f1``, ``error_near_boundary`` (the share of wrong pixels), ``instance_f1_50``, ``instance_f1_75`` and
        ``panoptic_quality``.
    """
    boundaries = np.concatenate([stack.boundary for stack in shapes])
    half, strict = (np.concatenate([stack.matching.objects(iou) for stack in shapes]) for iou in (0.5, 0.75))
    by_slice = {"boundary_f1": boundary.f1, "error_near_boundary": boundary.near_share}
    by_object = {
        "instance_f1_50": (half, metrics.dice),
        "instance_f1_75": (strict, metrics.dice),
        "panoptic_quality": (half, instance_scores.panoptic_quality),
    }
    return {
        name: metrics.bootstrap_interval(boundaries, score, block, resamples, seed, stacks)
        for name, score in by_slice.items()
    } | {
        name: metrics.bootstrap_interval(objects, score, 1, resamples, seed)
        for name, (objects, score) in by_object.items()
    }

"""Measure a model: the threshold on validation, then both protocols on the test part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, tee
from typing import Any

import numpy as np
from tqdm import tqdm

from mitoflow.config.params import Instances
from mitoflow.core.progress import progress_bar
from mitoflow.data import cutting, network_input, patches
from mitoflow.data.conventions import Conventions
from mitoflow.data.masks import Rule, binarise
from mitoflow.data.network_input import UNLABELLED
from mitoflow.data.pairs import Pair
from mitoflow.evaluation import boundary, instance_scores, metrics
from mitoflow.evaluation.curves import THRESHOLDS, ProbabilityHistogram, best_threshold
from mitoflow.evaluation.metrics import Counts
from mitoflow.inference.jobs import Prediction
from mitoflow.inference.median import median_along_z
from mitoflow.inference.predictor import CONTACT, PlaneProgress, Predictor, Read
from mitoflow.inference.settings import Settings
from mitoflow.instances.separation import large_labels, separate
from mitoflow.io import tiff
from mitoflow.io.spacing import Size, Spacing, known_voxel_size
from mitoflow.io.volumes import StackVolume, Volume

PATCH_WISE_THRESHOLD = 0.5
IN_CONTACT = 2  # added where two mitochondria touch, also in a hole of the mask, which is filled with its contacts


@dataclass(frozen=True)
class Choice:
    """What validation decided.

    Attributes
    ----------
    threshold, median
        The threshold and the median along z; see `mitoflow.inference.settings.Settings`.
    dice
        Their Dice on the validation slices; of several sets, the mean of `sets`.
    sets
        Their Dice on the validation slices of each set by its name; empty where there is one set.
    """

    threshold: float
    median: int
    dice: float
    sets: Mapping[str, float] = field(default_factory=dict)


def choose(
    predictor: Predictor,
    validation: patches.Patches,
    medians: Sequence[int],
    stacks: Sequence[tiff.Stack] | None = None,
    threshold: float | None = None,
) -> Choice:
    """Return the threshold and the median along z of the highest whole-slice Dice on the validation slices.

    Of several sets it is the highest mean of their Dice: each set counts alike, however many pixels it has, and one
    without validation slices does not count. Every slice is predicted once, whatever the number of `medians`; of
    equals, the first is chosen.

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
    threshold
        A fixed threshold, rounded to the nearest of `curves.THRESHOLDS` above 0; None lets validation choose.
    """
    histograms: dict[str, list[ProbabilityHistogram]] = {}  # by set, one for each of the medians
    longest = predictor.with_settings(replace(predictor.settings, median=max(medians)))
    total = sum(len(held) for held in validation.ranges.values())
    with progress_bar(desc="evaluate: threshold", unit="slice", total=total) as bar:
        for stack, held in validation.ranges.items():
            dataset = validation.datasets[stack]
            of_set = histograms.setdefault(dataset, [ProbabilityHistogram() for _ in medians])
            fitted, whole = longest, held
            read: Read = partial(validation.image, stack)
            if stacks is not None:
                fitted, read = longest.for_volume(StackVolume([stacks[stack]], spacing=validation.spacings[stack]))
                whole = range(stacks[stack].shape[0])
            sizes = medians if fitted.settings.median > 1 else [1] * len(medians)  # as in use
            near = range(max(whole.start, held.start - max(medians) // 2), held.stop)
            maps = fitted.stream_unfiltered(read, whole, near, on_planes=_plane_progress())
            filtered = (median_along_z(copy, size) for copy, size in zip(tee(maps, len(sizes)), sizes, strict=True))
            for z, candidates in zip(near, zip(*filtered, strict=True), strict=True):
                if z not in held:  # its map is in the medians of those that are
                    continue
                if z in fitted.blank:  # as in use
                    candidates = [np.zeros_like(probability) for probability in candidates]
                truth = validation.mask(stack, z)
                for histogram, probability in zip(of_set, candidates, strict=True):
                    histogram.add(truth, probability)
                bar.update()
    choices = [
        _best_with(median, {dataset: of_set[place] for dataset, of_set in histograms.items()}, threshold)
        for place, median in enumerate(medians)
    ]
    return max(choices, key=lambda choice: choice.dice)


def _best_with(median: int, histograms: Mapping[str, ProbabilityHistogram], threshold: float | None) -> Choice:
    """Return the best choice with this median, and this threshold if any, from the histogram of each set."""
    if threshold is None:
        threshold = best_threshold([*histograms.values()])
    else:
        above_0 = THRESHOLDS[1:]  # from 0 on every pixel is mitochondrion
        threshold = float(above_0[np.abs(above_0 - threshold).argmin()])
    scores = {name: float(metrics.dice(each.counts_at(threshold).sum(0))) for name, each in histograms.items()}
    return Choice(threshold, median, float(np.mean([*scores.values()])), scores if len(scores) > 1 else {})


@dataclass(frozen=True)
class Shapes:
    """How the predicted mitochondria of one stack compare with the true ones, beyond single pixels.

    Attributes
    ----------
    boundary
        (slices, 6) counts by `boundary.COLUMNS`.
    off_boundary
        (slices, 4) counts by `boundary.count_off_boundary`.
    matching
        The instances, and which of them are the same; see `instance_scores.match_looked_at`.
    """

    boundary: Counts
    off_boundary: Counts
    matching: instance_scores.Matching


@dataclass(frozen=True)
class MeasuredStack:
    """What a model did on one stack of the test part.

    Attributes
    ----------
    name
        Of the stack.
    truth, mask
        (Z, Y, X) uint8 in {0, 1}: the truth, and the prediction at the predictor's threshold. The truth is
        `network_input.UNLABELLED` where nobody looked, and the prediction 0 there.
    patch_wise
        (Z, 4) counts of all owned pixels of the patches of each slice, cut without overlap and each predicted by
        itself, at threshold 0.5: the protocol of the first baseline (Singh, 2025).
    single_slice
        (Z, 4) counts of each slice predicted by itself, as a stack of one, at the predictor's threshold. None where
        that is what `mask` is already: the stack has one slice, or no slice is predicted with others.
    shapes
        Boundaries and instances of mask and truth.
    """

    name: str
    truth: np.ndarray
    mask: np.ndarray
    patch_wise: Counts
    single_slice: Counts | None
    shapes: Shapes


@dataclass(frozen=True)
class Measured:
    """What a model did on the test part of a set.

    Attributes
    ----------
    stacks
        One record for each stack.
    whole_slice
        The predicted probabilities of each slice, in the order of stacks and z, from overlapping tiles that are
        blended.
    """

    stacks: list[MeasuredStack]
    whole_slice: ProbabilityHistogram


def measure(
    predictor: Predictor, pairs: Sequence[Pair], sets: Mapping[str, Conventions], size: int, criteria: Instances
) -> dict[str, Measured]:
    """Predict every slice of `pairs` by all protocols, and compare it with its truth, which is read once.

    A slice is predicted in its stack, patch by patch, and by itself where that is another thing: a model that sees
    neighbouring slices may be given single slices.

    Parameters
    ----------
    predictor
        The model.
    pairs, sets
        The test part, set after set, and how each set is read.
    size
        Pixels of the patches of the patch-wise protocol, along y and x.
    criteria
        What counts as a mitochondrion.

    Returns
    -------
    measured
        By the name of the set.

    Raises
    ------
    InputError
        The images are of another bit depth than those that the model was trained on.
    """
    measured = {}
    with progress_bar(total=sum(pair.image.shape[0] for pair in pairs), desc="evaluate: test", unit="slice") as bar:
        for dataset, of_set in groupby(pairs, key=lambda pair: pair.dataset):
            histogram = ProbabilityHistogram()
            of_stack = partial(_measure_stack, predictor, sets[dataset], size, criteria, histogram, bar)
            measured[dataset] = Measured([of_stack(pair) for pair in of_set], histogram)
    return measured


def _measure_stack(
    predictor: Predictor,
    conventions: Conventions,
    size: int,
    criteria: Instances,
    histogram: ProbabilityHistogram,
    bar: tqdm[Any],
    pair: Pair,
) -> MeasuredStack:
    predictor, read = predictor.for_volume(StackVolume([pair.image], spacing=conventions.spacing))
    settings, held = predictor.settings, range(pair.image.shape[0])
    truth, mask = np.empty(pair.image.shape, np.uint8), np.empty(pair.image.shape, np.uint8)
    labels = []
    patch_wise, single_slice = [], []
    contacts = np.zeros(pair.image.shape, np.bool_)

    def keep(z: int, contact: np.ndarray) -> None:
        contacts[z] = contact >= CONTACT

    maps = predictor.stream(read, held, on_planes=_plane_progress(), on_contacts=keep if settings.contacts else None)
    for z, probability in zip(held, maps, strict=True):
        stored = pair.mask.slice(z)
        truth[z] = binarise(stored, conventions.mask_rule)
        if conventions.instances:
            labels.append(stored)
        mask[z] = (probability >= settings.threshold) & (truth[z] != UNLABELLED)
        histogram.add(truth[z], probability)
        near = network_input.neighbours(z, settings.context, settings.context_step, held)
        images = np.stack([read(place) for place in near], axis=-1)
        patch_wise.append(_count_patches(predictor, images, truth[z], size))
        if len(held) > 1 and _sees_others(settings):
            (alone,) = predictor.stream(read, range(z, z + 1))
            single_slice.append(metrics.count(truth[z], alone >= settings.threshold))
        bar.update()
    voxel_size = known_voxel_size(conventions.spacing, len(held))
    return MeasuredStack(
        name=pair.name,
        truth=truth,
        mask=mask,
        patch_wise=np.array(patch_wise),
        single_slice=np.array(single_slice) if single_slice else None,
        shapes=compare_shapes(
            truth,
            mask,
            criteria,
            voxel_size,
            labels=np.stack(labels) if labels else None,
            contacts=contacts if settings.contacts else None,
        ),
    )


def _sees_others(settings: Settings) -> bool:
    """Return whether the prediction of a slice in a stack depends on other slices."""
    return settings.context * settings.context_step > 0 or settings.orthoplanes or settings.median > 1


def count(
    predict: Callable[[Volume], Prediction],
    pairs: list[Pair],
    rules: Mapping[str, Rule],
    spacing: Spacing | None = None,
) -> tuple[list[str], Counts]:
    """Return the stack and the whole-slice counts, (slices, 4), of every slice of `pairs`; raises like `measure`.

    `predict` returns the maps of a stack. Their voxel size is `spacing`, or what the files say.
    """
    stacks, counts = [], []
    for pair in pairs:
        prediction = predict(StackVolume([pair.image], spacing=spacing))
        maps = prediction.maps(prediction.whole, on_planes=_plane_progress())
        for truth, probability in zip(pair.mask.slices(), maps, strict=True):
            found = probability >= prediction.predictor.settings.threshold
            counts.append(metrics.count(binarise(truth, rules[pair.dataset]), found))
            stacks.append(pair.name)
    return stacks, np.array(counts)


def _plane_progress() -> PlaneProgress:
    """Return a callback that shows the progress of the orthogonal planes of a stack, if it has any."""
    bar: tqdm[Any] | None = None

    def show(share: float) -> None:
        nonlocal bar
        bar = bar or progress_bar(desc="evaluate: orthogonal planes", total=100, unit="%", leave=False)
        bar.update(int(100 * share) - bar.n)
        if share == 1:
            bar.close()

    return show


def _count_patches(predictor: Predictor, images: np.ndarray, truth: np.ndarray, size: int) -> Counts:
    """Count one slice, (Y, X, C) with its neighbours, by the patch-wise protocol."""
    channels = [cutting.cut(image, size, size)[0] for image in np.moveaxis(images, -1, 0)]
    truths, boxes = cutting.cut(truth, size, size)
    predicted = predictor.patch_probabilities(np.stack(channels, axis=-1)) >= PATCH_WISE_THRESHOLD
    counts: Counts = metrics.count(truths, predicted, patches.owned(boxes[:, 2:], size)).sum(axis=0)
    return counts


def compare_shapes(
    truth: np.ndarray,
    mask: np.ndarray,
    criteria: Instances,
    voxel_size: Size | None,
    *,
    labels: np.ndarray | None = None,
    contacts: np.ndarray | None = None,
) -> Shapes:
    """Compare boundaries, slice by slice, and instances of ``truth`` and ``mask``.

    Instances are those of `mitoflow predict --instances`, of the truth as of the mask, unless the truth has labels;
    where parts were not looked at see `mitoflow.evaluation.instance_scores.match_looked_at`.

    Parameters
    ----------
    truth, mask
        (Z, Y, X) bool or {0, 1}, and the truth `network_input.UNLABELLED` where nobody looked, where the mask is 0.
    criteria
        What counts as a mitochondrion.
    voxel_size
        (z, y, x) in nm, or None where it is unknown.
    labels
        (Z, Y, X) a number for each true mitochondrion; None where the truth does not tell them apart.
    contacts
        (Z, Y, X) bool, where two predicted mitochondria touch; None where the model does not say it.

    Raises
    ------
    ValueError
        They differ in shape.
    """
    looked_at, truth = truth != UNLABELLED, truth == 1

    def taken_apart(part: np.ndarray) -> np.ndarray:
        of_part = None if contacts is None else part >= IN_CONTACT
        return separate(part % IN_CONTACT > 0, criteria, voxel_size, contacts=of_part)

    objects = mask if contacts is None else mask + IN_CONTACT * contacts.astype(np.uint8)
    off_boundary = boundary.count_off_boundary(truth, mask, looked_at)
    if labels is None:
        matching = instance_scores.match_looked_at(truth, objects, looked_at, taken_apart, taken_apart)
    else:
        large = partial(large_labels, criteria=criteria, voxel_size=voxel_size)
        matching = instance_scores.match_looked_at(labels, objects, looked_at, large, taken_apart)
    return Shapes(boundary.count(truth, mask, looked_at=looked_at), off_boundary, matching)

"""Measure a model: the threshold on validation, then both protocols on the test part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from mitoflow import metrics, patches, volumes
from mitoflow.inference import Predictor
from mitoflow.metrics import Counts, ProbabilityHistogram

PATCH_WISE_THRESHOLD = 0.5


def choose_threshold(predictor: Predictor, validation: patches.Patches) -> float:
    """Return the threshold of the highest whole-slice Dice on the validation slices."""
    histogram = ProbabilityHistogram()
    total = len(np.unique(validation.index[:, :2], axis=0))
    for _, image, truth in tqdm(validation.slices(), desc="evaluate: threshold", unit="slice", total=total):
        histogram.add(truth, predictor.probability(image))
    return histogram.best_threshold()


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
    """

    stacks: list[str]
    z: list[int]
    patch_wise: Counts
    whole_slice: ProbabilityHistogram


def measure(predictor: Predictor, pairs: list[volumes.Pair], rule: volumes.Rule, size: int) -> Measured:
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
    with tqdm(total=sum(pair.image.shape[0] for pair in pairs), desc="evaluate: test", unit="slice") as bar:
        for pair in pairs:
            for z in range(pair.image.shape[0]):
                image, truth = pair.image.slice(z), volumes.binarise(pair.mask.slice(z), rule)
                histogram.add(truth, predictor.probability(image))
                counts.append(_count_patches(predictor, image, truth, size))
                stacks.append(pair.name)
                places.append(z)
                bar.update()
    return Measured(stacks, places, np.array(counts), histogram)


def _count_patches(predictor: Predictor, image: np.ndarray, truth: np.ndarray, size: int) -> Counts:
    images, boxes = patches.cut(image, size, size)
    truths, _ = patches.cut(truth, size, size)
    predicted = predictor.patch_probabilities(images) >= PATCH_WISE_THRESHOLD
    counts: Counts = metrics.count(truths, predicted, patches.owned(boxes[:, 2:], size)).sum(axis=0)
    return counts

"""Ablation of what follows the network: `python -m benchmarks.postprocessing MODEL`, in a project with its patches/.

Orthogonal planes where the model knows them, test-time augmentation, the median along z, and the removal of small
objects, of one model, on the validation slices alone. Every row has the threshold that is best for it. The test
part is not read.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from tqdm import tqdm

from mitoflow.core import files
from mitoflow.data.pairs import read_pairs
from mitoflow.data.patches import Patches, PatchStore
from mitoflow.evaluation import curves, metrics
from mitoflow.evaluation.curves import ProbabilityHistogram
from mitoflow.inference import model_input
from mitoflow.inference.median import median_along_z
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import TTA
from mitoflow.instances import components
from mitoflow.io.volumes import StackVolume, Volume
from mitoflow.stages.paths import DATA
from mitoflow.tracking import model_lookup

RESULTS = Path(__file__).with_name("results") / "postprocessing.json"
MEDIANS = (1, 3, 5, 7)
SMALLEST = (0, 500, 2_000, 8_000)  # voxels of a component that is kept

Stack = tuple[np.ndarray, np.ndarray]  # truth {0, 1} and probability, (Z, Y, X)


def predict(predictor: Predictor, validation: Patches, images: list[Volume]) -> list[Stack]:
    """Return truth and unfiltered probability of each validation stack, the end of one of `images`."""
    stacks = []
    planes = "orthogonal planes" if predictor.settings.orthoplanes else "slices"
    title = f"{planes}, test-time augmentation {predictor.settings.tta}"
    for stack, held in validation.ranges.items():
        seen = model_input.normalized(images[stack], predictor.settings)
        depth, height, width = seen.shape
        read = partial(seen.read, box=(0, height, 0, width))
        maps = predictor.stream_unfiltered(read, range(depth), held)
        probability = np.stack([*tqdm(maps, desc=title, total=len(held), unit="slice")])
        stacks.append((np.stack([validation.mask(stack, z) for z in held]), probability))
    return stacks


def best(stacks: list[Stack]) -> float:
    """Return the threshold of the highest Dice."""
    histogram = ProbabilityHistogram()
    for truth, probability in stacks:
        for one, other in zip(truth, probability, strict=True):
            histogram.add(one, other)
    return curves.best_threshold([histogram])


def without_specks(mask: np.ndarray, smallest: int) -> np.ndarray:
    """Return a mask without the components that have fewer voxels."""
    labels = components.label(mask.astype(np.uint8))
    sizes = np.bincount(labels.ravel())
    kept = sizes >= smallest
    kept[0] = False
    return np.asarray(kept[labels])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.postprocessing", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="as of `mitoflow predict --model`")
    parser.add_argument("--store", type=Path, default=Path("patches"))
    parser.add_argument("--into", type=Path, default=RESULTS)
    options = parser.parse_args()
    validation = PatchStore.open(options.store).validation
    model = model_lookup.find(options.model).predictor
    images: list[Volume] = [StackVolume([pair.image]) for pair in read_pairs(DATA / "train")]
    rows = []
    for orthoplanes, tta in [
        *((False, tta) for tta in sorted(TTA)),
        *([(True, 1)] if model.settings.orthoplanes else []),
    ]:
        settings = replace(model.settings, orthoplanes=orthoplanes, tta=tta)
        started = time.perf_counter()
        stacks = predict(model.with_settings(settings), validation, images)
        seconds = (time.perf_counter() - started) / sum(len(truth) for truth, _ in stacks)
        for median in MEDIANS:
            filtered = [(truth, np.stack([*median_along_z(iter(maps), median)])) for truth, maps in stacks]
            threshold = best(filtered)
            for smallest in SMALLEST if median == model.settings.median else (0,):
                masks = [(truth, without_specks(maps >= threshold, smallest)) for truth, maps in filtered]
                counts = sum(metrics.count(truth, mask).sum(0) for truth, mask in masks)
                row = {"orthoplanes": orthoplanes, "tta": tta, "median": median}
                row |= {"smallest": smallest, "threshold": threshold}
                rows.append(row | {"dice": round(float(metrics.dice(np.asarray(counts))), 4), "seconds": seconds})
    options.into.parent.mkdir(exist_ok=True)
    files.write_json(options.into, rows)
    print("| orthoplanes | tta | median along z | smallest object | validation Dice | seconds a slice |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cells = (row["orthoplanes"], row["tta"], row["median"], row["smallest"])
        print("|", *(f"{cell} |" for cell in cells), f"{row['dice']:.4f} | {row['seconds']:.2f} |")


if __name__ == "__main__":
    main()

"""How many augmented patches a second could be fed to a training?

A lap cuts a stack into patches and augments as many as it got, in batches of 8; nothing is trained. Each contender
makes batches with as many threads as its training.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks import baselines
from benchmarks.measure import Candidate, Lap, alternate
from benchmarks.table import Row, compare
from benchmarks.train_step import BATCH, LIKE_THE_FIRST_BASELINE, SIZE, recipe

COMMAND = "python -m benchmarks patches_and_augmentation"
STACK = (33, 512, 512)  # pixels of the phantom, of which a slice validates
PATCHES = 128  # of the 32 slices that train


def rows(rounds: int) -> list[Row]:
    from mitoflow.data.phantom import write_phantom

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_phantom(data, train=STACK, test=(1, 64, 64))
        contenders: dict[str, Candidate] = {
            "mitoflow": partial(mitoflow, data),
            "the first baseline": partial(first_baseline, data),
        }
        series = alternate(contenders, rounds)
    baseline = "`patchify` and two `ImageDataGenerator`s"
    return [
        compare("patch store and augmentation alone", "patches/s", series, "the first baseline", baseline, 5, COMMAND)
    ]


def mitoflow(data: Path, lap: Lap) -> None:
    import cv2

    from mitoflow.config.params import Patch
    from mitoflow.data.conventions import Conventions
    from mitoflow.data.cutting import write_store
    from mitoflow.data.pairs import read_pairs
    from mitoflow.training.batches import TrainPatches

    settings = Patch(size=SIZE, step=SIZE, validation_fraction=1 / STACK[0], gap=0, normalization="range")
    cv2.setNumThreads(1)  # as a fit does
    training_recipe = recipe(**LIKE_THE_FIRST_BASELINE, patches_per_epoch=PATCHES)
    while True:
        pairs = read_pairs(data / "train")
        store = write_store(data / "patches", pairs, settings, {"phantom": Conventions(8, "nonzero")})
        batches = TrainPatches(store.train, store.bit_depth, training_recipe)
        with ThreadPoolExecutor(batches.workers) as threads:
            for _ in threads.map(batches.__getitem__, range(len(batches))):
                pass
        lap(PATCHES)


def first_baseline(data: Path, lap: Lap) -> None:
    import numpy as np
    import tifffile

    while True:
        images, masks = (
            baselines.cut(tifffile.imread(data / "train" / "phantom" / kind / "phantom.tif")[:-1], SIZE)
            for kind in ("images", "masks")
        )
        batches = baselines.augmented(images, np.round(masks), BATCH)
        for _ in range(PATCHES // BATCH):
            next(batches)
        lap(PATCHES)

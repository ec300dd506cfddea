"""How many patches a second does training take in?

Batches are of 8 patches of 256 x 256. Ours is `mitoflow.training.fitting.fit` with a preset, batches made while it
trains, and a validation (of one patch) after every lap: once with the plain U-Net of base width 16 and depth 4 that
Keras and PyTorch train as well, and once with the network of the preset. That one is compared by the time to the same
Dice, for which Keras and PyTorch are taken to need as many patches as mitoflow with the plain U-Net.
"""

from __future__ import annotations

import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import baselines
from benchmarks.measure import Candidate, Lap, Series, alternate
from benchmarks.table import Row, compare

if TYPE_CHECKING:
    from mitoflow.config.params import Recipe

COMMAND = "python -m benchmarks train_step"
BATCH, SIZE = 8, 256
STEPS = 32  # of a lap, which is an epoch: presets have 100 to 250
STACK = (137, SIZE, SIZE)  # pixels of the phantom: 136 slices train, whole batches, about as many as EPFL has
PRESET = "epfl-quick"
#: Patches with which this preset reaches a Dice of 0.90 on EPFL, with its network and with the plain U-Net; see
#: docs/quality.md. Both are more than the Dice of the first baseline takes.
REACHING, REACHING_PLAIN = 4_800, 3_200

#: Changes to the preset that give it the plain U-Net and one input channel, and augment as the first baseline does.
LIKE_THE_FIRST_BASELINE = {
    "network": "unet",
    "orthoplanes": False,
    "context": 0,
    "affine_fraction": 1.0,
    "augment_strength": 1.0,
    "intensity_strength": 0.0,
}

# The first baseline: width 64, float32, 25 epochs of the 1,980 patches of its training volume.
BASELINE_WIDTH, BASELINE_PATCHES = 64, 25 * 1_980
FIRST_BASELINE = "its own model (31 M parameters) and loop, 25 epochs"


def rows(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        patches = write_patches(Path(folder))
        same: dict[str, Candidate] = {
            "mitoflow": partial(mitoflow, patches, LIKE_THE_FIRST_BASELINE),
            "the preset": partial(mitoflow, patches, {}),
            "Keras": partial(keras, 16, STEPS),
            "PyTorch": pytorch,
        }
        measured = alternate(same, rounds)
        # By themselves: the first baseline needs the memory that the others would hold.
        by_itself: dict[str, Candidate] = {
            "mitoflow": partial(mitoflow, patches, {}),
            "the first baseline": partial(keras, BASELINE_WIDTH, 1),
        }
        own_pace = alternate(by_itself, rounds)
    preset_and_plain = {"mitoflow": REACHING, "Keras": REACHING_PLAIN, "PyTorch": REACHING_PLAIN}
    to_dice = _trainings({**measured, "mitoflow": measured["the preset"]}, preset_and_plain)
    to_its_dice = _trainings(own_pace, {"mitoflow": REACHING, "the first baseline": BASELINE_PATCHES})
    keras_fit, torch_loop = "Keras `fit`, float32, `ImageDataGenerator`", "PyTorch bf16, channels_last, no augmentation"
    same_unet, dice = "training, the same U-Net", "training to Dice 0.90, the network of the preset"
    own = "training to the Dice of the first baseline"
    return [
        compare(same_unet, "patches/s", measured, "Keras", keras_fit, 4, COMMAND),
        compare(same_unet, "patches/s", measured, "PyTorch", torch_loop, 1.3, COMMAND),
        compare(dice, "an hour", to_dice, "Keras", f"{keras_fit}, plain U-Net", 4, COMMAND),
        compare(dice, "an hour", to_dice, "PyTorch", f"{torch_loop}, plain U-Net", 1.6, COMMAND),
        compare(own, "an hour", to_its_dice, "the first baseline", FIRST_BASELINE, 200, COMMAND),
    ]


def write_patches(folder: Path) -> Path:
    """Draw a phantom and write its patch store."""
    from mitoflow.config.params import Patch
    from mitoflow.data.conventions import Conventions
    from mitoflow.data.cutting import write_store
    from mitoflow.data.pairs import read_pairs
    from mitoflow.data.phantom import write_phantom

    write_phantom(folder / "data", train=STACK, test=(1, 64, 64))
    settings = Patch(size=SIZE, step=SIZE, validation_fraction=1 / STACK[0], gap=0, normalization="range")
    pairs = read_pairs(folder / "data" / "train")
    write_store(folder / "patches", pairs, settings, {"phantom": Conventions(8, "nonzero")})
    return folder / "patches"


def recipe(**changes: Any) -> Recipe:
    """Return the recipe of the preset, which trains for longer than the benchmark runs."""
    from mitoflow.config import presets

    # Not far longer: the learning rates of all steps are in memory.
    longer = {"epochs": 1_000, "patience": 1_000, "patches_per_epoch": STEPS * BATCH, "batch_size": BATCH}
    return presets.load(PRESET).starting_recipe().replace(**longer | changes)


def mitoflow(patches: Path, changes: dict[str, Any], lap: Lap) -> None:
    from keras.callbacks import LambdaCallback

    from mitoflow.data.patches import PatchStore
    from mitoflow.training import fitting

    lapping = LambdaCallback(on_epoch_end=lambda epoch, logs: lap(STEPS * BATCH))
    fitting.fit(PatchStore.open(patches), recipe(**changes), callbacks=[lapping])


def keras(base_width: int, steps: int, lap: Lap) -> None:
    import keras
    import numpy as np

    from mitoflow.data.phantom import make_phantom

    # A whole number of batches, which is what a lap counts: the generator ends a pass with what is left.
    images, masks = (baselines.cut(each[:-1], SIZE) for each in make_phantom(STACK, seed=0))
    model = baselines.keras_unet(base_width)
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    model.fit(
        baselines.augmented(images, np.round(masks), BATCH),
        steps_per_epoch=steps,
        epochs=1_000_000,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: lap(steps * BATCH))],
        verbose=0,
    )


def pytorch(lap: Lap) -> None:
    import torch

    from mitoflow.data.phantom import make_phantom

    images, masks = (torch.from_numpy(baselines.cut(each, SIZE)).permute(0, 3, 1, 2) for each in make_phantom(STACK, 0))
    model = baselines.torch_unet(16).train()
    optimizer = torch.optim.AdamW(model.parameters())
    loss = torch.nn.BCEWithLogitsLoss()
    while True:
        for rows in torch.randperm(STEPS * BATCH).remainder(len(images)).split(BATCH):
            image = images[rows].contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(image)
            loss(logits.float(), masks[rows]).backward()
            optimizer.step()
        lap(STEPS * BATCH)


def _trainings(series: dict[str, Series], needed: dict[str, int]) -> dict[str, Series]:
    """Turn the patches of each contender into trainings an hour, of as many patches as it needs."""
    return {
        name: dataclasses.replace(each, work=each.work / needed[name] * 3600)
        for name, each in series.items()
        if name in needed
    }

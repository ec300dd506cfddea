"""BiaPy: a YAML file and the command `biapy`.

The values are those of BiaPy's template for semantic segmentation in two dimensions: an attention U-Net, patches of 256
pixels, random rotations and flips, AdamW at a constant rate of 0.0001, a tenth of the patches validates, and the epoch
with the best validation loss predicts. Two things differ: the number of epochs, and that BiaPy counts its worker
processes itself, as it does by default, in place of the template's five.

The rate is constant, so fewer epochs need no other schedule. A run of `MEASURED_EPOCHS` epochs, which does not count,
gives the seconds to the end of the first and of each further one; the training has as many epochs as fit the budget.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.peers import environments
from benchmarks.peers.commands import Commands, configuration_lines, epochs_within
from benchmarks.peers.parts import Parts, read_slices, slice_names, write_slices
from benchmarks.peers.work import Found, Work

MEASURED_EPOCHS = 3
CONFIGURATION = """\
SYSTEM:
  SEED: {seed}
PROBLEM:
  TYPE: SEMANTIC_SEG
  NDIM: 2D
DATA:
  PATCH_SIZE: (256, 256, 1)
  TRAIN:
    PATH: {folder}/train/images
    GT_PATH: {folder}/train/masks
    IN_MEMORY: True
  VAL:
    SPLIT_TRAIN: 0.1
  TEST:
    PATH: {folder}/test/images
    IN_MEMORY: True
    LOAD_GT: False
    PADDING: (32, 32)
AUGMENTOR:
  ENABLE: True
  RANDOM_ROT: True
  VFLIP: True
  HFLIP: True
MODEL:
  ARCHITECTURE: attention_unet
  FEATURE_MAPS: [16, 32, 64, 128, 256]
  LOAD_CHECKPOINT: {predicts}
TRAIN:
  ENABLE: {trains}
  OPTIMIZER: ADAMW
  LR: 1.E-4
  BATCH_SIZE: 6
  EPOCHS: {epochs}
  PATIENCE: 50
TEST:
  ENABLE: {predicts}
  AUGMENTATION: False
  FULL_IMG: False
"""


def run(work: Work) -> Found:
    """Train BiaPy on the slices and predict the others.

    Raises
    ------
    CannotRunError
        It cannot be installed or run.
    """
    program = environments.programs(work.environments, "biapy") / "biapy"
    lay_out(work.folder, work.parts)
    commands = Commands(work.folder, {"PYTHONPATH": ""})

    def job(name: str, epochs: int, *, trains: bool) -> list[float]:
        text = configuration(work, epochs, trains=trains)
        file = work.folder / f"{name}-{'train' if trains else 'predict'}.yaml"
        file.write_text(text, encoding="utf-8")
        arguments = ("--config", file, "--result_dir", work.folder / "jobs", "--name", name, "--run_id", "1")
        before = epochs_logged()
        return commands.run(program, *arguments, progress=lambda: epochs_logged() - before)

    def epochs_logged() -> int:
        return commands.log.read_bytes().count(b"[Time] ")

    epochs = epochs_within(work.seconds, job("measured", MEASURED_EPOCHS, trains=True)[:-1])
    *reached, training = job("budget", epochs, trains=True)
    prediction = job("budget", epochs, trains=False)[-1]
    masks = work.folder / "jobs/budget/results/budget_1/per_image_binarized"
    return Found(
        masks=read_slices([masks / f"{name}.tif" for name in slice_names(len(work.parts.test_images))]),
        version=environments.pinned("biapy", "biapy"),
        length=f"{len(reached)} of {epochs} epochs",
        training_seconds=training,
        prediction_seconds=prediction,
        peak_mib=commands.peak_mib,
        lines=configuration_lines(configuration(work, epochs, trains=True)),
    )


def lay_out(folder: Path, parts: Parts) -> None:
    """Write the slices as BiaPy reads them: a folder of images and one of masks, 0 and 1, with the same names."""
    write_slices(folder / "train/images", parts.images, ".tif")
    write_slices(folder / "train/masks", parts.masks.astype(np.uint8), ".tif")
    write_slices(folder / "test/images", parts.test_images, ".tif")


def configuration(work: Work, epochs: int, *, trains: bool) -> str:
    """Return the YAML file that trains, or the one that predicts with what was trained."""
    return CONFIGURATION.format(folder=work.folder, seed=work.seed, epochs=epochs, trains=trains, predicts=not trains)

"""nnU-Net v2: a dataset of slices, planned and preprocessed by its own commands.

The configuration is `2d` with the plans that `nnUNetv2_plan_and_preprocess` makes by default. Each slice is a case, and
all slices train (fold `all`), so that nothing that is labelled is left out; nnU-Net's cross-validation would train five
networks on four fifths each. Prediction is `nnUNetv2_predict` with its defaults: mirrored tiles are averaged.

By default a training has 1,000 epochs of 250 batches, of which a budget of minutes on two cores holds less than one. So
nnU-Net's trainer is ended by the clock, with its schedule fitted to it: `timed_trainer.py`, which nnU-Net finds by the
variable `nnUNet_extTrainer`. It takes no seed: the one given here decides the first weights, and the crops differ from
run to run even so. The time that its planning and preprocessing take is not part of the budget.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np

from benchmarks.peers import environments
from benchmarks.peers.commands import Commands, configuration_lines
from benchmarks.peers.parts import Parts, read_slices, slice_names, write_slices
from benchmarks.peers.work import Found, Work

DATASET = "Dataset001_mitochondria"
TRAINER = Path(__file__).with_name("timed_trainer.py")


def run(work: Work) -> Found:
    """Train nnU-Net on the slices and predict the others.

    Raises
    ------
    CannotRunError
        It cannot be installed or run.
    """
    programs = environments.programs(work.environments, "nnunet")
    description = lay_out(work.folder, work.parts)
    (work.folder / "trainers").mkdir()
    shutil.copy(TRAINER, work.folder / "trainers")
    folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
    folders["nnUNet_extTrainer"] = "trainers"
    variables = {name: str(work.folder / folder) for name, folder in folders.items()}
    commands = Commands(work.folder, {"PYTHONPATH": "", "PEERS_SEED": str(work.seed), **variables})

    plan = ("-d", "1", "-c", "2d", "-np", "2", "--verify_dataset_integrity")
    commands.run(programs / "nnUNetv2_plan_and_preprocess", *plan)
    which = ("-tr", "TimedTrainer", "-device", "cpu")
    budget = {"PEERS_BEGIN": str(time.time()), "PEERS_SECONDS": str(work.seconds)}
    *_, training = commands.run(programs / "nnUNetv2_train", "1", "2d", "all", *which, **budget)
    images, masks = work.folder / "raw" / DATASET / "imagesTs", work.folder / "masks"
    of_fold = ("-d", "1", "-c", "2d", "-f", "all", *which)
    *_, prediction = commands.run(programs / "nnUNetv2_predict", "-i", images, "-o", masks, *of_fold)
    said = re.findall(r"TimedTrainer: (.*)", commands.log.read_text(encoding="utf-8", errors="replace"))
    return Found(
        masks=read_slices([masks / f"{name}.png" for name in slice_names(len(work.parts.test_images))]),
        version=environments.pinned("nnunet", "nnunetv2"),
        length=said[-1],
        training_seconds=training,
        prediction_seconds=prediction,
        peak_mib=commands.peak_mib,
        lines=configuration_lines(description),
    )


def lay_out(folder: Path, parts: Parts) -> str:
    """Write the slices as nnU-Net reads them, with `dataset.json`; return what that says."""
    raw = folder / "raw" / DATASET
    write_slices(raw / "imagesTr", parts.images, "_0000.png")  # the number is that of the channel
    write_slices(raw / "labelsTr", parts.masks.astype(np.uint8), ".png")
    write_slices(raw / "imagesTs", parts.test_images, "_0000.png")
    description = {
        "channel_names": {"0": "EM"},
        "labels": {"background": 0, "mitochondrion": 1},
        "numTraining": len(parts.images),
        "file_ending": ".png",
    }
    text = json.dumps(description, indent=1)
    (raw / "dataset.json").write_text(text + "\n", encoding="utf-8")
    return text

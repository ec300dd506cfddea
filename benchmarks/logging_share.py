"""Which share of the time of a training does MLflow take?

One contender reports a whole training of the preset to MLflow, with nothing between its epochs, and waits until
MLflow has everything; the other trains. In a training the sending happens beside the work, so the share is an upper
bound.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measure import Candidate, Lap, alternate, ratio
from benchmarks.table import Row, share
from benchmarks.train_step import PRESET, mitoflow, write_patches

COMMAND = "python -m benchmarks logging_share"


def rows(rounds: int) -> list[Row]:
    from mitoflow.config import presets

    train = presets.load(PRESET).train
    epochs, patches = train.epochs, train.epochs * train.patches_per_epoch
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Candidate] = {
            "training": partial(mitoflow, write_patches(Path(folder)), {}),
            "logging": partial(log, Path(folder), epochs),
        }
        series = alternate(contenders, rounds)
    training = series["training"]
    trainings = dataclasses.replace(training, work=training.work / patches)
    logged = ratio(trainings, series["logging"])
    return [share("MLflow's share of training time", {**series, "training": trainings}, logged, 0.01, COMMAND)]


def log(folder: Path, epochs: int, lap: Lap) -> None:
    """Report what the stage `train` reports."""
    os.chdir(folder)  # where the journal and the store go
    from mitoflow.config.presets import PRESETS
    from mitoflow.tracking import runs

    while True:
        with runs.start("train", "train") as run:
            run.params({"recipe": {f"key{i}": i for i in range(20)}})
            for side in ("training", "validation"):
                run.dataset("phantom", "patches", "0" * 32, side, {"patches": 1980, "size": 256, "bit_depth": 8})
            for epoch in range(epochs):
                run.metrics({"loss": 0.1, "dice": 0.9, "val_loss": 0.1, "val_dice": 0.9}, step=epoch)
            run.artifact(PRESETS)
            if not run.flush():
                raise RuntimeError("MLflow did not take everything")
        lap(1)

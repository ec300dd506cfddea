"""Studies whose trials take no time; workers import this, so it imports little."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from mitoflow.config.params import Depths, LearningRates, Strengths, Tune
from mitoflow.tuning import optuna_study

SETTINGS = Tune(
    trials=6,
    epochs=3,
    patches_per_epoch=1,
    seed=1,
    learning_rate=LearningRates(low=1e-4, high=1e-2),
    depth=Depths(low=2, high=4),
    augment_strength=Strengths(low=0.0, high=1.0),
)


class Recorder:
    """A callback of the study that keeps what it is called with."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def trial_started(self, number: int, values: dict[str, Any]) -> None:
        self.lines.append(("began", number))

    def epoch_ended(self, number: int, epoch: int, logs: Mapping[str, float]) -> None:
        self.lines.append(("epoch", number, epoch))

    def trial_pruned(self, number: int, epoch: int) -> None:
        self.lines.append(("pruned", number, epoch))

    def trial_ended(self, number: int) -> None:
        self.lines.append(("ended", number))


def opened(file: Path, recorded: str | None = None) -> optuna.Study:
    return optuna_study.open_study(f"sqlite:///{file}", "s", recorded)


def search(study: optuna.Study, settings: Tune = SETTINGS) -> optuna_study.Search:
    return optuna_study.Search(study, settings, Recorder())


def score(name: str, values: dict[str, Any], report: optuna_study.Report) -> float:
    """Return a score that is best near the middle of the ranges, reported over three epochs."""
    missed = abs(values["augment_strength"] - 0.5) + abs(values["depth"] - 3) / 4 + abs(values["learning_rate"] - 0.001)
    dice = 1 - missed
    for epoch in range(3):
        report(epoch, {"val_dice": dice * (epoch + 1) / 3})
    return dice


def slowly(folder: Path, name: str, values: dict[str, Any], report: optuna_study.Report) -> float:
    """Score slowly, and write a file for each epoch, whose name has the trial and the process."""

    def slow_report(epoch: int, logs: Mapping[str, float]) -> None:
        time.sleep(0.1)
        (folder / f"{name}, epoch {epoch}, process {os.getpid()}").touch()
        report(epoch, logs)

    return score(name, values, slow_report)


def endless(folder: Path, name: str, values: dict[str, Any], report: optuna_study.Report) -> float:
    """Report epochs until the trial is stopped."""
    (folder / f"{name} began").touch()
    try:
        for epoch in itertools.count():
            report(epoch, {"val_dice": 0.1})
    finally:
        (folder / f"{name} ended").touch()
    return 0.0

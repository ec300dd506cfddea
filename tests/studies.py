"""Studies whose trials take no time; workers import this, so it imports little."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna

from mitoflow.config.params import SAMPLED, Depths, LearningRates, Strengths, Tune
from mitoflow.tuning import halving, optuna_study

SETTINGS = Tune(
    trials=6,
    reduction=2,
    budget=720,
    seed=1,
    learning_rate=LearningRates(low=1e-4, start=0.002, high=1e-2),
    depth=Depths(low=2, start=4, high=4),
    augment_strength=Strengths(low=0.0, start=0.7, high=1.0),
)


class Recorder:
    """A callback of the study that keeps what it is called with."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def trial_started(self, number: int, values: dict[str, Any]) -> None:
        self.lines.append(("started", number))

    def rung_ended(self, number: int, crops: int, fitted: halving.Fitted) -> None:
        self.lines.append(("rung", number, crops, fitted.score))

    def trial_ended(self, number: int, pruned: str | None) -> None:
        self.lines.append(("ended", number, pruned))


def opened(file: Path, recorded: str | None = None) -> optuna.Study:
    return optuna_study.open_study(f"sqlite:///{file}", "s", recorded)


def search(study: optuna.Study, settings: Tune = SETTINGS) -> halving.Search:
    return halving.Search(study, settings, SAMPLED, settings.budget, Recorder())


def score(number: int, values: dict[str, Any], crops: Sequence[int], check: Callable[[], None]) -> halving.History:
    """Return a score that is best near the middle of the ranges, and grows with the crops."""
    missed = abs(values["augment_strength"] - 0.5) + abs(values["depth"] - 3) / 4 + abs(values["learning_rate"] - 0.001)
    check()
    return [{"val_dice": (2 - missed) * sum(crops) / 1000}]


class Interrupted(BaseException):
    """Ends a process that fits trials, as a signal does."""


def interrupted_after(fits: int) -> halving.Objective:
    """Return the objective `score`, which is interrupted in the fit after so many."""
    left = [fits]

    def fit(*arguments: Any) -> halving.History:
        if not left[0]:
            raise Interrupted
        left[0] -= 1
        return score(*arguments)

    return fit


def outcome(study: optuna.Study) -> list[tuple[Any, ...]]:
    """Return what a study found: the state, the values and the scores of each trial."""
    return [(trial.state.name, trial.params, trial.intermediate_values, trial.value) for trial in study.get_trials()]


def slowly(
    folder: Path, number: int, values: dict[str, Any], crops: Sequence[int], check: Callable[[], None]
) -> halving.History:
    """Score slowly, and write a file for each fit, whose name has the trial and the process."""
    (folder / f"trial {number}, {sum(crops)} crops, process {os.getpid()}").touch()
    time.sleep(0.3)
    return score(number, values, crops, check)


def endless(
    folder: Path, number: int, values: dict[str, Any], crops: Sequence[int], check: Callable[[], None]
) -> halving.History:
    """Fit until the trial is stopped."""
    (folder / f"trial {number} started").touch()
    try:
        for _ in itertools.count():
            time.sleep(0.1)
            check()
    finally:
        (folder / f"trial {number} ended").touch()
    return []

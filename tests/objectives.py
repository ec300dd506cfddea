"""What trials of a study do in tests; workers import it, so it imports little."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Report = Callable[[int, Mapping[str, float]], None]


def score(name: str, values: dict[str, Any], report: Report) -> float:
    """Best near the middle of the ranges; reported over three epochs."""
    missed = abs(values["augment_strength"] - 0.5) + abs(values["depth"] - 3) / 4 + abs(values["learning_rate"] - 0.001)
    dice = 1 - missed
    for epoch in range(3):
        report(epoch, {"val_dice": dice * (epoch + 1) / 3})
    return dice


def slowly(folder: Path, name: str, values: dict[str, Any], report: Report) -> float:
    """Leave a file for each epoch, which tells what this process fits."""

    def slow_report(epoch: int, logs: Mapping[str, float]) -> None:
        time.sleep(0.1)
        (folder / f"{name}, epoch {epoch}, process {os.getpid()}").touch()
        report(epoch, logs)

    return score(name, values, slow_report)


def endless(folder: Path, name: str, values: dict[str, Any], report: Report) -> float:
    """Go on until nobody wants the trial any more."""
    (folder / f"{name} began").touch()
    try:
        for epoch in itertools.count():
            report(epoch, {"val_dice": 0.1})
    finally:
        (folder / f"{name} ended").touch()
    return 0.0

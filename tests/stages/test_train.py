"""The curves of a training while it runs."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from mitoflow.stages.paths import CURVES
from mitoflow.stages.train import Curves
from mitoflow.tracking import runs, store

pytestmark = pytest.mark.slow


def logs(dice: float, **of_sets: float) -> dict[str, float]:
    return {"dice": dice, "loss": 1 - dice, "val_dice": dice / 2, "val_loss": 1.0, **of_sets}


def epochs() -> list[tuple[str, str]]:
    with CURVES.open(encoding="utf-8") as stream:
        return [(row["epoch"], row["dice"]) for row in csv.DictReader(stream)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Run:
    for name in ("DVC_ROOT", *(name for name in os.environ if name.startswith("MLFLOW_"))):
        if name not in store.DEFAULTS:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return runs.start("train", "train")


def test_curves_grow_and_a_resumed_training_keeps_them(run: runs.Run) -> None:
    with run:
        curves = Curves(run, Path("kept.json"))
        for epoch in range(3):
            curves.epoch_ended(epoch, logs(epoch / 10, val_dice_epfl=0.5))
            assert len(epochs()) == epoch + 1
        assert CURVES.read_text(encoding="utf-8").startswith("epoch,loss,val_loss,dice,val_dice,val_dice_epfl\n1,1.0,")
        CURVES.unlink()  # as DVC does before it runs the stage again
        resumed = Curves(run, Path("kept.json"))
        resumed.epoch_ended(2, logs(0.7, val_dice_epfl=0.5))  # the epoch during which it was killed
        resumed.epoch_ended(3, logs(0.8, val_dice_epfl=0.5))
    assert epochs() == [("1", "0.0"), ("2", "0.1"), ("3", "0.7"), ("4", "0.8")]


def test_damaged_epochs_do_not_stop_a_training(run: runs.Run) -> None:
    Path("kept.json").write_text("{", encoding="utf-8")
    with run:
        Curves(run, Path("kept.json")).epoch_ended(0, logs(0.5))
    assert epochs() == [("1", "0.5")]

"""Runs are called by what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mitoflow.core import files
from mitoflow.tracking.naming import of_training, run_name, with_version


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout in which training was run once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    recorded = {"data.name": "epfl", "train": {"depth": 3, "loss": "bce", "augmentation": {"share": 0.5}}}
    files.write_yaml(Path("dvc.lock"), {"stages": {"train": {"params": {"params.yaml": recorded}}}})
    write(depth=3)


def write(data: str = "epfl", **changed: object) -> None:
    train = {"depth": 3, "loss": "bce", "augmentation": {"share": 0.5}, **changed}
    files.write_yaml(Path("params.yaml"), {"data": {"name": data}, "train": train})


def test_nothing_changed() -> None:
    assert run_name("train", "epfl") == "train epfl"
    assert run_name("patch", "epfl") == "patch epfl"  # which never ran


def test_values_that_changed_since_the_last_run() -> None:
    write(depth=4, augmentation={"share": 0.1})
    assert run_name("train", "epfl") == "train epfl: depth 4, augmentation.share 0.1"
    write(depth=4, loss="bce_dice", augmentation={"share": 0.1}, other=1)
    assert run_name("train", "epfl") == "train epfl: depth 4, loss bce_dice, augmentation.share 0.1, 1 more"


def test_other_data_are_named_once() -> None:
    write("vnc", depth=4)
    assert run_name("train", "vnc") == "train vnc: depth 4"


def test_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "slower")
    write(depth=4)
    assert run_name("train", "epfl") == "train epfl (slower): depth 4"


@pytest.mark.parametrize(
    ("name", "training", "expected"),
    [
        ("evaluate epfl", "train epfl", "evaluate epfl"),
        ("evaluate epfl (slower)", "train epfl (slower): depth 4", "evaluate epfl (slower): depth 4"),
        ("evaluate epfl: tta 8", "train epfl: depth 4, loss bce", "evaluate epfl: depth 4, loss bce, tta 8"),
        ("evaluate epfl (views): tta 8", "train epfl: depth 4", "evaluate epfl (views) of train epfl: depth 4, tta 8"),
        ("evaluate epfl+vnc", "my best", "evaluate epfl+vnc of my best"),
    ],
)
def test_an_evaluation_has_the_values_of_its_training(name: str, training: str, expected: str) -> None:
    assert of_training(name, training) == expected


def test_an_evaluation_has_the_version_that_it_judges() -> None:
    assert with_version("evaluate epfl: tta 8", 3) == "evaluate epfl: tta 8, version 3"
    assert with_version("evaluate epfl: tta 8, version 3", 12) == "evaluate epfl: tta 8, version 12"

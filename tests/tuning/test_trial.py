"""A trial on another machine, and the files that it needs there."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from mitoflow.config.params import Patch
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.pairs import read_pairs
from mitoflow.errors import InputError
from mitoflow.tuning.trial import Trial

SHARED = {
    "affine_fraction": 0.0,
    "intensity_strength": 0.0,
    "foreground_fraction": 0.5,
    "orthoplanes": False,
    "context": 0,
    "context_step": 1,
    "context_dropout": 0.0,
    "base_width": 2,
    "loss": "bce",
    "precision": "float32",
    "batch_size": 4,
    "epochs": 2,
    "patches_per_epoch": 4,
    "patience": 2,
    "seed": 1,
}
VALUES = {"learning_rate": 0.001, "depth": 1, "augment_strength": 0.5}


@pytest.fixture
def trial(small_dataset: Path, tmp_path: Path) -> Trial:
    pairs = read_pairs(small_dataset / "train")
    settings = Patch(size=64, step=64, validation_fraction=0.1, gap=2)
    write_store(tmp_path / "patches", pairs, settings, {"phantom": Conventions(8, "nonzero")})
    return Trial.of(tmp_path / "patches", SHARED)


@pytest.mark.slow
def test_a_trial_on_a_worker_gives_the_same_score(trial: Trial) -> None:
    reported: list[tuple[int, dict[str, Any]]] = []
    dice = trial("trial 1", VALUES, lambda epoch, logs: reported.append((epoch, logs)))
    assert [epoch for epoch, _ in reported] == [0, 1]
    assert dice == max(logs["val_dice"] for _, logs in reported)
    assert pickle.loads(pickle.dumps(trial))("trial 1", VALUES, lambda epoch, logs: None) == dice


def test_patches_that_a_worker_does_not_see_are_one_line(trial: Trial) -> None:
    shutil.rmtree(trial.patches)
    with pytest.raises(InputError, match="patches: found no such file on .*, expected what all workers see"):
        trial("trial 1", VALUES, lambda epoch, logs: None)


@pytest.mark.parametrize(("which", "where"), [(0, "patches"), (1, "mitoflow")])
def test_other_patches_and_other_code_are_one_line(trial: Trial, which: int, where: str) -> None:
    digests = list(trial.digests)
    digests[which] = "0123456789abcdef"
    other = dataclasses.replace(trial, digests=tuple(digests))
    with pytest.raises(InputError, match=f"{where}: found .* expected 01234567 of the study; use the same files"):
        other("trial 1", VALUES, lambda epoch, logs: None)

"""A trial on another machine, and the files that it needs there."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from mitoflow.config.params import Patch
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.pairs import read_pairs
from mitoflow.errors import InputError
from mitoflow.models import unet
from mitoflow.tuning import halving
from mitoflow.tuning.trial import Trial

SHARED = {
    "affine_fraction": 0.0,
    "intensity_strength": 0.0,
    "foreground_fraction": 0.5,
    "orthoplanes": False,
    "context": 0,
    "context_step": 1,
    "context_dropout": 0.0,
    "network": "unet",
    "base_width": 2,
    "loss": "bce",
    "precision": "float32",
    "batch_size": 4,
    "seed": 1,
}
VALUES = {"learning_rate": 0.001, "depth": 1, "augment_strength": 0.5}


@pytest.fixture
def trial(small_dataset: Path, tmp_path: Path) -> Trial:
    pairs = read_pairs(small_dataset / "train")
    settings = Patch(size=64, step=64, validation_fraction=0.1, gap=2)
    write_store(tmp_path / "patches", pairs, settings, {"phantom": Conventions(8, "nonzero")})
    return Trial.of(tmp_path / "patches", SHARED)


def fit(trial: Trial, checkpoints: Path, crops: Sequence[int], number: int = 0) -> list[dict[str, float]]:
    return trial(checkpoints, number, VALUES, crops, lambda: None)


@pytest.mark.slow
def test_a_trial_on_a_worker_gives_the_same_history(trial: Trial, tmp_path: Path) -> None:
    history = fit(trial, tmp_path / "here", (8,))
    assert [0 <= logs["val_dice"] <= 1 for logs in history] == [True]
    assert fit(pickle.loads(pickle.dumps(trial)), tmp_path / "there", (8,)) == history


@pytest.mark.slow
def test_a_promoted_trial_goes_on_from_its_weights(trial: Trial, tmp_path: Path) -> None:
    fit(trial, tmp_path / "one", (8,))
    first = tmp_path / "one/trial-0/rung-0.keras"
    before = first.read_bytes()
    promoted = fit(trial, tmp_path / "one", (8, 16))
    assert first.read_bytes() == before, "the first rung was not fitted again"
    assert fit(trial, tmp_path / "one", (8, 16)) == promoted, "nor the second"
    # Where the weights are elsewhere, both rungs are fitted, and end the same.
    assert fit(trial, tmp_path / "two", (8, 16)) == promoted
    # It starts from them: other weights give another history.
    (tmp_path / "three/trial-0").mkdir(parents=True)
    unet.save_model(unet.build_unet(1, 2), tmp_path / "three/trial-0/rung-0.keras")
    assert fit(trial, tmp_path / "three", (8, 16)) != promoted


@pytest.mark.slow
def test_trials_start_from_a_model_that_is_given(trial: Trial, tmp_path: Path) -> None:
    unet.save_model(unet.build_unet(1, 2), tmp_path / "initial.keras")
    tuned = Trial.of(trial.patches, SHARED, tmp_path / "initial.keras")
    assert tuned.digest != trial.digest
    assert fit(tuned, tmp_path / "tuned", (8,)) != fit(trial, tmp_path / "anew", (8,))


@pytest.mark.slow
def test_a_fit_that_nobody_waits_for_ends_after_the_epoch_and_goes_on_later(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mitoflow.tuning.trial.EPOCH", 8)
    epochs = []

    def check() -> None:
        epochs.append(len(epochs))
        if len(epochs) == 2:
            raise halving.AbandonedError

    with pytest.raises(halving.AbandonedError):
        trial(tmp_path / "one", 0, VALUES, (24,), check)
    assert [file.name for file in (tmp_path / "one/trial-0/rung-0").iterdir()] == ["epoch-0.npz"]
    assert fit(trial, tmp_path / "one", (24,)) == fit(trial, tmp_path / "two", (24,))


def test_a_rung_has_a_schedule_of_its_length_and_crops_of_its_own(trial: Trial) -> None:
    short, long = trial.recipe(VALUES, 400), trial.recipe(VALUES, 2400, rung=1)
    assert (short.epochs, short.patches_per_epoch, short.patience) == (1, 400, 1)
    assert (long.epochs, long.patches_per_epoch, long.patience) == (3, 800, 3)
    assert (short.seed, long.seed) == (1, 2)
    assert (long.learning_rate, long.depth, long.base_width) == (0.001, 1, 2)


@pytest.mark.slow
def test_minutes_become_crops(trial: Trial) -> None:
    few, many = (trial.crops_in(minutes, VALUES) for minutes in (1, 60))
    assert 100 < few < many


def test_patches_that_a_worker_does_not_see_are_one_line(trial: Trial, tmp_path: Path) -> None:
    shutil.rmtree(trial.patches)
    with pytest.raises(InputError, match="patches: found no such file on .*, expected what all workers see"):
        fit(trial, tmp_path / "checkpoints", (8,))


@pytest.mark.parametrize(("which", "where"), [(0, "patches"), (1, "mitoflow")])
def test_other_patches_and_other_code_are_one_line(trial: Trial, tmp_path: Path, which: int, where: str) -> None:
    digests = list(trial.digests)
    digests[which] = "0123456789abcdef"
    other = dataclasses.replace(trial, digests=tuple(digests))
    with pytest.raises(InputError, match=f"{where}: found .* expected 01234567 of the study; use the same files"):
        fit(other, tmp_path / "checkpoints", (8,))

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from keras.callbacks import Callback, LambdaCallback

from mitoflow.core import process
from mitoflow.data.patches import PatchStore
from mitoflow.training import fitting
from mitoflow.training.batches import ValidationPatches
from mitoflow.training.callbacks import Logs, best_epoch

from .conftest import RECIPE

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_a_resumed_fit_ends_as_an_undisturbed_one(
    store: PatchStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    undisturbed = fitting.fit(store, RECIPE)

    def cut_off(epoch: int, logs: Logs) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitting.fit(store, RECIPE, checkpoints=tmp_path, callbacks=[LambdaCallback(on_epoch_end=cut_off)])
    seen: list[int] = []
    watching = LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    resumed = fitting.fit(store, RECIPE, checkpoints=tmp_path, callbacks=[watching])
    assert seen == [1, 2]
    assert resumed.history == undisturbed.history
    for mine, theirs in zip(resumed.model.get_weights(), undisturbed.model.get_weights(), strict=True):
        assert np.array_equal(mine, theirs)
    # Once more: nothing is left to do, and the result is the same.
    finished = fitting.fit(store, RECIPE, checkpoints=tmp_path, callbacks=[watching])
    assert seen == [1, 2]
    assert np.array_equal(finished.model.get_weights()[0], undisturbed.model.get_weights()[0])
    assert "threads" not in capfd.readouterr().err
    made_with = process.threads()
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", str(made_with + 1))
    fitting.fit(store, RECIPE, checkpoints=tmp_path)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "threads" in line]
    assert f"made with {made_with} threads, and the fit goes on with {made_with + 1}: the last bits" in line
    assert line.endswith(f"TF_NUM_INTRAOP_THREADS={made_with} prevents that")


FIT = """
import hashlib, os, sys
from pathlib import Path
os.sched_setaffinity(0, map(int, sys.argv[2:]))
from mitoflow.data.patches import PatchStore
from mitoflow.training import fitting
from tests.training.conftest import RECIPE
model = fitting.fit(PatchStore.open(Path(sys.argv[1])), RECIPE.replace(epochs=2, base_width=8)).model
print(hashlib.sha256(b"".join(weights.tobytes() for weights in model.get_weights())).hexdigest())
"""


def test_threads_and_not_cores_decide_the_last_bits(store: PatchStore) -> None:
    folder = Path(store.train.images.filename).parents[1]
    cores = os.sched_getaffinity(0)
    found = set()
    for allowed in (cores, {min(cores)}):
        command = [sys.executable, "-c", FIT, str(folder), *map(str, allowed)]
        environment = os.environ | {"TF_NUM_INTRAOP_THREADS": "2"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout.splitlines()[-1])
    assert len(found) == 1


@pytest.mark.slow
def test_it_stops_when_validation_gets_no_better(store: PatchStore) -> None:
    recipe = RECIPE.replace(learning_rate=1e-9, epochs=9, patches_per_epoch=4, patience=2)
    history = fitting.fit(store, recipe).history
    assert len(history) < 9
    assert len(history) - 1 - best_epoch(history) == 2


class Watching(Callback):
    """Notes the logs of each epoch, and stops the fit after two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Logs] = []

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self.seen.append(dict(logs or {}))
        self.model.stop_training = epoch == 1


def test_a_callback_sees_what_the_history_says_and_may_stop_the_fit(store: PatchStore) -> None:
    watching = Watching()
    history = fitting.fit(store, RECIPE, callbacks=[watching]).history
    assert len(history) == 2 < RECIPE.epochs
    assert watching.seen == history
    assert all(set(logs) == {"loss", "dice", "val_loss", "val_dice"} for logs in history)


def test_the_model_has_the_weights_of_the_best_epoch(store: PatchStore) -> None:
    weights: list[list[np.ndarray]] = []
    keeping = Callback()
    keeping.on_epoch_end = lambda epoch, logs=None: weights.append(keeping.model.get_weights())
    # At this rate the third epoch is worse than the second one.
    fitted = fitting.fit(store, RECIPE.replace(learning_rate=0.3, epochs=4), callbacks=[keeping])
    assert fitted.best_epoch < len(fitted.history) - 1
    for mine, best, last in zip(fitted.model.get_weights(), weights[fitted.best_epoch], weights[-1], strict=True):
        assert np.array_equal(mine, best)
        assert not np.array_equal(mine, last)


def test_the_mean_over_epochs_is_validated_and_kept_and_training_goes_on_without_it(
    store: PatchStore, tmp_path: Path
) -> None:
    own: list[list[np.ndarray]] = []
    keeping = Callback()
    keeping.on_epoch_end = lambda epoch, logs=None: own.append(keeping.model.get_weights())
    alone = fitting.fit(store, RECIPE, callbacks=[keeping])
    averaged = RECIPE.replace(average_epochs=2)

    def cut_off(epoch: int, logs: Logs) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitting.fit(store, averaged, checkpoints=tmp_path, callbacks=[LambdaCallback(on_epoch_end=cut_off)])
    means: list[list[np.ndarray]] = []
    watching = LambdaCallback(on_epoch_end=lambda epoch, logs: means.append(watching.model.get_weights()))
    fitted = fitting.fit(store, averaged, checkpoints=tmp_path, callbacks=[watching])
    # Each epoch counts half as much as the one after it: 1 : 2 : 4.
    for mean, *epochs in zip(means[-1], *own, strict=True):
        np.testing.assert_allclose(mean, np.average(epochs, axis=0, weights=[1, 2, 4]), rtol=1e-5, atol=1e-6)
    assert [logs["loss"] for logs in fitted.history] == [logs["loss"] for logs in alone.history]
    assert fitted.history[0] == alone.history[0]
    assert fitted.history[2]["val_loss"] != alone.history[2]["val_loss"]


def test_the_best_epoch_is_that_of_the_mean_over_sets(unequal_sets: PatchStore) -> None:
    fitted = fitting.fit(unequal_sets, RECIPE.replace(epochs=2))
    for logs in fitted.history:
        assert set(logs) == {"loss", "dice", "val_loss", "val_dice", "val_dice_phantom", "val_dice_small"}
        assert logs["val_dice"] == pytest.approx((logs["val_dice_phantom"] + logs["val_dice_small"]) / 2, abs=1e-6)
    best = fitted.history[fitted.best_epoch]
    validation = unequal_sets.validation
    for name in ("phantom", "small"):
        counts = np.zeros(4, np.int64)
        for images, masks, weights in ValidationPatches(validation, name, 8, RECIPE):
            logits = fitted.model.predict_on_batch(images)
            counts += metrics_of(masks, logits, weights)
        tp, fp, fn, _ = counts
        assert best[f"val_dice_{name}"] == pytest.approx(2 * tp / max(1, 2 * tp + fp + fn), abs=2e-6)


def metrics_of(masks: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the counts of the pixels that have a weight: true and false positives, false and true negatives."""
    truth, found, counted = masks > 0, logits >= 0, weights > 0
    cells = (truth & found, ~truth & found, truth & ~found, ~(truth | found))
    return np.array([np.sum(cell & counted) for cell in cells])

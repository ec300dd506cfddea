import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest

from mitoflow import metrics, training, volumes
from mitoflow.params import Patch
from mitoflow.patches import PatchStore
from mitoflow.training import Recipe

RECIPE = Recipe(
    learning_rate=0.01,
    depth=2,
    augment_strength=0.5,
    base_width=4,
    loss="bce",
    precision="float32",
    batch_size=4,
    epochs=3,
    patches_per_epoch=24,
    patience=3,
    seed=1,
)


@pytest.fixture(scope="module")
def store(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> PatchStore:
    pairs = volumes.read_pairs(small_dataset / "train")
    settings = Patch(size=64, step=64, validation_fraction=0.25, gap=2)
    folder = tmp_path_factory.mktemp("store") / "patches"
    return PatchStore.write(folder, pairs, settings, mask_rule="nonzero", bit_depth=8)


def test_every_patch_is_seen_before_any_is_seen_again(store: PatchStore) -> None:
    recipe = dataclasses.replace(RECIPE, augment_strength=0.0)
    dataset = training.TrainPatches(store.train, 8, recipe)
    rows = [dataset._row(place) for place in range(2 * len(store.train))]
    assert sorted(rows[: len(store.train)]) == sorted(rows[len(store.train) :]) == list(range(len(store.train)))
    assert rows[: len(store.train)] != rows[len(store.train) :]


def test_a_batch_depends_on_seed_epoch_and_place_alone(store: PatchStore) -> None:
    first, again = (training.TrainPatches(store.train, 8, RECIPE) for _ in range(2))
    first.epoch = again.epoch = 1
    again[0]
    assert np.array_equal(first[2][0], again[2][0])
    again.epoch = 2
    assert not np.array_equal(first[2][0], again[2][0])


def test_it_learns_and_reports_the_dice_of_the_owned_pixels(store: PatchStore) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=12, patches_per_epoch=120, augment_strength=0.0, base_width=8)
    recipe = dataclasses.replace(recipe, patience=12, loss="bce_dice")
    fitted = training.fit(store, recipe)
    assert fitted.history[fitted.best_epoch]["val_dice"] > 0.5
    images, _ = training.batch(store.validation, slice(None), 8)
    predicted = fitted.model.predict_on_batch(images)[..., 0] > 0
    counts = metrics.count(store.validation.masks[:], predicted, store.validation.owned(slice(None))).sum(0)
    assert fitted.history[fitted.best_epoch]["val_dice"] == pytest.approx(float(metrics.dice(counts)), abs=1e-5)


def test_a_resumed_fit_ends_as_an_undisturbed_one(store: PatchStore, tmp_path: Path) -> None:
    undisturbed = training.fit(store, RECIPE)

    def cut_off(epoch: int, logs: training.Logs) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.fit(store, RECIPE, checkpoints=tmp_path, on_epoch=cut_off)
    seen: list[int] = []
    resumed = training.fit(store, RECIPE, checkpoints=tmp_path, on_epoch=lambda epoch, logs: seen.append(epoch))
    assert seen == [1, 2]
    assert resumed.history == undisturbed.history
    for mine, theirs in zip(resumed.model.get_weights(), undisturbed.model.get_weights(), strict=True):
        assert np.array_equal(mine, theirs)
    # Once more: nothing is left to do, and the result is the same.
    finished = training.fit(store, RECIPE, checkpoints=tmp_path, on_epoch=lambda epoch, logs: seen.append(epoch))
    assert seen == [1, 2]
    assert np.array_equal(finished.model.get_weights()[0], undisturbed.model.get_weights()[0])


def test_it_stops_when_validation_gets_no_better(store: PatchStore) -> None:
    recipe = dataclasses.replace(RECIPE, learning_rate=1e-9, epochs=9, patches_per_epoch=4, patience=2)
    history = training.fit(store, recipe).history
    assert len(history) < 9
    assert len(history) - 1 - training.best_epoch(history) == 2


def test_mixed_precision_keeps_the_weights_in_float32(store: PatchStore) -> None:
    recipe = dataclasses.replace(RECIPE, precision="mixed_bfloat16", epochs=1, patches_per_epoch=8, loss="bce_dice")
    model = training.fit(store, recipe).model
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert keras.config.dtype_policy().name == "mixed_bfloat16"

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest

from mitoflow.config.params import Patch
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.network_input import UNLABELLED
from mitoflow.data.pairs import read_pairs
from mitoflow.data.patches import PatchStore
from mitoflow.errors import InputError
from mitoflow.evaluation import metrics
from mitoflow.models import unet
from mitoflow.training import fitting
from tests.parts import ENVIRONMENT

from .conftest import RECIPE


@pytest.mark.slow
def test_it_learns_and_reports_the_dice_of_the_owned_pixels(store: PatchStore) -> None:
    recipe = RECIPE.replace(epochs=8, patches_per_epoch=120, patience=8, base_width=8, loss="bce_dice")
    # A thousand small crops, turned but neither resampled nor altered: enough to learn what the phantom shows.
    recipe = recipe.replace(learning_rate=0.003, affine_fraction=0.0, intensity_strength=0.0)
    fitted = fitting.fit(store, recipe)
    assert fitted.history[fitted.best_epoch]["val_dice"] > 0.6
    images = store.validation.with_neighbours(np.arange(len(store.validation)), 1, 2) / np.float32(255)
    predicted = fitted.model.predict_on_batch(images)[..., 0] > 0
    counts = metrics.count(store.validation.masks[:], predicted, store.validation.owned(slice(None))).sum(0)
    assert fitted.history[fitted.best_epoch]["val_dice"] == pytest.approx(float(metrics.dice(counts)), abs=1e-5)


@pytest.mark.slow
def test_it_starts_from_another_model(store: PatchStore) -> None:
    first = fitting.fit(store, RECIPE).model
    still = RECIPE.replace(learning_rate=1e-9, epochs=1, patches_per_epoch=4)
    tuned = fitting.fit(store, still, initial=first)
    for mine, theirs in zip(tuned.model.trainable_variables, first.trainable_variables, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    with pytest.raises(InputError, match="train.init_from: found another network, or one of other depth"):
        fitting.fit(store, still.replace(depth=1), initial=first)


@pytest.mark.slow
def test_contacts_are_learned_and_other_models_start_from_it(touching: PatchStore, tmp_path: Path) -> None:
    recipe = RECIPE.replace(epochs=6, patches_per_epoch=80, patience=6, base_width=8, loss="bce_dice", contacts=True)
    fitted = fitting.fit(touching, recipe, checkpoints=tmp_path)
    images = touching.validation.with_neighbours(np.arange(len(touching.validation)), 1, 2) / np.float32(255)
    logits = fitted.model.predict_on_batch(images)
    assert logits.shape[-1] == 2
    known = touching.validation.contacts[:] != UNLABELLED
    counts = metrics.count(touching.validation.contacts[:], logits[..., 1] > 0, known).sum(0)
    assert float(metrics.dice(counts)) > 0.5
    again = fitting.fit(touching, recipe, checkpoints=tmp_path)
    for mine, theirs in zip(again.model.weights, fitted.model.weights, strict=True):
        assert np.array_equal(mine, theirs)
    still = recipe.replace(learning_rate=1e-9, epochs=1, patches_per_epoch=4)
    for initial, contacts in ((fitted.model, False), (unet.without_contacts(fitted.model), True)):
        tuned = fitting.fit(touching, still.replace(contacts=contacts), initial=initial).model
        np.testing.assert_allclose(tuned.predict_on_batch(images)[..., 0], logits[..., 0], atol=0.2)


@pytest.mark.parametrize("steps", [1, 9, 10, 200])
def test_the_learning_rate_is_that_of_keras(steps: int) -> None:
    expected = keras.optimizers.schedules.CosineDecay(
        2e-5, decay_steps=steps, warmup_target=2e-3, warmup_steps=round(steps * fitting.WARM_UP)
    )
    rate = fitting.WarmUpAndCosine(2e-3, steps)
    for step in {0, 1, steps // 30, steps // 2, steps - 1, steps}:
        assert float(rate(step)) == pytest.approx(float(expected(step)), rel=1e-5)


@pytest.mark.parametrize(("key", "known"), [("loss", "bce, bce_dice"), ("network", "unet")])
def test_an_unknown_loss_or_network_is_refused(store: PatchStore, key: str, known: str) -> None:
    with pytest.raises(InputError, match=f"params.yaml: train.{key}: found 'other', expected one of {known}"):
        fitting.fit(store, RECIPE.replace(**{key: "other"}))


@pytest.mark.slow
def test_a_network_is_chosen_by_its_name(store: PatchStore) -> None:
    @unet.NETWORKS.register("of the test")
    def build(depth: int, base_width: int, channels: int) -> keras.Model:
        inputs = keras.Input((None, None, channels))
        return keras.Model(inputs, keras.layers.Conv2D(1, 3, padding="same", dtype="float32")(inputs))

    short = RECIPE.replace(network="of the test", epochs=1, patches_per_epoch=4)
    assert [weights.shape for weights in fitting.fit(store, short).model.get_weights()] == [(3, 3, 3, 1), (1,)]
    del unet.NETWORKS["of the test"]


@pytest.mark.parametrize("library", [keras.backend.backend(), "keras", "numpy", "cv2"])
def test_a_fit_does_not_go_on_with_another_version_of_a_library(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    before = fitting.code_digest()
    monkeypatch.setattr(sys.modules[library], "__version__", "0.0.1")
    assert fitting.code_digest() != before


@pytest.mark.slow
def test_mixed_precision_keeps_the_weights_in_float32(store: PatchStore) -> None:
    recipe = RECIPE.replace(precision="mixed_bfloat16", epochs=1, patches_per_epoch=8, loss="bce_dice")
    model = fitting.fit(store, recipe).model
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


@pytest.mark.slow
def test_two_devices_that_share_each_batch_fit_as_one(small_dataset: Path, tmp_path: Path) -> None:
    """In a process of its own: the devices of a process are made before anything else."""
    settings = Patch(size=48, step=48, validation_fraction=0.375, gap=2)
    pairs = read_pairs(small_dataset / "train")
    store = write_store(tmp_path / "patches", pairs, settings, {"phantom": Conventions(8, "nonzero")})
    # More batches than are made ahead: Keras would keep those for the next epoch.
    recipe = RECIPE.replace(loss="bce_dice", depth=1, learning_rate=0.001, patches_per_epoch=48)
    assert len(store.validation) % recipe.batch_size == 2
    script = textwrap.dedent("""
        import dataclasses, json, sys
        from pathlib import Path
        import numpy as np
        import tensorflow as tf
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        from keras.callbacks import LambdaCallback
        from mitoflow.data.patches import PatchStore
        from mitoflow.errors import InputError
        from mitoflow.training import fitting
        from mitoflow.config.params import Recipe

        store, recipe = PatchStore.open(Path("patches")), Recipe.model_validate_json(sys.argv[1])

        def fit(strategy, **options):
            fitted = fitting.fit(store, recipe, strategy=strategy, **options)
            return fitted.history, np.concatenate([each.ravel() for each in fitted.model.get_weights()]).tolist()

        def cut_off(epoch, logs):
            if epoch == 1:
                raise KeyboardInterrupt

        try:
            fitting.fit(store, recipe.replace(batch_size=5), strategy="data_parallel")
        except InputError as error:
            refused = str(error)
        Path("kept").mkdir()
        try:
            fit("data_parallel", checkpoints=Path("kept"), callbacks=[LambdaCallback(on_epoch_end=cut_off)])
        except KeyboardInterrupt:
            pass
        print(json.dumps([refused, fit("none"), fit("data_parallel", checkpoints=Path("kept"))]))
    """)
    command = [sys.executable, "-c", script, recipe.model_dump_json()]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, (expected, weights), (history, resumed) = json.loads(done.stdout.splitlines()[-1])
    assert "train.batch_size: found 5, expected a multiple of the 2 devices" in refused
    assert len(history) == 3
    for mine, theirs in zip(history, expected, strict=True):
        for name, value in theirs.items():  # Dice counts pixels, of which some lie at the threshold
            assert mine[name] == pytest.approx(value, abs=1e-4 if "loss" in name else 1e-3), (name, history, expected)
    # One device with another kernel differs by 1e-4.
    assert np.linalg.norm(np.subtract(resumed, weights)) < 5e-4 * np.linalg.norm(weights)

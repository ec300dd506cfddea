import dataclasses
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest

from mitoflow.config.params import Patch
from mitoflow.data import network_input
from mitoflow.data.pairs import read_pairs
from mitoflow.data.patches import PatchStore
from mitoflow.errors import InputError
from mitoflow.evaluation import metrics
from mitoflow.models import unet
from mitoflow.training import fitting
from mitoflow.training.fitting import Recipe
from tests.parts import ENVIRONMENT

RECIPE = Recipe(
    learning_rate=0.01,
    depth=2,
    augment_strength=0.5,
    affine_fraction=0.5,
    intensity_strength=0.5,
    foreground_fraction=0.5,
    orthoplanes=False,
    context=1,
    context_step=2,
    context_dropout=0.0,
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
    pairs = read_pairs(small_dataset / "train")
    settings = Patch(size=64, step=64, validation_fraction=0.25, gap=2)
    folder = tmp_path_factory.mktemp("store") / "patches"
    return PatchStore.write(folder, pairs, settings, mask_rule="nonzero", bit_depth=8)


def test_a_crop_is_its_place_in_the_slices(store: PatchStore) -> None:
    plain = dataclasses.replace(RECIPE, augment_strength=0.0, intensity_strength=0.0)
    dataset = fitting.TrainPatches(store.train, 8, plain)
    rng = np.random.default_rng(7)
    stack, z, (y, x) = dataset._place(0, rng)
    image, mask = dataset._crop(0, np.random.default_rng(7))
    box = (y, y + 64, x, x + 64)
    for channel, near in enumerate(network_input.neighbours(z, 1, 2, store.train.ranges[stack])):
        assert np.array_equal(image[..., channel], store.train.image(stack, near, box) / np.float32(255))
    assert np.array_equal(mask[..., 0], store.train.mask(stack, z, box))


def test_without_its_neighbours_a_slice_stands_for_them(store: PatchStore) -> None:
    recipe = dataclasses.replace(RECIPE, intensity_strength=0.0, context_dropout=1.0)
    images, _ = fitting.TrainPatches(store.train, 8, recipe)[0]
    assert np.array_equal(images[..., 0], images[..., 1])
    seeing = dataclasses.replace(recipe, context_dropout=0.0)
    images, _ = fitting.TrainPatches(store.train, 8, seeing)[0]
    assert not np.array_equal(images[..., 0], images[..., 1])


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_image_and_mask_of_a_crop_go_the_same_way(store: PatchStore, strength: float) -> None:
    """With the masks in the place of the images, both come out equal, up to interpolation at the edges."""
    twice = dataclasses.replace(store.train, images=store.train.masks * np.uint8(255))
    recipe = dataclasses.replace(
        RECIPE,
        augment_strength=strength,
        affine_fraction=1.0,
        intensity_strength=0.0,
        context=0,
        foreground_fraction=1.0,
    )
    images, masks = fitting.TrainPatches(twice, 8, recipe)[0]
    assert np.mean((images > 0.5) != (masks > 0.5)) < 0.02 * strength + 1e-9
    assert masks.mean() > 0


@pytest.mark.parametrize("axis", [1, 2])
def test_a_crop_of_a_section_is_its_place_in_the_stack(store: PatchStore, axis: int) -> None:
    plain = dataclasses.replace(RECIPE, augment_strength=0.0, intensity_strength=0.0, orthoplanes=True)
    dataset = fitting.TrainPatches(store.train, 8, plain)
    stack, place, (row, column) = dataset._place(axis, np.random.default_rng(7))
    image, mask = dataset._crop(axis, np.random.default_rng(7))
    held = store.train.ranges[stack]
    whole, truth = (np.stack([get(stack, z) for z in held]) for get in (store.train.image, store.train.mask))
    height = len(held) // 4 * 4
    assert mask.shape == (height, 64, 1)
    box = slice(row, row + height), slice(column, column + 64)
    for channel, near in enumerate(network_input.neighbours(place, 1, 2, range(whole.shape[axis]))):
        assert np.array_equal(image[..., channel], whole.take(near, axis)[box] / np.float32(255))
    assert np.array_equal(mask[..., 0], truth.take(place, axis)[box])


def test_three_planes_take_turns_and_batches_have_as_many_pixels(store: PatchStore) -> None:
    recipe = dataclasses.replace(RECIPE, orthoplanes=True)
    dataset = fitting.TrainPatches(store.train, 8, recipe)
    height = dataset[1][0].shape[1]
    assert height < 64
    shapes = [dataset[step][0].shape[:3] for step in range(4)]
    assert shapes == [(4, 64, 64), (4 * 64 // height, height, 64), (4 * 64 // height, height, 64), (4, 64, 64)]
    fitted = fitting.fit(store, dataclasses.replace(recipe, epochs=1))
    assert fitted.model.input_shape[-1] == 3


def test_a_batch_of_sections_is_a_whole_number_of_batches_of_slices(store: PatchStore) -> None:
    depths = {stack: len(held) for stack, held in store.train.ranges.items()}
    height = max(depths.values()) // 4 * 4
    for batch_size in (2, 6, 8):
        dataset = fitting.TrainPatches(
            store.train, 8, dataclasses.replace(RECIPE, orthoplanes=True, batch_size=batch_size)
        )
        assert len(dataset[1][0]) == batch_size * (64 // height)  # so that devices which share it all get some


def test_stacks_without_sections_are_told(store: PatchStore) -> None:
    shallow = dataclasses.replace(RECIPE, orthoplanes=True, depth=6)
    with pytest.raises(InputError, match="train.orthoplanes: found true"):
        fitting.TrainPatches(store.train, 8, shallow)


def test_crops_on_foreground_hold_some(store: PatchStore) -> None:
    recipe = dataclasses.replace(RECIPE, augment_strength=0.0, foreground_fraction=1.0, batch_size=64)
    _, masks = fitting.TrainPatches(store.train, 8, recipe)[0]
    assert masks.any(axis=(1, 2, 3)).all()


def test_crops_lie_inside_the_slice_and_reach_all_of_it(store: PatchStore) -> None:
    dataset = fitting.TrainPatches(store.train, 8, dataclasses.replace(RECIPE, foreground_fraction=0.0))
    corners = np.array([dataset._place(0, np.random.default_rng(seed))[2] for seed in range(400)])
    height, width = store.train.shapes[0][1:]
    assert corners.min(axis=0).tolist() == [0, 0]
    assert corners.max(axis=0).tolist() == [height - 64, width - 64]


def test_a_batch_depends_on_seed_epoch_and_place_alone(store: PatchStore) -> None:
    first, again = (fitting.TrainPatches(store.train, 8, RECIPE) for _ in range(2))
    first.epoch = again.epoch = 1
    again[0]
    assert np.array_equal(first[2][0], again[2][0])
    again.epoch = 2
    assert not np.array_equal(first[2][0], again[2][0])


def test_it_learns_and_reports_the_dice_of_the_owned_pixels(store: PatchStore) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=8, patches_per_epoch=120, patience=8, base_width=8, loss="bce_dice")
    # A thousand small crops, turned but neither resampled nor altered: enough to learn what the phantom shows.
    recipe = dataclasses.replace(recipe, learning_rate=0.003, affine_fraction=0.0, intensity_strength=0.0)
    fitted = fitting.fit(store, recipe)
    assert fitted.history[fitted.best_epoch]["val_dice"] > 0.6
    images = store.validation.with_neighbours(np.arange(len(store.validation)), 1, 2) / np.float32(255)
    predicted = fitted.model.predict_on_batch(images)[..., 0] > 0
    counts = metrics.count(store.validation.masks[:], predicted, store.validation.owned(slice(None))).sum(0)
    assert fitted.history[fitted.best_epoch]["val_dice"] == pytest.approx(float(metrics.dice(counts)), abs=1e-5)


def test_a_resumed_fit_ends_as_an_undisturbed_one(store: PatchStore, tmp_path: Path) -> None:
    undisturbed = fitting.fit(store, RECIPE)

    def cut_off(epoch: int, logs: fitting.Logs) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitting.fit(store, RECIPE, checkpoints=tmp_path, on_epoch=cut_off)
    seen: list[int] = []
    resumed = fitting.fit(store, RECIPE, checkpoints=tmp_path, on_epoch=lambda epoch, logs: seen.append(epoch))
    assert seen == [1, 2]
    assert resumed.history == undisturbed.history
    for mine, theirs in zip(resumed.model.get_weights(), undisturbed.model.get_weights(), strict=True):
        assert np.array_equal(mine, theirs)
    # Once more: nothing is left to do, and the result is the same.
    finished = fitting.fit(store, RECIPE, checkpoints=tmp_path, on_epoch=lambda epoch, logs: seen.append(epoch))
    assert seen == [1, 2]
    assert np.array_equal(finished.model.get_weights()[0], undisturbed.model.get_weights()[0])


def test_it_starts_from_another_model(store: PatchStore) -> None:
    first = fitting.fit(store, RECIPE).model
    still = dataclasses.replace(RECIPE, learning_rate=1e-9, epochs=1, patches_per_epoch=4)
    tuned = fitting.fit(store, still, initial=first)
    for mine, theirs in zip(tuned.model.trainable_variables, first.trainable_variables, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    with pytest.raises(InputError, match="train.init_from: found a U-Net of other depth"):
        fitting.fit(store, dataclasses.replace(still, depth=1), initial=first)


@pytest.mark.parametrize(("key", "known"), [("loss", "bce, bce_dice"), ("network", "unet")])
def test_an_unknown_loss_or_network_is_refused(store: PatchStore, key: str, known: str) -> None:
    with pytest.raises(InputError, match=f"params.yaml: train.{key}: found 'other', expected one of {known}"):
        fitting.fit(store, dataclasses.replace(RECIPE, **{key: "other"}))


def test_a_network_is_chosen_by_its_name(store: PatchStore) -> None:
    @unet.NETWORKS.register("of the test")
    def build(depth: int, base_width: int, channels: int) -> keras.Model:
        inputs = keras.Input((None, None, channels))
        return keras.Model(inputs, keras.layers.Conv2D(1, 3, padding="same", dtype="float32")(inputs))

    short = dataclasses.replace(RECIPE, network="of the test", epochs=1, patches_per_epoch=4)
    assert [weights.shape for weights in fitting.fit(store, short).model.get_weights()] == [(3, 3, 3, 1), (1,)]
    del unet.NETWORKS["of the test"]


def test_it_stops_when_validation_gets_no_better(store: PatchStore) -> None:
    recipe = dataclasses.replace(RECIPE, learning_rate=1e-9, epochs=9, patches_per_epoch=4, patience=2)
    history = fitting.fit(store, recipe).history
    assert len(history) < 9
    assert len(history) - 1 - fitting.best_epoch(history) == 2


def test_mixed_precision_keeps_the_weights_in_float32(store: PatchStore) -> None:
    recipe = dataclasses.replace(RECIPE, precision="mixed_bfloat16", epochs=1, patches_per_epoch=8, loss="bce_dice")
    model = fitting.fit(store, recipe).model
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


def test_no_device_goes_without_a_patch_and_none_counts_twice(store: PatchStore) -> None:
    recipe = dataclasses.replace(RECIPE, batch_size=7)
    alone, shared = (fitting.ValidationPatches(store.validation, 8, recipe, devices) for devices in (1, 4))
    assert [len(images) for images, _, _ in alone] == [7, 7, 7, 3]
    assert [len(images) for images, _, _ in shared] == [8, 8, 8, 4]
    for mine, theirs in zip(shared, alone, strict=True):
        assert all(np.array_equal(some[: len(all_)], all_) for some, all_ in zip(mine, theirs, strict=True))
        assert not mine[2][len(theirs[2]) :].any()


def test_two_devices_that_share_each_batch_fit_as_one(small_dataset: Path, tmp_path: Path) -> None:
    """In a process of its own: the devices of a process are made before anything else."""
    settings = Patch(size=48, step=48, validation_fraction=0.375, gap=2)
    pairs = read_pairs(small_dataset / "train")
    store = PatchStore.write(tmp_path / "patches", pairs, settings, mask_rule="nonzero", bit_depth=8)
    # More batches than are made ahead: Keras would keep those for the next epoch.
    recipe = dataclasses.replace(RECIPE, loss="bce_dice", depth=1, learning_rate=0.001, patches_per_epoch=48)
    assert len(store.validation) % recipe.batch_size == 2
    script = textwrap.dedent("""
        import dataclasses, json, sys
        from pathlib import Path
        import numpy as np
        import tensorflow as tf
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        from mitoflow import training
        from mitoflow.errors import InputError
        from mitoflow.patches import PatchStore

        store, recipe = PatchStore.open(Path("patches")), training.Recipe(**json.loads(sys.argv[1]))

        def fit(strategy, **options):
            fitted = training.fit(store, recipe, strategy=strategy, **options)
            return fitted.history, np.concatenate([each.ravel() for each in fitted.model.get_weights()]).tolist()

        def cut_off(epoch, logs):
            if epoch == 1:
                raise KeyboardInterrupt

        try:
            training.fit(store, dataclasses.replace(recipe, batch_size=5), strategy="data_parallel")
        except InputError as error:
            refused = str(error)
        Path("kept").mkdir()
        try:
            fit("data_parallel", checkpoints=Path("kept"), on_epoch=cut_off)
        except KeyboardInterrupt:
            pass
        print(json.dumps([refused, fit("none"), fit("data_parallel", checkpoints=Path("kept"))]))
    """)
    command = [sys.executable, "-c", script, json.dumps(fitting.as_dict(recipe))]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, (expected, weights), (history, resumed) = json.loads(done.stdout.splitlines()[-1])
    assert "train.batch_size: found 5, expected a multiple of the 2 devices" in refused
    assert len(history) == 3
    for mine, theirs in zip(history, expected, strict=True):
        for name, value in theirs.items():  # Dice counts pixels, of which some lie at the threshold
            assert mine[name] == pytest.approx(value, abs=1e-4 if "loss" in name else 1e-3), (name, history, expected)
    np.testing.assert_allclose(resumed, weights, atol=1e-3)  # one device with another kernel differs by 1e-4

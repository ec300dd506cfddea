import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from mitoflow.core import provenance
from mitoflow.errors import InputError
from mitoflow.models import unet

ROOT = Path(__file__).parents[2]


def test_it_is_the_u_net_of_the_readme() -> None:
    model = unet.build_unet(depth=4, base_width=16)
    assert model.count_params() == 1_945_233
    assert model.compute_output_shape((2, 256, 320, 1)) == (2, 256, 320, 1)


def test_a_u_net_of_other_blocks_has_one_on_each_level() -> None:
    seen = []

    def convolve_once(x, width, name):
        seen.append((name, width, x.shape[-1]))
        return keras.layers.Conv2D(width, 3, padding="same", name=name)(x)

    model = unet.build_unet(2, 4, channels=3, block=convolve_once)
    levels = [("down0", 4, 3), ("down1", 8, 4), ("bottom", 16, 8), ("up1", 8, 16), ("up0", 4, 8)]
    assert seen == levels
    assert {name for name, _, _ in levels} < {layer.name for layer in model.layers}
    assert model.compute_output_shape((2, 16, 24, 3)) == (2, 16, 24, 1)


@pytest.mark.slow
def test_the_strided_u_net_has_a_u_net_of_one_pooling_less_in_it(tmp_path: Path) -> None:
    model, inner = unet.build_strided_unet(3, 8, channels=3), unet.build_unet(2, 8)
    assert model.compute_output_shape((2, 64, 40, 3)) == (2, 64, 40, 1)
    levels = [layer.name for layer in inner.layers[1:-1]]
    assert [layer.name for layer in model.layers[4:-1]] == levels
    assert unet.NETWORKS["unet_strided"] is unet.build_strided_unet
    unet.save_model(model, tmp_path / "strided.keras")
    x = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    again = unet.load_model(tmp_path / "strided.keras")
    assert np.array_equal(model.predict_on_batch(x), again.predict_on_batch(x))


def test_the_strided_stem_is_a_convolution_of_squares_as_channels() -> None:
    """The 6 x 6 kernel of stride 2, and a 3 x 3 kernel after space-to-depth by 2 with the same numbers in it."""
    random = np.random.default_rng(0)
    kernel = random.normal(size=(6, 6, 2, 5)).astype(np.float32)
    # (3, 2, 3, 2, C, K): places of squares and places in a square, to (3, 3, 2 * 2 * C, K).
    squares = kernel.reshape(3, 2, 3, 2, 2, 5).transpose(0, 2, 1, 3, 4, 5).reshape(3, 3, 8, 5)
    stem = unet.build_strided_unet(2, 5, channels=2).get_layer("stem")
    stem.set_weights([kernel])
    image = random.random((2, 24, 32, 2), np.float32)
    as_channels = image.reshape(2, 12, 2, 16, 2, 2).transpose(0, 1, 3, 2, 4, 5).reshape(2, 12, 16, 8)
    wanted = keras.ops.conv(as_channels, squares, padding="same")
    np.testing.assert_allclose(np.asarray(stem(image)), np.asarray(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("training", [True, False])
def test_fused_normalisation_is_keras_normalisation(dtype: str, training: bool) -> None:
    x = np.random.default_rng(0).normal(3, 2, (4, 8, 8, 5)).astype(np.float32)
    ours = unet.FusedBatchNormalization(momentum=0.9, dtype=dtype)
    keras_own = keras.layers.BatchNormalization(momentum=0.9, dtype=dtype)
    for layer in (ours, keras_own):
        layer.build(x.shape)
        layer.set_weights([np.linspace(0.5, 2, 5), np.linspace(-1, 1, 5), np.full(5, 2.5), np.full(5, 3.5)])
    tolerance = 1e-5 if dtype == "float32" else 0.03
    outputs = [np.asarray(keras.ops.cast(layer(x, training=training), "float32")) for layer in (ours, keras_own)]
    np.testing.assert_allclose(*outputs, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(ours.get_weights(), keras_own.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=tolerance)


@pytest.mark.slow
def test_same_weights_give_the_same_file(tmp_path: Path) -> None:
    model, twin = unet.build_unet(2, 4), unet.build_unet(2, 4)
    twin.set_weights(model.get_weights())
    unet.save_model(model, tmp_path / "one.keras")
    time.sleep(1.1)  # the time of writing is in neither
    unet.save_model(twin, tmp_path / "two.keras")
    assert b"shared_object_id" in zipfile.ZipFile(tmp_path / "one.keras").read("config.json")
    assert (tmp_path / "one.keras").read_bytes() == (tmp_path / "two.keras").read_bytes()
    x = np.random.default_rng(0).random((1, 32, 32, 1), np.float32)
    assert np.array_equal(model.predict_on_batch(x), unet.load_model(tmp_path / "two.keras").predict_on_batch(x))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.keras", "two.keras"]


@pytest.mark.slow
def test_the_released_model_is_written_with_the_same_bytes_and_loads_in_a_new_process(tmp_path: Path) -> None:
    released = ROOT / "pretrained/epfl/unet.keras"
    model = unet.load_model(released)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        again = unet.build_unet(depth=4, base_width=16, channels=5)
    finally:
        keras.config.set_dtype_policy(before)
    again.set_weights(model.get_weights())
    unet.save_model(again, tmp_path / "again.keras")
    assert provenance.file_sha256(tmp_path / "again.keras") == provenance.file_sha256(released)
    load = (
        "import sys, pathlib; from mitoflow.models import unet; print(unet.load_model(pathlib.Path(sys.argv[1])).name)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", load, tmp_path / "again.keras"], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "unet\n"


def test_a_model_with_code_in_it_is_refused(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs))
    model.save(tmp_path / "lambda.keras")
    with pytest.raises(InputError, match="expected a U-Net saved by mitoflow"):
        unet.load_model(tmp_path / "lambda.keras")


def test_missing_and_broken_models_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        unet.load_model(tmp_path / "none.keras")
    unet.save_model(unet.build_unet(1, 2), tmp_path / "half.keras")
    content = (tmp_path / "half.keras").read_bytes()
    (tmp_path / "half.keras").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="half.keras"):
        unet.load_model(tmp_path / "half.keras")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_one_line(tmp_path: Path, value: float) -> None:
    """Every mask would be empty."""
    model = unet.build_unet(1, 2)
    kernel, *others = model.get_weights()
    kernel[0, 0, 0, 1] = value
    model.set_weights([kernel, *others])
    unet.save_model(model, tmp_path / "nan.keras")
    with pytest.raises(InputError, match=r"nan.keras: found weights that are no finite numbers .*kernel"):
        unet.load_model(tmp_path / "nan.keras")


@pytest.mark.slow
@pytest.mark.parametrize("build", [unet.build_unet, unet.build_strided_unet])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_reach_is_how_far_an_output_sees(depth: int, build: Callable[[int, int], keras.Model]) -> None:
    model = build(depth, 2)
    side = 2 * (unet.reach(depth) // 2**depth + 3) * 2**depth
    x = np.random.default_rng(0).random((1, side, side, 1), np.float32)
    seen = []
    # Max pooling hides some changes, so several are tried; where a pixel lies in the pooling grid matters, too.
    for place in range(side):
        changed = x.copy()
        changed[0, place] = 1 - changed[0, place]
        moved = np.flatnonzero(np.any(model.predict_on_batch(changed) != model.predict_on_batch(x), axis=(0, 2, 3)))
        seen += [abs(int(pixel) - place) for pixel in (moved.min(), moved.max())] if len(moved) else []
    assert max(seen) <= unet.reach(depth)
    assert max(seen) >= unet.reach(depth) - 2**depth


@pytest.mark.parametrize("build", [unet.build_unet, unet.build_strided_unet])
def test_contacts_are_a_second_logit_and_leave_the_first_as_it_is(
    tmp_path: Path, build: Callable[[int, int], keras.Model]
) -> None:
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    plain = build(2, 4)
    both = unet.with_contacts(plain)
    image = np.random.default_rng(0).random((1, 16, 24, 1), np.float32)
    mask, logits = plain.predict_on_batch(image), both.predict_on_batch(image)
    assert logits.shape == (1, 16, 24, 2)
    assert np.array_equal(logits[..., :1], mask)
    assert not np.array_equal(logits[..., 1:], mask)
    shapes = [weight.shape for weight in plain.weights]
    assert [weight.shape for weight in both.weights[:-2]] == shapes
    unet.save_model(both, tmp_path / "both.keras")
    read = unet.load_model(tmp_path / "both.keras")
    assert np.array_equal(read.predict_on_batch(image), logits)
    assert np.array_equal(unet.without_contacts(read).predict_on_batch(image), mask)
    assert unet.without_contacts(plain) is plain

from pathlib import Path

import keras
import numpy as np
import pytest

from mitoflow import unet
from mitoflow.errors import InputError
from mitoflow.inference import Predictor, Settings

SETTINGS = Settings(bit_depth=8, divisor=4, tile=64, overlap=8, threshold=0.5)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("float32")
    return unet.build_unet(depth=2, base_width=4)


@pytest.mark.parametrize("shape", [(1, 1), (5, 64), (64, 64), (65, 63), (100, 250)])
def test_masks_have_the_shape_of_the_images(model: keras.Model, shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    predictor = Predictor(model, SETTINGS)
    masks, probabilities = predictor.masks(images), predictor.probabilities(images)
    assert masks.shape == probabilities.shape == images.shape
    assert masks.dtype == np.uint8
    assert np.array_equal(masks, probabilities >= 0.5)


def test_no_images_give_no_masks(model: keras.Model) -> None:
    assert Predictor(model, SETTINGS).masks(np.zeros((0, 64, 64), np.uint8)).shape == (0, 64, 64)


def test_a_constant_network_leaves_no_seams() -> None:
    inputs = keras.Input((None, None, 1))
    layer = keras.layers.Conv2D(1, 1, bias_initializer="ones", kernel_initializer="zeros")
    constant = keras.Model(inputs, layer(inputs))
    image = np.random.default_rng(0).integers(0, 256, (150, 170), dtype=np.uint8)
    probability = Predictor(constant, SETTINGS).probability(image)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-1)), rtol=1e-6)


def test_tiles_agree_with_the_whole_slice_inside_the_reach(model: keras.Model) -> None:
    """Where every tile that takes part sees all that an output can see, tiling changes nothing."""
    reach = unet.reach(2)
    image = np.random.default_rng(0).integers(0, 256, (160, 64), dtype=np.uint8)
    whole = Predictor(model, Settings(8, 4, tile=160, overlap=0, threshold=0.5)).probability(image)
    tiled = Predictor(model, Settings(8, 4, tile=112, overlap=32, threshold=0.5)).probability(image)
    # Tiles start at 0 and 48; between reach after the start of one and before the end of the other both see enough.
    np.testing.assert_allclose(tiled[48 + reach : 112 - reach], whole[48 + reach : 112 - reach], atol=1e-5)


def test_patches_are_predicted_each_by_itself(model: keras.Model) -> None:
    patches = np.random.default_rng(0).integers(0, 256, (11, 32, 32), dtype=np.uint8)
    predictor = Predictor(model, SETTINGS)
    together = predictor.patch_probabilities(patches)
    alone = np.concatenate([predictor.patch_probabilities(patch[None]) for patch in patches])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("bit_depth", "images"),
    [
        (8, np.zeros((1, 64, 64), np.uint16)),
        (12, np.zeros((1, 64, 64), np.uint8)),
        (12, np.full((1, 64, 64), 4096, np.uint16)),
        (8, np.zeros((1, 64, 64), np.float32)),
        (8, np.zeros((1, 64, 64, 3), np.uint8)),
    ],
)
def test_images_unlike_those_of_training_are_refused(model: keras.Model, bit_depth: int, images: np.ndarray) -> None:
    settings = Settings(bit_depth, 4, 64, 8, 0.5)
    with pytest.raises(InputError, match="images: found"):
        Predictor(model, settings).masks(images)


def test_settings_survive_the_file(tmp_path: Path) -> None:
    SETTINGS.write(tmp_path / "inference.yaml")
    assert Settings.read(tmp_path / "inference.yaml") == SETTINGS


@pytest.mark.parametrize("text", ["tile: 3", "[1, 2]", "a: b: c"])
def test_broken_settings_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "inference.yaml").write_text(text)
    with pytest.raises(InputError, match="inference.yaml"):
        Settings.read(tmp_path / "inference.yaml")

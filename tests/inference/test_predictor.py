from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitoflow.errors import InputError
from mitoflow.inference.keras_network import fold_normalization
from mitoflow.inference.model_input import ArrayVolume
from mitoflow.inference.predictor import CONTACT, Predictor
from mitoflow.inference.settings import Settings
from mitoflow.models import unet
from tests.tiny_model import network_of_brightness, two_that_touch

SETTINGS = Settings(bit_depth=8, divisor=4, tile=64, overlap=16, threshold=0.5)


def single(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    return predictor.probabilities(image[None])[0]


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("float32")
    return unet.build_unet(depth=2, base_width=4)


@pytest.mark.slow
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
    probability = single(Predictor(constant, SETTINGS), image)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-1)), rtol=1e-6)


@pytest.mark.slow
def test_tiles_agree_with_the_whole_slice_inside_the_reach(model: keras.Model) -> None:
    """Where every tile that takes part sees all that an output can see, tiling changes nothing."""
    reach = unet.reach(2)
    image = np.random.default_rng(0).integers(0, 256, (160, 64), dtype=np.uint8)
    whole = single(Predictor(model, replace(SETTINGS, tile=160, overlap=0)), image)
    tiled = single(Predictor(model, replace(SETTINGS, tile=112, overlap=64)), image)
    # Tiles start at 0 and 48; between reach after the start of one and before the end of the other both see enough.
    np.testing.assert_allclose(tiled[48 + reach : 112 - reach], whole[48 + reach : 112 - reach], atol=1e-5)


@pytest.mark.slow
@given(st.integers(1, 2000))
def test_tiles_cover_a_slice_and_little_more(model: keras.Model, length: int) -> None:
    """They are as few as their largest size allows, and the network sees few pixels twice or beyond the end."""
    rows = Predictor(model, SETTINGS).region((length, 64)).rows
    step, shared = rows.tile - SETTINGS.overlap, SETTINGS.overlap
    assert rows.starts == [i * step for i in range(len(rows.starts))]
    assert rows.tile % SETTINGS.divisor == step % SETTINGS.divisor == 0
    assert rows.tile <= max(SETTINGS.tile, SETTINGS.divisor)
    assert length <= rows.starts[-1] + rows.tile < length + len(rows.starts) * SETTINGS.divisor
    assert len(rows.starts) == 1 or length > (len(rows.starts) - 1) * (SETTINGS.tile - shared) + shared


@pytest.fixture(scope="module")
def wide(model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(0).integers(0, 256, (70, 150), dtype=np.uint8)
    return image, single(Predictor(model, SETTINGS), image)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(st.sets(st.integers(1, 69), max_size=2), st.sets(st.integers(1, 149), max_size=3))
def test_a_slice_cut_into_any_boxes_is_the_whole_slice(
    model: keras.Model, wide: tuple[np.ndarray, np.ndarray], rows: set[int], columns: set[int]
) -> None:
    """No box sees more than its source: the pixels around it are not handed out."""
    image, whole = wide
    predictor, pieces = Predictor(model, SETTINGS), np.full(image.shape, np.nan, np.float32)
    for y0, y1 in pairwise(sorted(rows | {0, 70})):
        for x0, x1 in pairwise(sorted(columns | {0, 150})):
            region = predictor.region(image.shape, (y0, y1, x0, x1))
            top, bottom, left, right = region.source
            seen = image[top:bottom, left:right]
            (pieces[y0:y1, x0:x1],) = predictor.stream(lambda _, seen=seen: seen, range(1), None, region)
    np.testing.assert_allclose(pieces, whole, atol=1e-5)


def test_what_a_box_is_predicted_from_does_not_grow_with_the_slice(model: keras.Model) -> None:
    predictor = Predictor(model, SETTINGS)
    top, bottom, left, right = predictor.region((100_000, 100_000), (50_000, 50_100, 99_900, 100_000)).source
    assert max(bottom - top, right - left) <= 100 + 2 * SETTINGS.tile
    assert top <= 50_000 < 50_100 <= bottom
    assert left <= 99_900 < right == 100_000


def test_part_of_a_stack_is_predicted_as_in_the_whole(model: keras.Model, stack: np.ndarray) -> None:
    inputs = keras.Input((None, None, 3))
    layer = keras.layers.Conv2D(1, 1)
    predictor = Predictor(keras.Model(inputs, layer(inputs)), replace(SETTINGS, context=1, context_step=2, median=3))
    whole = predictor.probabilities(stack)
    for wanted in (range(0, 1), range(0, 7), range(2, 5), range(6, 7), range(3, 3)):
        part = list(predictor.stream(stack.__getitem__, range(7), wanted))
        assert len(part) == len(wanted)
        for z, map_ in zip(wanted, part, strict=True):
            np.testing.assert_allclose(map_, whole[z], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "unet_strided"])
def test_normalisation_goes_into_the_convolutions(name: str) -> None:
    random = np.random.default_rng(0)
    images = random.random((2, 64, 64, 3), np.float32)
    network = unet_of("float32", name)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            count = layer.gamma.shape[0]
            low, high = random.normal(0, 0.3, (2, count)), random.uniform(0.5, 1.5, (2, count))
            layer.set_weights([high[0], *low, high[1]])
    weights = network.get_weights()
    folded = fold_normalization(network)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)
    exact = network.predict_on_batch(images)
    assert exact.std() > 0.1
    np.testing.assert_allclose(folded.predict_on_batch(images), exact, atol=1e-4 * exact.std())

    network = unet_of("mixed_bfloat16", name)
    network.set_weights(weights)
    error = fold_normalization(network).predict_on_batch(images) - exact
    assert 0 < np.sqrt(np.mean(error**2)) < 0.05 * exact.std()  # ten layers, of 8 significant bits each


def test_a_normalisation_that_cannot_be_folded_is_kept() -> None:
    inputs = keras.Input((None, None, 1))
    rectified = keras.layers.Conv2D(3, 3, padding="same", activation="relu")(inputs)
    shared = keras.layers.Conv2D(3, 3, padding="same")(keras.layers.BatchNormalization()(rectified))
    x = keras.layers.Concatenate()([shared, keras.layers.BatchNormalization()(shared)])
    x = keras.layers.BatchNormalization(scale=False)(keras.layers.Conv2D(3, 1)(x))
    network = keras.Model(inputs, keras.layers.Conv2D(1, 1)(x))
    random = np.random.default_rng(0)
    network.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in network.get_weights()])
    images = random.random((2, 16, 16, 1), np.float32)
    folded = fold_normalization(network)
    np.testing.assert_allclose(folded.predict_on_batch(images), network.predict_on_batch(images), rtol=1e-5)


@pytest.mark.parametrize("overlap", [40, 48, 64])
def test_a_network_that_is_certain_stays_a_probability(overlap: int) -> None:
    inputs = keras.Input((None, None, 1))
    certain = keras.layers.Conv2D(1, 1, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(20))
    predictor = Predictor(keras.Model(inputs, certain(inputs)), replace(SETTINGS, tile=128, overlap=overlap))
    ramp = np.tile(np.arange(310, dtype=np.uint16) % 256, (300, 1)).astype(np.uint8)  # a blank slice has an empty mask
    assert single(predictor, ramp).max() == 1


def unet_of(policy: str, name: str) -> keras.Model:
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(policy)
    network = unet.NETWORKS[name](depth=2, base_width=4, channels=3)
    keras.config.set_dtype_policy("float32")
    return network


def test_patches_are_predicted_each_by_itself(model: keras.Model) -> None:
    patches = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 1), dtype=np.uint8)
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
    with pytest.raises(InputError, match="images: found"):
        Predictor(model, replace(SETTINGS, bit_depth=bit_depth)).masks(images)


@pytest.fixture(scope="module")
def stack() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (7, 40, 50), dtype=np.uint8)


def test_a_model_with_context_sees_the_neighbours_in_their_order(stack: np.ndarray) -> None:
    inputs = keras.Input((None, None, 5))
    layer = keras.layers.Conv2D(1, 1, use_bias=False)
    weighted = keras.Model(inputs, layer(inputs))
    weights = np.array([1, -2, 3, -4, 5], np.float32)
    layer.set_weights([weights.reshape(1, 1, 5, 1)])
    got = Predictor(weighted, replace(SETTINGS, context=2, context_step=2)).probabilities(stack)
    for z in range(7):
        near = np.clip([z - 4, z - 2, z, z + 2, z + 4], 0, 6)
        logits = np.tensordot(weights, stack[near] / 255, 1)
        np.testing.assert_allclose(got[z], 1 / (1 + np.exp(-logits)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tta", [4, 8])
def test_augmentation_makes_the_map_follow_the_image(model: keras.Model, stack: np.ndarray, tta: int) -> None:
    """The mean over symmetries knows no direction: turn the image, and the map turns with it."""
    predictor = Predictor(model, replace(SETTINGS, tta=tta, tile=64))
    square = stack[:1, :40, :40]
    plain = predictor.probabilities(square)
    np.testing.assert_allclose(predictor.probabilities(square[:, ::-1]), plain[:, ::-1], atol=1e-5)
    turned = predictor.probabilities(np.rot90(square, axes=(1, 2)))
    close = np.allclose(turned, np.rot90(plain, axes=(1, 2)), atol=1e-5)
    assert close == (tta == 8)
    single_view = Predictor(model, replace(SETTINGS, tile=64)).probabilities(square)
    assert not np.allclose(plain, single_view, atol=1e-5)


def test_slices_are_read_once_and_few_at_a_time(model: keras.Model, stack: np.ndarray) -> None:
    inputs = keras.Input((None, None, 3))
    outputs = keras.layers.Conv2D(1, 1)(inputs)
    read: list[int] = []
    given = 0

    def tell(z: int) -> np.ndarray:
        read.append(z)
        assert z <= given + 1 + 2  # context ahead, half a median ahead
        return stack[z]

    predictor = Predictor(keras.Model(inputs, outputs), replace(SETTINGS, context=1, median=5))
    for _ in predictor.stream(tell, range(7)):
        given += 1
    assert read == list(range(7))


CUBE = np.random.default_rng(3).integers(0, 256, (24, 40, 52), dtype=np.uint8)
THREE = replace(SETTINGS, tile=32, overlap=16, context=1, context_step=2, orthoplanes=True)


@pytest.fixture(scope="module")
def contextual() -> keras.Model:
    keras.utils.set_random_seed(2)
    return unet.build_unet(depth=2, base_width=4, channels=3)


@pytest.mark.slow
def test_in_three_planes_a_voxel_gets_the_mean_over_its_three_sections(contextual: keras.Model) -> None:
    slices = Predictor(contextual, replace(THREE, orthoplanes=False))
    sections = [np.moveaxis(slices.probabilities(np.moveaxis(CUBE, axis, 0)), 0, axis) for axis in range(3)]
    found = Predictor(contextual, THREE).probabilities(CUBE)
    assert np.abs(sections[1] - sections[0]).max() > 0.01
    np.testing.assert_allclose(found, np.mean(sections, axis=0), atol=1e-3)  # the sum of two is kept in float16


@pytest.mark.slow
@pytest.mark.parametrize("box", [(0, 40, 0, 52), (0, 17, 30, 52), (9, 10, 0, 31), (33, 40, 5, 6)])
def test_a_part_in_three_planes_is_what_it_is_in_the_whole(
    contextual: keras.Model, box: tuple[int, int, int, int]
) -> None:
    predictor = Predictor(contextual, replace(THREE, median=3))
    whole = predictor.probabilities(CUBE)
    region, shares = predictor.region(CUBE.shape[1:], box), []
    (top, bottom, left, right), (y0, y1, x0, x1) = region.source, box

    def read(z: int) -> np.ndarray:
        return CUBE[z, top:bottom, left:right]

    part = np.stack([*predictor.stream(read, range(24), range(5, 19), region, shares.append)])
    np.testing.assert_allclose(part, whole[5:19, y0:y1, x0:x1], atol=1e-3)
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.slow
def test_what_is_too_shallow_has_no_sections(contextual: keras.Model) -> None:
    slices, three = Predictor(contextual, replace(THREE, orthoplanes=False)), Predictor(contextual, THREE)
    assert np.array_equal(three.probabilities(CUBE[:3]), slices.probabilities(CUBE[:3]))
    assert not np.array_equal(three.probabilities(CUBE[:4]), slices.probabilities(CUBE[:4]))


def test_not_a_number_is_no_empty_mask(model: keras.Model) -> None:
    broken = keras.models.clone_model(model)
    broken.set_weights([np.full_like(array, np.nan) for array in model.get_weights()])
    with pytest.raises(InputError, match="the network's output: found not-a-number, computed by Keras on "):
        Predictor(broken, SETTINGS).masks(np.zeros((1, 64, 64), np.uint8))


def of_one_layer(layer: keras.Layer, *shape: int | None) -> keras.Model:
    inputs = keras.Input(shape or (None, None, 1))
    return keras.Model(inputs, layer(inputs))


def of_two_outputs() -> keras.Model:
    inputs = keras.Input((None, None, 1))
    return keras.Model(inputs, [keras.layers.Conv2D(1, 1)(inputs), keras.layers.Conv2D(1, 1)(inputs)])


def convolution(**options: object) -> keras.Layer:
    return keras.layers.Conv2D(**{"filters": 1, "kernel_size": 3, "padding": "same", **options})


FOREIGN = {
    "sequential": (lambda: keras.Sequential([keras.Input((None, None, 1)), convolution()]), "of the class Sequential"),
    "a layer": (lambda: of_one_layer(convolution()).layers[1], "of the class Conv2D"),
    "fixed size": (lambda: of_one_layer(convolution(), 64, 64, 1), r"from \(None, 64, 64, 1\) to \(None, 64, 64, 1\)"),
    "channels": (lambda: of_one_layer(convolution(), None, None, 3), r"from \(None, None, None, 3\) to"),
    "two classes": (lambda: of_one_layer(convolution(filters=2)), r"to \(None, None, None, 2\)"),
    "two outputs": (of_two_outputs, r"to \[\(None, None, None, 1\), "),
    "stride": (lambda: of_one_layer(convolution(strides=2)), "that makes 32 x 32 pixels of 64 x 64"),
    "valid padding": (lambda: of_one_layer(convolution(padding="valid")), "that makes 62 x 62 pixels of 64 x 64"),
    "probabilities": (lambda: of_one_layer(convolution(activation="sigmoid")), "that ends with sigmoid"),
    "more levels": (lambda: unet.build_unet(depth=7, base_width=1), "that takes no 64 x 64 pixels"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_network_that_is_none_of_mitoflows_is_one_line(tmp_path: Path, kind: str) -> None:
    build, found = FOREIGN[kind]
    keras.saving.save_model(build(), tmp_path / "unet.keras")
    SETTINGS.write(tmp_path / "inference.yaml")
    with pytest.raises(InputError, match=f"unet.keras: found a network .*{found}.*, expected a U-Net from") as error:
        Predictor.load(tmp_path / "unet.keras", tmp_path / "inference.yaml")
    assert "put the inference.yaml of this model beside it" in str(error.value)


@pytest.mark.parametrize("build", [unet.build_unet, unet.build_strided_unet])
def test_networks_of_mitoflow_are_loaded(tmp_path: Path, build: Callable[[int, int, int], keras.Model]) -> None:
    unet.save_model(build(2, 1, 3), tmp_path / "unet.keras")
    replace(SETTINGS, context=1).write(tmp_path / "inference.yaml")
    Predictor.load(tmp_path / "unet.keras", tmp_path / "inference.yaml")


@pytest.mark.parametrize("changes", [{}, {"orthoplanes": True}, {"median": 3}, {"tta": 8}])
def test_contacts_come_with_the_maps_of_mitochondria(changes: dict[str, Any]) -> None:
    predictor = Predictor(network_of_brightness(), replace(SETTINGS, divisor=1, contacts=True, **changes))
    stack, contacts = two_that_touch(6), dict[int, np.ndarray]()
    predictor, read = predictor.for_volume(ArrayVolume(stack))
    maps = np.stack([*predictor.stream(read, range(6), on_contacts=contacts.__setitem__)])
    assert np.array_equal(maps >= 0.5, stack > 0)
    assert [*contacts] == [*range(6)]
    assert np.array_equal(np.stack([*contacts.values()]) >= CONTACT, stack == 255)
    assert np.array_equal(predictor.masks(stack), stack > 0)  # without them, the same masks


def test_slices_that_show_nothing_have_no_contacts() -> None:
    """A slice that was lost is white, and so all of it would be contact."""
    stack, contacts = two_that_touch(3), dict[int, np.ndarray]()
    stack[1] = 255
    predictor, read = Predictor(network_of_brightness(), replace(SETTINGS, divisor=1, contacts=True)).for_volume(
        ArrayVolume(stack)
    )
    list(predictor.stream(read, range(3), on_contacts=contacts.__setitem__))
    assert [int((contacts[z] >= CONTACT).sum()) for z in range(3)] == [20, 0, 20]


def test_contacts_of_a_box_are_those_of_the_slice() -> None:
    predictor = Predictor(network_of_brightness(), replace(SETTINGS, divisor=1, contacts=True))
    stack, whole, box = two_that_touch(3), dict[int, np.ndarray](), dict[int, np.ndarray]()
    region = predictor.region(stack.shape[1:], (20, 50, 40, 70))
    y0, y1, x0, x1 = region.source
    list(predictor.stream(stack.__getitem__, range(3), on_contacts=whole.__setitem__))
    list(predictor.stream(lambda z: stack[z, y0:y1, x0:x1], range(3), range(1, 2), region, on_contacts=box.__setitem__))
    assert [*box] == [1]
    assert np.array_equal(box[1], whole[1][20:50, 40:70])

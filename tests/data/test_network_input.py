"""What a network sees of a slice: its grey values between two percentiles, without what is constant."""

from __future__ import annotations

import numpy as np
import pytest

from mitoflow.data import network_input


@pytest.fixture
def tissue() -> np.ndarray:
    return np.random.default_rng(0).normal(120, 20, (200, 300)).clip(0, 255).astype(np.uint8)


def test_percentiles_become_black_and_white(tissue: np.ndarray) -> None:
    low, high = network_input.grey_range(tissue)
    assert (low, high) == tuple(np.percentile(tissue, (1, 99)))
    seen = network_input.stretched(tissue, low, high)
    assert seen.dtype == np.uint8
    assert (seen[tissue <= low] == 0).all()
    assert (seen[tissue >= high] == 255).all()


def test_constant_areas_do_not_count(tissue: np.ndarray) -> None:
    padded = np.pad(tissue, 100)
    padded[:50] = 255
    assert network_input.grey_range(padded) == pytest.approx(network_input.grey_range(tissue), abs=3)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_gain_offset_and_type_change_nothing(tissue: np.ndarray, dtype: type) -> None:
    other: np.ndarray = (tissue.astype(dtype) * 100 - (0 if dtype is np.uint16 else 7000)).astype(dtype)
    expected = network_input.stretched(tissue, *network_input.grey_range(tissue))
    np.testing.assert_array_equal(network_input.stretched(other, *network_input.grey_range(other)), expected)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_slice_is_black(value: int) -> None:
    image = np.full((32, 32), value, np.uint8)
    assert not network_input.stretched(image, *network_input.grey_range(image)).any()


def test_missing_values_are_left_out(tissue: np.ndarray) -> None:
    image = tissue.astype(np.float32)
    image[:20] = np.nan
    low, high = network_input.grey_range(image)
    assert (low, high) == pytest.approx(network_input.grey_range(tissue), abs=3)
    assert np.isfinite(network_input.stretched(image, low, high)).all()
    nothing = np.full((8, 8), np.nan, np.float32)
    assert not network_input.stretched(nothing, *network_input.grey_range(nothing)).any()


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (200, 300), (3000, 2000)])
def test_a_slice_is_blank_where_it_has_one_value(shape: tuple[int, int]) -> None:
    image = np.full(shape, 7, np.float32)

    def is_blank() -> bool:
        return network_input.is_blank(lambda box: image[box[0] : box[1], box[2] : box[3]], shape)

    assert is_blank()
    image[0] = np.nan
    assert is_blank()
    if image.size > 1:
        image[-1, -1] = 8
        assert not is_blank()


def test_little_is_read_of_a_slice_that_is_not_blank(tissue: np.ndarray) -> None:
    boxes = []

    def read(box: network_input.Box) -> np.ndarray:
        boxes.append(box)
        return tissue[box[0] : box[1], box[2] : box[3]]

    assert not network_input.is_blank(read, (200, 300))
    (box,) = boxes
    assert (box[1] - box[0], box[3] - box[2]) == (network_input.PATCH, network_input.PATCH)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitoflow.io.resampling import resample, weights

LENGTHS = st.integers(1, 40)


@given(LENGTHS, LENGTHS, st.data())
def test_any_piece_is_that_piece_of_the_whole(length: int, size: int, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, size - 1))
    high = data.draw(st.integers(low + 1, size))
    values = np.random.default_rng(0).random(length, dtype=np.float32)
    whole = weights(length, size, 0, size)
    assert (whole.first, whole.last) <= (0, length)
    piece = weights(length, size, low, high)
    expected = (whole.matrix @ values[whole.first : whole.last])[low:high]
    np.testing.assert_allclose(piece.matrix @ values[piece.first : piece.last], expected, rtol=1e-5)
    np.testing.assert_allclose(piece.matrix.sum(axis=1), 1, rtol=1e-5)


def test_the_same_grid_changes_nothing() -> None:
    image = np.random.default_rng(0).random((7, 9), dtype=np.float32)
    np.testing.assert_allclose(resample(image, weights(7, 7, 0, 7), weights(9, 9, 0, 9)), image)


@pytest.mark.parametrize("factor", [2, 3, 0.5])
def test_a_ramp_stays_a_ramp_and_detail_is_averaged(factor: float) -> None:
    """Places are kept: pixel i of the new grid lies at (i + 1/2) / factor - 1/2 of the old one."""
    size = int(60 * factor)
    axis = weights(60, size, 0, size)
    places = (np.arange(size) + 0.5) / factor - 0.5
    inner = slice(int(2 * factor) + 2, -int(2 * factor) - 2)
    np.testing.assert_allclose((axis.matrix @ np.arange(60.0, dtype=np.float32))[inner], places[inner], rtol=1e-5)
    if factor < 1:
        stripes = (axis.matrix @ (np.arange(60) % 2).astype(np.float32))[inner]
        np.testing.assert_allclose(stripes, 0.5, atol=1e-6)

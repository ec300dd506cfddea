"""Components against those of scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from mitoflow.instances.components import label

masks = hnp.arrays(bool, (3, 5, 6))


@given(masks)
def test_components_are_those_that_scipy_connects_over_26_neighbours(mask):
    found = label(mask)
    expected, number = ndimage.label(mask, np.ones((3, 3, 3)))
    assert len(np.unique(np.stack([found, expected]).reshape(2, -1), axis=1).T) == len(np.unique(expected))
    assert np.array_equal(np.unique(found[mask]), np.arange(1, number + 1))
    assert not found[~mask].any()


def test_a_shared_corner_connects():
    mask = np.zeros((2, 2, 2), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1
    assert label(mask).max() == 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 5), (1, 9, 9), (3, 3, 3)])
def test_as_many_components_as_there_can_be(shape):
    corners, faces = np.zeros(shape, bool), np.indices(shape).sum(0) % 2 == 0
    corners[::2, ::2, ::2] = True
    assert label(corners).max() == corners.sum()
    assert label(faces, connectivity=6).max() == faces.sum()

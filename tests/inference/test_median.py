"""The median along z, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from mitoflow.inference.median import median_along_z


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("depth", [1, 2, 6, 9])
def test_the_median_along_z_is_that_of_the_slices_around(size: int, depth: int) -> None:
    maps = np.random.default_rng(0).random((depth, 40, 4), dtype=np.float32)  # more rows than are done at a time
    before, half = maps.copy(), size // 2
    got = np.stack(list(median_along_z(iter(maps), size)))
    np.testing.assert_array_equal(maps, before)
    wanted = np.stack([np.median(maps[max(0, z - half) : z + half + 1], axis=0) for z in range(depth)])
    np.testing.assert_array_equal(got, wanted)

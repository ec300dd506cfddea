"""Blocks tile a volume, and their growth shows each pair of neighbours to one of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitoflow.io.blocks import Grid, shape_of, within

lengths = st.tuples(*[st.integers(1, 5)] * 3)
grids = st.builds(Grid, lengths, lengths)


@given(grids)
def test_blocks_tile_the_volume(grid):
    seen = np.zeros(grid.shape, int)
    for place in grid.places():
        seen[grid.region(place)] += 1
    assert (seen == 1).all()
    assert len(list(grid.places())) == np.prod(grid.counts)


@given(grids, st.data())
def test_one_block_holds_the_lowest_place_of_two_neighbours_and_sees_both(grid, data):
    one = [data.draw(st.integers(0, length - 1)) for length in grid.shape]
    other = [data.draw(st.integers(max(at - 1, 0), min(at + 1, n - 1))) for at, n in zip(one, grid.shape, strict=True)]
    owners = [place for place in grid.places() if holds(grid.region(place), np.minimum(one, other))]
    assert len(owners) == 1
    assert holds(grid.grown(owners[0]), one)
    assert holds(grid.grown(owners[0]), other)


def holds(region, voxel) -> bool:
    return all(s.start <= at < s.stop for s, at in zip(region, voxel, strict=True))


@pytest.mark.slow
@given(grids, st.data())
def test_overlaps_are_the_parts_of_a_region_each_in_its_block(grid, data):
    ends = [sorted(data.draw(st.sets(st.integers(0, n), min_size=2, max_size=2))) for n in grid.shape]
    region = tuple(slice(*pair) for pair in ends)
    volume = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    found = np.zeros(shape_of(region), int) - 1
    for place, shared in grid.overlaps(region):
        block = volume[grid.region(place)]
        found[within(shared, region)] = block[within(shared, grid.region(place))]
    assert np.array_equal(found, volume[region])


def test_empty_volumes_and_blocks_are_refused():
    with pytest.raises(ValueError, match="blocks"):
        Grid((0, 3, 3))
    with pytest.raises(ValueError, match="blocks"):
        Grid((3, 3, 3), (1, 0, 1))

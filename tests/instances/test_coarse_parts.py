"""The cells of a component that is too large for memory, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mitoflow.instances.coarse_parts import CoarseParts
from mitoflow.io.blocks import Region, Shape
from mitoflow.io.spacing import Size

SHAPE = (9, 8, 30)
BOX = slice(3, 7), slice(0, 8), slice(10, 30)  # it touches the border at both ends of y, and at the end of x
VOXELS = [(3, 0, 10), (4, 0, 10), (5, 0, 10), (6, 7, 29)]


def coarse(box: Region, shape: Shape, largest: int, voxel_size: Size) -> tuple[CoarseParts, list[object]]:
    """The cells, each a part of its own, and what the split was given."""
    given: list[object] = []

    def split(counts: NDArray[np.int64], contacts: NDArray[np.int64], sides: Size) -> NDArray[np.int32]:
        given.extend((counts, contacts, sides))
        return np.arange(counts.size, dtype=np.int32).reshape(counts.shape)

    component, contacts = np.zeros(shape, bool), np.zeros(shape, bool)
    component[tuple(np.transpose(VOXELS))] = True
    contacts[3, 0] = True  # a row of voxels, of which one is of the component
    z, y, x = box
    middle = (x.start + x.stop) // 2
    regions = [(z, y, slice(x.start, middle)), (z, y, slice(middle, x.stop))]
    pieces = [(region, component[region], contacts[region]) for region in regions]
    return CoarseParts.of(pieces, box, shape, largest, voxel_size, split), given


def test_voxels_are_counted_in_cells_with_a_rim_where_the_volume_goes_on() -> None:
    parts, (counts, contacts, sides) = coarse(BOX, SHAPE, 100, (4.0, 2.0, 1.0))
    assert (parts.start, parts.cell, sides) == ((1, 0, 2), (2, 4, 8), (8.0, 8.0, 8.0))
    expected = np.zeros((4, 2, 4), np.int64)  # a rim before and behind z, none along y, one before x
    expected[1, 0, 1], expected[2, 0, 1], expected[2, 1, 3] = 2, 1, 1
    np.testing.assert_array_equal(counts, expected, strict=True)
    np.testing.assert_array_equal(contacts, expected // 2, strict=True)  # one of the two voxels of a cell


def test_each_voxel_has_the_part_of_its_cell() -> None:
    parts, _ = coarse(BOX, SHAPE, 100, (4.0, 2.0, 1.0))
    whole = parts.at((slice(0, 9), slice(0, 8), slice(0, 30)))
    assert whole.shape == SHAPE
    for voxel, cell in {
        (0, 0, 0): (0, 0, 0),  # before the first cell: its rim, which holds no part
        (3, 4, 10): (1, 1, 1),
        (4, 3, 17): (1, 0, 1),
        (5, 3, 18): (2, 0, 2),
        (8, 7, 29): (3, 1, 3),
    }.items():
        assert whole[voxel] == parts.parts[cell]
    np.testing.assert_array_equal(parts.at(BOX), whole[BOX])


@pytest.mark.parametrize(
    ("shape", "voxel_size", "largest", "cell"),
    [
        ((4, 4, 4), (1, 1, 1), 6 * 6 * 6, (1, 1, 1)),  # four cells and a rim on both sides
        ((4, 4, 4), (1, 1, 1), 6 * 6 * 6 - 1, (1, 1, 2)),
        ((1, 1, 5), (1, 1, 1), 3 * 3 * 5, (1, 1, 2)),  # a third cell for the fifth voxel
        ((1, 1, 5), (1, 1, 1), 3 * 3 * 5 - 1, (1, 1, 4)),
        ((8, 8, 8), (4, 2, 1), 100, (2, 4, 8)),
        ((8, 8, 8), (1, 4, 2), 100, (4, 2, 4)),
        ((2, 2, 2), (1, 1, 1), 1, (2, 2, 2)),  # a single cell is as large as the box
    ],
)
def test_the_shortest_side_is_doubled_until_few_cells_are_left(
    shape: Shape, voxel_size: Size, largest: int, cell: Shape
) -> None:
    box = slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
    parts = CoarseParts.of([], box, shape, largest, voxel_size, lambda counts, *_: counts.astype(np.int32))
    assert parts.cell == cell

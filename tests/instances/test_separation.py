"""Mitochondria of a mask: against scipy in one piece, against themselves in all blocks, and bodies of known shape."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

from mitoflow.config.params import Instances
from mitoflow.instances import components, separation
from mitoflow.instances.separation import Separation, distance_to_background, fill_holes, split_at_necks
from mitoflow.io.blocks import shape_of

EVERYTHING = Instances(smallest_um3=0, smallest_voxels=0, neck=0)

sides = st.integers(1, 7)
# Mostly mask, mostly background, and shells with specks in them.
masks = st.one_of(
    hnp.arrays(bool, st.tuples(st.integers(1, 5), sides, sides), elements=st.sampled_from([False, True, True, True])),
    hnp.arrays(bool, st.tuples(st.integers(1, 5), sides, sides), elements=st.sampled_from([False, False, False, True])),
    hnp.arrays(bool, st.tuples(*[st.integers(2, 5)] * 3), elements=st.sampled_from([False] * 8 + [True])).map(
        lambda specks: np.pad(specks, 1, constant_values=True)
    ),
)
blocks = st.tuples(*[st.integers(1, 7)] * 3)


def separate(mask: NDArray[np.bool_], **settings) -> tuple[NDArray[np.uint32], list[int]]:
    """The labels, and those from a coarser grid; every voxel must be written once."""
    labels, written = np.zeros(mask.shape, np.uint32), np.zeros(mask.shape, int)

    def write(region, block):
        assert block.dtype == np.uint32
        labels[region] = block
        written[region] += 1

    settings = {"criteria": Instances(), **settings}
    coarse = Separation(lambda region: mask[region], mask.shape, **settings).write(write)
    assert (written == 1).all()
    return labels, coarse


def same(labels: NDArray, others: NDArray) -> bool:
    """Both have the same parts, whatever their numbers; and both count from 1 without gaps."""
    parts = [len(np.unique(pair)) for pair in (labels, others)]
    pairs = len(np.unique(np.stack([labels.ravel(), others.ravel()]), axis=1).T)
    dense = [set(np.unique(part)) | {0} == set(range(int(part.max()) + 1)) for part in (labels, others)]
    return parts == [pairs, pairs] and all(dense) and np.array_equal(labels > 0, others > 0)


def in_one_piece(mask: NDArray[np.bool_], smallest: int, neck: float) -> NDArray[np.int64]:
    """The same with scipy, component by component."""
    filled = ndimage.binary_fill_holes(mask[0] if len(mask) == 1 else mask).reshape(mask.shape)
    found, number = ndimage.label(filled, np.ones((3, 3, 3)))
    labels = np.zeros(mask.shape, np.int64)
    for component in range(1, number + 1):
        alone = found == component
        if alone.sum() >= smallest:
            parts = split_at_necks(alone, neck, smallest)
            labels[alone] = parts[alone] + labels.max()
    return labels


@given(masks, st.integers(0, 6))
@example(np.array([[[True, False], [False, False]]]), 1)
def test_one_piece_is_filled_labelled_and_weighed_as_scipy_does(mask, smallest):
    assume(1 not in mask.shape[1:])  # scipy knows no axis without an outside
    labels, coarse = separate(mask, criteria=Instances(smallest_um3=smallest / 1e9, smallest_voxels=smallest, neck=0))
    if len(mask) == 1:  # the great circle of a ball of that volume
        smallest = math.ceil(math.pi * (0.75 * smallest / math.pi) ** (2 / 3))
    assert same(labels, in_one_piece(mask, smallest, 0))
    assert coarse == []


@pytest.mark.slow
@given(masks, blocks, st.integers(0, 6), st.sampled_from([0, 0.5, 0.8]), st.sampled_from([30, 1000]))
def test_labels_do_not_depend_on_the_blocks(mask, block, smallest, neck, largest):
    criteria = Instances(smallest_um3=smallest / 1e9, smallest_voxels=smallest, neck=neck)
    voxel_size = (1.0, 1.0, 1.0)
    whole, coarse = separate(mask, voxel_size=voxel_size, criteria=criteria, block=mask.shape, largest=largest)
    labels, coarse_too = separate(mask, voxel_size=voxel_size, criteria=criteria, block=block, largest=largest)
    assert same(labels, whole)
    assert {tuple(np.argwhere(whole == label)[0]) for label in coarse} == {
        tuple(np.argwhere(labels == label)[0]) for label in coarse_too
    }


@given(masks, st.tuples(*[st.floats(0.5, 50)] * 3))
def test_distances_are_those_of_scipy(mask, voxel_size):
    assume(not mask.all())
    expected = ndimage.distance_transform_edt(mask, sampling=voxel_size)
    np.testing.assert_allclose(distance_to_background(mask, voxel_size), expected, rtol=1e-6)
    flipped, expected = (np.moveaxis(array, 0, 2)[:, ::-1] for array in (mask, expected))  # not contiguous
    turned = (*voxel_size[1:], voxel_size[0])
    np.testing.assert_allclose(distance_to_background(flipped, turned), expected, rtol=1e-6)


def ball(shape, centre, radius) -> NDArray[np.bool_]:
    return (
        sum((axis - at) ** 2 for axis, at in zip(np.ogrid[tuple(map(slice, shape))], centre, strict=True)) <= radius**2
    )


def dumbbell(distance: float, radius: int = 8, thinner: int | None = None) -> NDArray[np.bool_]:
    """Two balls in a row along x, their middles this far apart."""
    shape = (20, 20, 50)
    return ball(shape, (10, 10, 12), radius) | ball(shape, (10, 10, 12 + distance), thinner or radius)


def test_touching_balls_are_two_and_a_waist_is_not():
    touching, waisted = dumbbell(15.5), dumbbell(10)
    assert components.label(touching).max() == 1
    labels, _ = separate(touching)
    assert labels.max() == 2
    for block in ((8, 7, 9), (20, 20, 20), (3, 30, 50)):
        assert same(separate(touching, block=block)[0], labels)
    assert np.array_equal(labels > 0, touching)
    assert len(np.unique(labels[..., :19])) == len(np.unique(labels[..., 21:])) == 2  # each with background
    assert separate(waisted)[0].max() == 1
    assert separate(waisted, criteria=Instances(neck=0.99))[0].max() == 2
    assert separate(touching, criteria=Instances(neck=0))[0].max() == 1


@pytest.mark.parametrize(("neck", "number"), [(0.4, 1), (0.7, 2)])
def test_the_neck_is_compared_with_the_thinner_part(neck, number):
    # The neck is 2 voxels thick, half of the 4 of the thinner ball and a quarter of the 8 of the other.
    assert split_at_necks(dumbbell(11.6, thinner=4), neck).max() == number


def test_a_neck_means_the_same_in_thin_voxels_and_in_thick_ones():
    touching, waisted = dumbbell(15.5)[::4], dumbbell(10)[::4]
    assert [split_at_necks(mask, 0.5, voxel_size=(4, 1, 1)).max() for mask in (touching, waisted)] == [2, 1]
    nm = {"voxel_size": (40.0, 10.0, 10.0), "criteria": Instances(smallest_um3=1e-4)}
    assert [separate(mask, **nm)[0].max() for mask in (touching, waisted)] == [2, 1]


def test_equal_heights_along_a_tube_are_one_mitochondrion():
    places = np.arange(60)
    tube = np.hypot(*np.ogrid[-10:11, -10:11])[..., None] <= 6 + (places % 10 < 5)
    assert split_at_necks(np.pad(tube, ((0, 0), (0, 0), (1, 1))), 0.5).max() == 1


def test_parts_too_small_stay_with_their_neighbour():
    mask = dumbbell(11.2, thinner=3)
    parts = np.bincount(split_at_necks(mask, 0.9)[mask])[1:]
    assert len(parts) == 2
    assert split_at_necks(mask, 0.9, smallest=min(parts)).max() == 2
    assert split_at_necks(mask, 0.9, smallest=min(parts) + 1).max() == 1
    assert np.array_equal(split_at_necks(mask, 0.9, smallest=min(parts) + 1) > 0, mask)


def test_what_the_border_cuts_is_not_thinner_there():
    tube = np.hypot(*np.ogrid[-10:11, -10:11]) <= 6
    assert separate(np.repeat(tube[None], 20, axis=0))[0].max() == 1
    assert separate(np.ones((8, 9, 10), bool))[0].max() == 1
    # Half of the dumbbell is out of sight: the neck is as thick as before.
    assert separate(dumbbell(15.5)[10:])[0].max() == 2
    assert separate(dumbbell(10)[10:])[0].max() == 1


def test_a_single_slice_is_filled_and_split_in_its_plane():
    discs = dumbbell(15.5)[10:11]
    discs[0, 10, 12] = False
    labels, _ = separate(discs, criteria=Instances(smallest_um3=1e-4), voxel_size=(5.0, 5.0, 5.0))
    assert labels.max() == 2
    assert labels[0, 10, 12] > 0


def shell(shape=(9, 9, 9)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    mask[2:-2, 2:-2, 2:-2] = False
    return mask


def test_a_void_is_filled_and_a_tunnel_is_not():
    closed, tunnel, cut = shell(), shell(), shell()[2:]
    tunnel[:, 4, 4] = False
    assert fill_holes(closed).sum() == 7**3
    assert np.array_equal(fill_holes(tunnel), tunnel)
    assert np.array_equal(fill_holes(cut), cut)
    assert fill_holes(cut, axes=(1, 2)).sum() == 6 * 49


@pytest.mark.parametrize("block", [(9, 9, 9), (4, 4, 4), (1, 9, 9), (9, 9, 1), (2, 3, 1)])
def test_a_speck_in_a_void_is_part_of_what_is_around_it(block):
    mask = shell()
    mask[4, 4, 4] = True
    labels, _ = separate(mask, criteria=EVERYTHING, block=block)
    assert labels.max() == 1
    assert np.count_nonzero(labels) == 7**3


def test_small_is_a_volume_in_nm_or_voxels_where_that_is_unknown():
    mask = np.zeros((12, 12, 30), bool)
    mask[1:11, 1:11, 1:11] = True  # 1000 voxels
    mask[1:6, 1:6, 20:25] = True  # 125
    assert separate(mask)[0].max() == 1
    assert separate(mask, criteria=Instances(smallest_voxels=125))[0].max() == 2
    assert separate(mask, criteria=Instances(smallest_voxels=126))[0].max() == 1
    assert separate(mask, voxel_size=(20.0, 20.0, 20.0))[0].max() == 2  # 1e6 nm³ are 125 voxels
    assert separate(mask, voxel_size=(20.0, 20.0, 19.0))[0].max() == 1


def test_small_in_a_single_slice_is_what_the_middle_of_a_small_ball_is():
    disc, smaller = (np.hypot(*np.ogrid[-9:10, -9:10]) <= radius for radius in (6.25, 4.5))
    mask = np.concatenate([disc, smaller], axis=1)[None]  # 121 and 69 pixels; a ball of 500 voxels has 77
    assert separate(mask)[0].max() == 1
    assert separate(mask, voxel_size=(1.0, 10.0, 10.0))[0].max() == 1  # 12,090 nm² are 121 pixels
    assert separate(mask, voxel_size=(1.0, 10.0, 9.0))[0].max() == 0
    assert separate(mask, voxel_size=(1.0, 20.0, 20.0))[0].max() == 2
    assert separate(mask, voxel_size=(5.0, 5.0, 5.0))[0].max() == 0


@pytest.mark.parametrize(("block", "largest"), [((40, 80, 120), 40_000), ((13, 22, 31), 45_000)])
def test_what_is_too_large_is_split_on_a_coarser_grid_and_named(block, largest):
    shape = (40, 80, 120)
    left, right = (ball(shape, (20, 20, at), 16) for at in (20, 50))  # necks of 0.35 times the radius
    alone = ball(shape, (20, 60, 100), 12)
    mask = left | right | alone
    mask[20, 20, 20] = False  # a hole, which would be filled
    # The two have a box of 69,000 voxels: cells are twice as long along x and y, or along x alone.
    labels, coarse = separate(mask, block=block, largest=largest)
    assert labels.max() == 3
    assert sorted(coarse) == [labels[20, 20, 15], labels[20, 20, 55]]
    assert np.array_equal(labels > 0, mask)
    assert (labels[:, :, :34][left[:, :, :34]] == labels[20, 20, 15]).mean() > 0.99
    assert (labels[:, :, 36:60][right[:, :, 36:60]] == labels[20, 20, 55]).mean() > 0.97
    # Of the two, of 17,000 voxels each, both are large enough, though they have fewer cells.
    assert separate(mask, block=block, largest=largest, criteria=Instances(smallest_voxels=10_000))[0].max() == 2


@pytest.mark.parametrize(("largest", "parts"), [(20_000, 2), (2_000, 1)])
def test_contacts_count_on_the_coarser_grid_where_they_fill_half_of_a_cell(largest, parts):
    mask, contacts = np.zeros((2, 20, 60, 100), bool)
    mask[2:18, 10:50, 10:90] = True
    contacts[:, :, 50] = True
    # Cells of the component are 2 or 4 voxels long along x, so that contacts fill a half of them or a quarter.
    labels, coarse = separate(mask, largest=largest, contacts=lambda region: contacts[region])
    assert sorted(coarse) == [*range(1, parts + 1)]
    assert np.array_equal(labels > 0, mask)
    assert (labels[10, 30, 30] == labels[10, 30, 70]) == (parts == 1)


def test_components_that_are_too_large_have_labels_of_their_own():
    shape = (30, 30, 100)
    balls = [ball(shape, (15, 15, at), 12) for at in (15, 45, 75)]
    labels, coarse = separate(np.logical_or.reduce(balls), block=(30, 30, 40), largest=10_000)
    assert coarse == [1, 2, 3]
    assert {tuple(np.unique(labels[one])) for one in balls} == {(1,), (2,), (3,)}


def test_of_three_parts_the_one_that_is_too_small_joins_its_neighbour():
    small, left, right = (6, 12, 6), (12, 12, 17), (12, 12, 36)
    balls = [ball((24, 24, 60), centre, radius) for centre, radius in ((small, 4), (left, 10), (right, 10))]
    chain = np.logical_or.reduce(balls)
    parts = split_at_necks(chain, 0.8)
    assert (parts[small], parts[left], parts[right]) == (1, 2, 3)
    parts = split_at_necks(chain, 0.8, smallest=1000)
    assert (parts[small], parts[left], parts[right]) == (1, 1, 2)
    assert np.array_equal(parts > 0, chain)


def test_what_is_too_large_and_thin_is_left_out_where_it_has_too_few_voxels():
    mask = np.zeros((30, 30, 30), bool)
    mask[range(30), range(30), range(30)] = True
    assert separate(mask, largest=1000)[0].max() == 0
    labels, coarse = separate(mask, largest=1000, criteria=Instances(smallest_voxels=30))
    assert coarse == [1]
    assert np.array_equal(labels, mask)


def test_no_more_is_read_at_once_than_a_grown_block_or_the_largest_box():
    mask, sizes = dumbbell(15.5), []

    def read(region):
        sizes.append(np.prod(shape_of(region)))
        return mask[region]

    Separation(read, mask.shape, criteria=Instances(), block=(5, 5, 5), largest=1000).write(lambda region, labels: None)
    assert max(sizes) <= 1000


def test_a_mask_in_memory_is_separated_by_the_same_rules():
    mask = np.zeros((12, 12, 60), bool)
    mask[1:11, 1:11, 1:11] = mask[1:11, 1:11, 40:50] = mask[1:6, 1:6, 20:25] = True
    criteria, voxel_size = Instances(smallest_um3=0.0015), (10.0, 10.0, 10.0)  # 1,500 voxels: none is as large
    assert separation.separate(mask, criteria, voxel_size).max() == 0
    for known in (None, (20.0, 20.0, 20.0)):
        found = separation.separate(mask, criteria, known)
        assert found.dtype == np.uint32
        assert np.array_equal(found, separate(mask, criteria=criteria, voxel_size=known)[0])
        assert found.max() == 2


def test_a_limit_that_is_no_whole_number_of_voxels_is_rounded_up():
    criteria = Instances(smallest_um3=0.001, smallest_voxels=77)
    for shape in ((2, 9, 9), (9, 9, 9)):  # of two slices, too, a volume
        assert separation.fewest_voxels(criteria, shape, (10.0, 10.0, 3.0)) == 3334
        assert separation.fewest_voxels(criteria, shape, (5.0, 5.0, 5.0)) == 8000
        assert separation.fewest_voxels(criteria, shape, None) == 77


def test_a_gap_across_an_edge_alone_closes_a_hole_and_the_ends_of_two_slices_do_not():
    ring = np.zeros((7, 7), bool)
    ring[1:6, 1:6] = True
    ring[3, 3] = ring[1, 1] = ring[2, 2] = False  # from the hole to the outside by edges alone
    one = fill_holes(ring[None], axes=(1, 2))[0]
    assert np.array_equal(one, ring | (np.indices((7, 7)) == 3).all(axis=0) | (np.indices((7, 7)) == 2).all(axis=0))
    two = np.stack([ring, ring])
    labels, _ = separate(two, criteria=EVERYTHING)
    assert np.array_equal(labels > 0, two)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_without_a_voxel_size_voxels_are_cubes(axis):
    """A plate of six voxels with a waist of four: two where the voxels are twice as long across the plate."""
    plate = np.zeros((8, 42, 60), bool)
    plate[1:7, 1:41, 1:59] = True
    plate[:, :, 28:32] = False
    plate[1:7, 19:23, 28:32] = True
    plate, sizes = np.moveaxis(plate, 0, axis), [1.0, 1.0, 1.0]
    criteria = Instances(smallest_voxels=1, smallest_um3=0)
    assert separate(plate, criteria=criteria)[0].max() == 1
    sizes[axis] = 2.0
    assert separate(plate, criteria=criteria, voxel_size=tuple(sizes))[0].max() == 2


def test_a_speck_in_a_void_is_absorbed_and_its_neighbours_are_not():
    mask = np.zeros((30, 30, 30), bool)
    mask[10:20, 10:20, 10:20] = True
    mask[12:18, 12:18, 12:18] = False
    mask[15, 15, 15] = True
    neighbours = [(8, 15, 15), (21, 15, 15), (15, 8, 15), (15, 21, 15), (15, 15, 8), (15, 15, 21)]
    mask[tuple(np.transpose(neighbours))] = True
    labels, _ = separate(mask, criteria=EVERYTHING)
    assert labels.max() == 7
    assert labels[15, 15, 15] == labels[10, 10, 10] == labels[13, 13, 13]
    assert len({labels[place] for place in neighbours}) == 6


def test_no_mitochondria():
    labels, coarse = separate(np.zeros((3, 4, 5), bool), block=(2, 2, 2))
    assert not labels.any()
    assert coarse == []


@pytest.mark.parametrize("wrong", [{"neck": 1}, {"neck": -0.1}, {"smallest_um3": -1}, {"neck": float("nan")}])
def test_criteria_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="Input should be"):
        Instances(**wrong)


def test_a_line_of_contacts_divides_where_there_is_no_neck():
    """A bar of 10 x 40: without a neck it is one, and a line across its middle makes two of 200 pixels each."""
    bar = np.zeros((1, 14, 44), bool)
    bar[:, 2:12, 2:42] = True
    line = np.zeros_like(bar)
    line[:, :, 21:23] = True
    assert separation.separate(bar, Instances()).max() == 1
    parts = separation.separate(bar, Instances(), contacts=line)
    assert np.bincount(parts[bar]).tolist() == [0, 200, 200]
    assert parts[0, 6, 5] != parts[0, 6, 38]
    assert separation.separate(bar, Instances(neck=0), contacts=line).max() == 1


def test_contacts_everywhere_or_in_the_background_divide_nothing():
    bar = np.zeros((1, 14, 44), bool)
    bar[:, 2:12, 2:42] = True
    for contacts in (np.ones_like(bar), ~bar):
        assert np.array_equal(separation.separate(bar, Instances(), contacts=contacts), bar)


def test_parts_that_contacts_divide_are_large_enough():
    """Without the markers of small parts, pixels in contact are flooded in another order, and a large part shrinks."""
    contacts = np.zeros((1, 5, 8), bool)
    contacts[0, 1:4, 1:7] = [[1, 1, 1, 0, 1, 1], [0, 1, 0, 1, 1, 0], [1, 1, 0, 1, 0, 1]]
    component = np.zeros(contacts.shape, bool)
    component[0, 1:4, 1:7] = True
    assert np.bincount(separation.split_at_necks(component, 0.6, 1, contacts=contacts)[component]).max() >= 6
    assert np.array_equal(separation.split_at_necks(component, 0.6, 6, contacts=contacts), component)


@given(masks, masks, blocks)
def test_contacts_divide_alike_in_any_blocks(mask, drawn, block):
    contacts = np.zeros(mask.shape, bool)
    corner = tuple(slice(0, min(sides)) for sides in zip(mask.shape, drawn.shape, strict=True))
    contacts[corner] = drawn[corner]
    whole, parts = (
        separate(
            mask, criteria=EVERYTHING.model_copy(update={"neck": 0.6}), block=size, contacts=lambda at: contacts[at]
        )[0]
        for size in ((8, 8, 8), block)
    )
    assert same(whole, parts)

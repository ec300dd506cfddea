"""Boundary counts against distances between all pixels, and what a tolerance of two pixels means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

from mitoflow.evaluation import boundary, metrics
from mitoflow.evaluation.bootstrap import bootstrap_interval

masks = hnp.arrays(bool, (2, 7, 9))


def boundary_pixels(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Foreground pixels beside background, one by one."""
    beside = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        neighbours = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [(j, i) for j, i in neighbours if 0 <= j < mask.shape[0] and 0 <= i < mask.shape[1]]
        beside[y, x] = any(not mask[place] for place in inside)
    return np.argwhere(beside)


def near(places: NDArray[np.intp], others: NDArray[np.intp], tolerance: int) -> int:
    """How many of the places have one of the others within the tolerance."""
    return int((cdist(places, others) <= tolerance).any(axis=1).sum()) if len(places) and len(others) else 0


@given(masks, masks, st.integers(0, 4))
def test_counts_are_those_of_all_distances(truth, prediction, tolerance):
    for t, p, counts in zip(truth, prediction, boundary.count(truth, prediction, tolerance), strict=True):
        true, predicted = boundary_pixels(t), boundary_pixels(p)
        added, missed = np.argwhere(p & ~t), np.argwhere(t & ~p)
        assert counts.tolist() == [
            *(len(predicted), near(predicted, true, tolerance)),
            *(len(true), near(true, predicted, tolerance)),
            len(added) + len(missed),
            near(added, np.argwhere(t), tolerance) + near(missed, np.argwhere(~t), tolerance),
        ]


@given(masks, masks)
def test_scores_are_shares_and_f1_does_not_know_which_is_which(truth, prediction):
    counts, swapped = boundary.count(truth, prediction), boundary.count(prediction, truth)
    for rows in (counts, counts.sum(0)):
        for score in (metrics.boundary_f1, metrics.error_near_boundary):
            assert np.all((score(rows) >= 0) & (score(rows) <= 1))
    assert np.array_equal(metrics.boundary_f1(counts), metrics.boundary_f1(swapped))
    assert np.array_equal(metrics.boundary_f1(boundary.count(truth, truth)), [1, 1])


def square(shift: int = 0, grow: int = 0) -> NDArray[np.uint8]:
    mask = np.zeros((1, 40, 40), np.uint8)
    mask[0, 10 - grow : 30 + grow, 10 + shift - grow : 30 + shift + grow] = 1
    return mask


@pytest.mark.parametrize(("shift", "score", "share"), [(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 42 / 76, 84 / 120)])
def test_a_shift_by_the_tolerance_is_forgiven_and_more_is_not(shift, score, share):
    counts = boundary.count(square(), square(shift)).sum(0)
    assert metrics.boundary_f1(counts) == pytest.approx(score)
    assert metrics.error_near_boundary(counts) == pytest.approx(share)


@pytest.mark.parametrize("grow", [-4, 4])
def test_band_is_as_wide_inside_as_outside(grow):
    """Of a frame of four pixels, the two beside the boundary are near."""
    _, _, _, _, wrong, wrong_near = boundary.count(square(), square(grow=grow))[0]
    edges = {-4: (20**2 - 16**2, 20**2 - 12**2), 4: (24**2 - 4 * 3 - 20**2, 28**2 - 20**2)}  # round corners outside
    assert (wrong_near, wrong) == edges[grow]


@pytest.mark.parametrize("shift", [0, 2, 3])
def test_what_lies_within_the_tolerance_of_the_boundary_does_not_count(shift):
    """Of the square of 20 pixels the inner 16 count; a shift by three leaves a strip of one wrong inside them."""
    strip = max(shift - 2, 0)
    found, added, missed, right = boundary.count_off_boundary(square(), square(shift))[0]
    assert (found, added, missed) == (16 * (16 - strip), 20 * strip, 16 * strip)
    assert found + added + missed + right == 40**2 - (24**2 - 4 * 3 - 16**2)  # the band has round corners outside
    assert metrics.SCORES["dice_off_boundary"](np.array([30, 10, 10, 9])) == 60 / 80


def test_the_frame_of_a_slice_is_no_boundary():
    whole, left = np.ones((1, 8, 8), bool), np.zeros((1, 8, 8), bool)
    left[..., :3] = True
    assert boundary.count(whole, whole)[0].tolist() == [0] * 6
    assert boundary.count(left, left)[0].tolist() == [8, 8, 8, 8, 0, 0]
    assert boundary.count(left, whole)[0].tolist() == [0, 0, 8, 0, 40, 16]


def test_the_edge_of_what_was_looked_at_is_no_boundary():
    """The masks of the test above, in a box of a larger slice that nobody looked at."""
    box = np.s_[:, 2:10, 3:11]
    whole, left, looked_at = (np.zeros((1, 12, 14), bool) for _ in range(3))
    whole[box] = left[:, 2:10, 3:6] = looked_at[box] = True
    assert boundary.count(whole, whole, looked_at=looked_at)[0].tolist() == [0] * 6
    assert boundary.count(left, left, looked_at=looked_at)[0].tolist() == [8, 8, 8, 8, 0, 0]
    assert boundary.count(left, whole, looked_at=looked_at)[0].tolist() == [0, 0, 8, 0, 40, 16]
    # The band is of two columns on each side of the boundary: one is left of the truth, and three beside it.
    assert boundary.count_off_boundary(left, whole, looked_at)[0].tolist() == [8, 24, 0, 0]


def test_a_box_that_was_looked_at_scores_as_if_it_were_cut_out():
    rng = np.random.default_rng(4)
    truth, prediction = (ndimage.zoom(rng.random((3, 6, 7)), (1, 5, 5), order=1) > 0.5 for _ in range(2))
    box = np.s_[:, 5:24, 4:30]
    looked_at = np.zeros(truth.shape, bool)
    looked_at[box] = True
    cut = boundary.count(truth[box], prediction[box])
    assert cut.all()
    assert np.array_equal(boundary.count(truth, prediction, looked_at=looked_at), cut)
    cut = boundary.count_off_boundary(truth[box], prediction[box])
    assert np.array_equal(boundary.count_off_boundary(truth, prediction, looked_at), cut)


def test_nothing_on_both_sides_scores_one_and_on_one_side_zero():
    nothing = np.zeros_like(square())
    assert metrics.boundary_f1(boundary.count(nothing, nothing)[0]) == 1
    assert metrics.error_near_boundary(boundary.count(nothing, nothing)[0]) == 1
    assert metrics.boundary_f1(boundary.count(nothing, square())[0]) == 0
    assert metrics.boundary_f1(boundary.count(square(), nothing)[0]) == 0
    assert metrics.error_near_boundary(boundary.count(nothing, square())[0]) == 0


def test_slices_add_up_and_are_drawn_as_pixels_are():
    rng = np.random.default_rng(0)
    truth = np.repeat(square(), 30, axis=0)
    prediction = np.concatenate([square(int(shift)) for shift in rng.integers(0, 6, 30)])
    counts = boundary.count(truth, prediction)
    interval = bootstrap_interval(counts, metrics.boundary_f1, block=3, resamples=500, seed=0)
    assert interval.value == metrics.boundary_f1(counts.sum(0))
    assert metrics.boundary_f1(counts).min() < interval.low < interval.value < interval.high < 1


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        boundary.count(np.zeros((2, 8, 8)), np.zeros((2, 8, 9)))

"""Where to label next: disagreement and choice by figures worked out by hand, and the windows of a small stack."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mitoflow.inference import suggestion
from mitoflow.inference.jobs import Prediction
from mitoflow.inference.model_input import ArrayVolume
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.suggestion import Windows, choose, disagreement, find_windows, shows_tissue

from .disks import disks


def test_disagreement_is_what_views_contradict_each_other_about() -> None:
    one, other = (np.array(row, np.float32) for row in ([1.0, 0.5, 1.0, 0.0], [0.0, 0.5, 0.5, 0.0]))
    # The last but one: the entropy of 3/4 is 0.811 bits, and the mean entropy of 1 and 1/2 is half a bit.
    of_three_quarters = -(3 / 4) * math.log2(3 / 4) - (1 / 4) * math.log2(1 / 4)
    expected = [1.0, 0.0, of_three_quarters - 0.5, 0.0]
    np.testing.assert_allclose(disagreement([one, other], 0.5), expected, atol=1e-6)
    # With a threshold of 0.2, a probability of 0.2 is as undecided as 0.5 was.
    shifted = [np.where(view == 0.5, np.float32(0.2), view) for view in (one, other)]
    np.testing.assert_allclose(disagreement(shifted, 0.2), expected, atol=1e-6)


def windows(*rows: tuple[int, int, int, float]) -> Windows:
    places = np.array([row[:3] for row in rows])
    return Windows(places, np.array([row[3] for row in rows]), shape=(64, 64))


def test_near_copies_of_a_chosen_window_count_less() -> None:
    """With a spacing of four slices, beside the window that is taken first.

    The same place one slice on keeps 1 - 3/4 = 0.25 of its worth, 0.1975; another place there 1 - 3/4 * 0.9 = 0.325,
    0.2275; another place two slices on 1 - 1/2 * 0.9 = 0.55, 0.33; and eight slices on all of it, 0.35.
    """
    found = windows((0, 0, 0, 0.8), (1, 0, 0, 0.79), (1, 0, 64, 0.7), (2, 0, 64, 0.6), (8, 0, 0, 0.35))
    assert choose(found, 3, spacing=4) == [0, 4, 3]


def test_equals_are_taken_by_slice_and_spread_in_any_order_of_the_windows() -> None:
    places = [(z, y, x) for z in range(8) for y in (0, 64) for x in (0, 64)]
    for order in (np.arange(32), np.random.default_rng(0).permutation(32)):
        for worth in (0.5, 0.0):
            found = windows(*((*places[place], worth) for place in order))
            assert found.places[choose(found, 4, spacing=2)].tolist() == [[0, 0, 0], [2, 0, 0], [4, 0, 0], [6, 0, 0]]


def test_a_single_slice_gives_as_many_windows_as_it_has() -> None:
    assert choose(windows((0, 0, 0, 0.1), (0, 0, 64, 0.2), (0, 64, 0, 0.3)), 4, spacing=1 / 4) == [2, 1, 0]


def test_a_window_that_is_half_padding_shows_no_tissue() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.float32)
    assert shows_tissue(image)
    for padding in (0, np.nan):
        image[:, 20:] = padding
        assert not shows_tissue(image)


def test_slices_come_from_all_over_a_stack_without_blank_ones() -> None:
    assert suggestion.slices_to_look_at(6, frozenset({0, 3}), 1) == [1, 2, 4, 5]
    looked_at = suggestion.slices_to_look_at(1000, frozenset(range(100)), 2)
    assert len(looked_at) == 2 * suggestion.LOOKED_AT
    assert min(looked_at) >= 100
    assert max(np.diff(looked_at)) <= 28  # 900 slices in 33 steps


@pytest.mark.parametrize(("length", "expected"), [(40, [0]), (64, [0]), (128, [0, 64]), (150, [0, 64, 86])])
def test_windows_cover_an_axis(length: int, expected: list[int]) -> None:
    assert suggestion.window_starts(length, 64) == expected


def test_windows_of_a_stack_leave_out_padding(finder: Predictor) -> None:
    stack = disks(6, (2, 100, 128)) + np.random.default_rng(0).integers(0, 9, (2, 100, 128), np.uint8)
    stack[1, :, :70] = 0
    volume, done = ArrayVolume(stack), list[int]()
    prediction = Prediction(volume, (100, 128), suggestion.committee(finder))
    found = find_windows(volume, prediction, [0, 1], side=64, advance=done.append)
    assert found.places.tolist() == [[0, 0, 0], [0, 0, 64], [0, 36, 0], [0, 36, 64], [1, 0, 64], [1, 36, 64]]
    assert done == [1, 1]
    (whole,) = prediction.maps(suggestion.Part(range(1), (0, 100, 0, 128)))
    assert found.disagreement[3] == pytest.approx(whole[36:, 64:].mean())
    assert found.part(3) == suggestion.Part(range(1), (36, 100, 64, 128))

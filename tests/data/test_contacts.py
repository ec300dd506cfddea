"""Where two mitochondria touch, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mitoflow.data.contacts import find_contacts
from mitoflow.data.network_input import UNLABELLED


def test_the_two_pixels_on_both_sides_of_a_contact_are_one() -> None:
    labels = np.zeros((9, 12), np.uint16)
    labels[3:6, 1:6], labels[3:6, 6:11] = 7, 300
    expected = np.full((9, 12), UNLABELLED)
    expected[3:6, 1:11] = [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    assert np.array_equal(find_contacts(labels), expected)


@pytest.mark.parametrize(("gap", "touching"), [(0, 4), (1, 2), (2, 0)])
def test_a_gap_of_one_pixel_is_still_a_contact(gap: int, touching: int) -> None:
    labels = np.zeros((1, 20), np.uint8)
    labels[0, 2:8] = 1
    labels[0, 8 + gap : 14 + gap] = 2
    assert np.count_nonzero(find_contacts(np.repeat(labels, 9, 0))[4] == 1) == touching


def test_numbers_may_be_large_and_background_may_be_missing() -> None:
    labels = np.repeat(np.array([[5, 5, 5, 4_000_000_000, 4_000_000_000, 4_000_000_000]], np.uint32), 5, 0)
    assert find_contacts(labels)[2].tolist() == [0, 1, 1, 1, 1, 0]


def test_mitochondria_that_touch_nothing_have_no_contact() -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[2:8, 2:8], labels[12:18, 12:18] = 1, 2
    assert set(np.unique(find_contacts(labels)).tolist()) == {0, UNLABELLED}
    assert find_contacts(np.zeros((4, 4), np.uint8)).tolist() == [[UNLABELLED] * 4] * 4

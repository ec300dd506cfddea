"""How sets are read: what several of them have in common."""

import pytest

from mitoflow.data.conventions import Conventions, mean_pixel_size


def test_the_mean_pixel_size_is_that_of_the_sets_that_know_it() -> None:
    sets = [
        Conventions(8, "nonzero", {"z": 30.0, "y": 4.0, "x": 4.0}),
        Conventions(8, "nonzero", {"y": 16.0, "x": 9.0}),
        Conventions(8, "nonzero"),
        Conventions(8, "nonzero", {"z": 50.0}),
    ]
    assert mean_pixel_size(sets) == pytest.approx({"y": 8.0, "x": 6.0})  # the square roots of 4 * 16 and 4 * 9


def test_no_pixel_size_is_known() -> None:
    assert mean_pixel_size([Conventions(8, "nonzero", {"z": 50.0})]) == {}

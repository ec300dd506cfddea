"""Strokes of a brush: which voxels they mark, and what a browser may send."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mitoflow.apps.page.strokes import Stroke
from mitoflow.errors import InputError

VALID = {"z": 1, "radius": 2, "erases": False, "points": [[3, 4], [10, 4]]}
SHAPE = (5, 20, 30)


def test_a_stroke_marks_what_is_within_its_radius() -> None:
    plane = np.zeros(SHAPE[1:], np.uint8)
    Stroke.read(VALID, SHAPE).draw(plane)
    y, x = np.mgrid[:20, :30]
    expected = (y - 4) ** 2 + (x - np.clip(x, 3, 10)) ** 2 <= 2**2
    np.testing.assert_array_equal(plane, np.where(expected, 255, 0))


def test_a_slanted_stroke_has_no_gaps_and_erases_what_it_drew() -> None:
    stroke = Stroke(0, 0, False, ((2, 3), (17, 9)))
    plane = np.zeros(SHAPE[1:], np.uint8)
    stroke.draw(plane)
    assert [np.flatnonzero(plane[:, x]).tolist() for x in (2, 17)] == [[3], [9]]
    assert (plane.sum(0) > 0).nonzero()[0].tolist() == list(range(2, 18))
    Stroke(0, 0, True, stroke.points[::-1]).draw(plane)
    Stroke(0, 1, True, stroke.points).draw(plane)
    assert not plane.any()


def test_a_stroke_may_leave_the_slice() -> None:
    plane = np.zeros(SHAPE[1:], np.uint8)
    Stroke(0, 3, False, ((-40, 10), (-2, 10), (31, 10))).draw(plane)
    assert (plane[10] == 255).all()
    assert not plane[:7].any()


@pytest.mark.parametrize(
    "change",
    [
        {"z": 5},
        {"z": -1},
        {"z": 1.0},
        {"z": True},
        {"radius": 501},
        {"radius": "2"},
        {"erases": 1},
        {"points": []},
        {"points": [[1]]},
        {"points": [[1, None]]},
        {"points": [[1, 10**9]]},
        {"points": [[0, 0]] * 10_001},
        {"points": "ab"},
    ],
    ids=str,
)
def test_what_is_no_stroke_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected a line on a slice"):
        Stroke.read(VALID | change, SHAPE)

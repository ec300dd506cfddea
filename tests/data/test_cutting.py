"""Slices in patches, and stacks split into training and validation."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mitoflow.data import cutting
from mitoflow.data.patches import owned


@given(rows=st.integers(64, 200), columns=st.integers(64, 200), step=st.sampled_from([24, 48, 64]))
def test_owned_rectangles_put_the_slice_together_again(rows: int, columns: int, step: int) -> None:
    image = np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns)
    cut, boxes = cutting.cut(image, 64, step)
    inside = owned(boxes[:, 2:], 64)
    assert inside.sum() == image.size
    assert np.array_equal(np.sort(cut[inside]), np.sort(image.ravel()))


def test_edges_are_reflected() -> None:
    image = np.arange(64 * 80, dtype=np.int64).reshape(64, 80)
    cut, boxes = cutting.cut(image, 64, 64)
    assert boxes.tolist() == [[0, 0, 0, 64, 0, 64], [0, 64, 0, 64, 0, 16]]
    assert np.array_equal(cut[1][:, 16:32], image[:, 63:79][:, ::-1])


def test_split_leaves_a_gap_and_never_mixes_neighbours() -> None:
    sides = cutting.split([20, 3], fraction=0.25, gap=3)
    assert sides["validation"] == [(0, z) for z in range(15, 20)]
    assert sides["train"] == [(0, z) for z in range(12)] + [(1, z) for z in range(3)]


def test_a_stack_is_split_where_both_sides_get_a_slice() -> None:
    """Of 5 slices 1 validates, 3 are left out and 1 trains; of 4 none is left to train."""
    assert cutting.split([5], fraction=0.25, gap=3) == {"train": [(0, 0)], "validation": [(0, 4)]}
    assert cutting.split([4], fraction=0.25, gap=3) == {"train": [(0, z) for z in range(4)], "validation": []}
    assert cutting.split([3], fraction=0.01, gap=0) == {"train": [(0, 0), (0, 1)], "validation": [(0, 2)]}
    assert cutting.split([2, 1, 1], fraction=0.5, gap=0) == {
        "train": [(0, 0), (1, 0)],
        "validation": [(0, 1), (2, 0)],
    }


def test_single_pages_are_split_as_one_stack() -> None:
    sides = cutting.split([1] * 10, fraction=0.2, gap=1)
    assert sides["validation"] == [(8, 0), (9, 0)]
    assert sides["train"] == [(i, 0) for i in range(7)]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.floats(0.01, 0.99), st.integers(0, 5))
def test_split_keeps_the_gap_in_every_stack(depths: list[int], fraction: float, gap: int) -> None:
    sides = cutting.split(depths, fraction, gap)
    assert not set(sides["train"]) & set(sides["validation"])
    for stack, depth in enumerate(depths):
        train = [z for i, z in sides["train"] if i == stack]
        held_out = [z for i, z in sides["validation"] if i == stack]
        if depth > 1 and held_out:
            assert min(held_out) - max(train) == gap + 1
        elif depth > 1:
            assert train == list(range(depth))

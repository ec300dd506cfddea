"""Centrelines of bodies whose length, branches and thickness are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

from mitoflow.instances.components import label
from mitoflow.instances.skeletons import measure_skeleton

Z, Y, X = np.ogrid[:30, :80, :140]
CUBES = (1.0, 1.0, 1.0)


def rod(start: tuple[int, int], stop: tuple[int, int], radius: float = 7) -> NDArray[np.bool_]:
    """A rod with round ends in the middle slice, from (y, x) to (y, x)."""
    along = np.subtract(stop, start)
    share = np.clip(((Y - start[0]) * along[0] + (X - start[1]) * along[1]) / (along @ along), 0, 1)
    y, x = start[0] + share * along[0], start[1] + share * along[1]
    return (Z - 15) ** 2 + (Y - y) ** 2 + (X - x) ** 2 <= radius**2


@pytest.mark.parametrize("stop", [(40, 120), (70, 110)])
@pytest.mark.parametrize("depth", [30, 1])
def test_a_rod_is_one_branch(stop: tuple[int, int], depth: int) -> None:
    body = rod((40, 20), stop)[:depth] if depth > 1 else rod((40, 20), stop)[15:16]
    found = measure_skeleton(body, CUBES)
    assert (found.branches, found.ends) == (1, 2)
    between = math.dist((40, 20), stop)
    assert between - 14 <= found.length <= 1.1 * (between + 14)
    assert found.diameter == pytest.approx(15, rel=0.2)


def test_lengths_have_the_unit_of_the_voxel_size() -> None:
    body = rod((40, 20), (40, 120))
    found, nanometres = (measure_skeleton(body, size) for size in (CUBES, (5.0, 5.0, 5.0)))
    assert nanometres.length == pytest.approx(5 * found.length)
    assert nanometres.diameter == pytest.approx(5 * found.diameter)
    thick = measure_skeleton(body[::3], (15.0, 5.0, 5.0))  # the same rod in slices that are thicker
    assert thick.length == pytest.approx(nanometres.length, rel=0.1)
    assert thick.diameter == pytest.approx(nanometres.diameter, rel=0.15)


@pytest.mark.parametrize(
    ("arms", "branches", "ends"),
    [
        ([((40, 20), (40, 120)), ((40, 70), (10, 70))], 3, 3),
        ([((40, 20), (40, 120)), ((10, 70), (70, 70))], 4, 4),
        ([((40, 10), (40, 130)), ((40, 40), (10, 40)), ((40, 100), (70, 100))], 5, 4),
    ],
)
def test_branches_and_ends_are_counted(
    arms: list[tuple[tuple[int, int], tuple[int, int]]], branches: int, ends: int
) -> None:
    body = np.any([rod(*arm, radius=6) for arm in arms], axis=0)
    for one in (body, body[15:16]):
        found = measure_skeleton(one, CUBES)
        assert (found.branches, found.ends) == (branches, ends)


def test_a_ring_has_no_end() -> None:
    ring = (np.hypot(Y - 40, X - 70) - 25) ** 2 + (Z - 15) ** 2 <= 6**2
    found = measure_skeleton(ring, CUBES)
    assert (found.branches, found.ends) == (1, 0)
    assert found.length == pytest.approx(2 * np.pi * 25, rel=0.1)


def test_a_rough_surface_makes_no_branches() -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(30, 80, 140)), 2)
    distance = np.sqrt((Z - 15) ** 2 + (Y - 40) ** 2 + (X - np.clip(X, 20, 120)) ** 2)
    labels = label(distance <= 8 + 1.5 * noise / noise.std())
    rough = labels == np.bincount(labels[labels > 0]).argmax()
    found = measure_skeleton(rough, CUBES)
    assert (found.branches, found.ends) == (1, 2)


def test_a_neck_that_smoothing_would_cut_stays() -> None:
    thread = (np.abs(Z - 15) <= 1) & (np.abs(Y - 40) <= 1) & (np.abs(X - 70) <= 50)
    found = measure_skeleton(rod((40, 20), (40, 30)) | rod((40, 110), (40, 120)) | thread, CUBES)
    assert (found.branches, found.ends) == (1, 2)
    assert found.length > 85


@given(hnp.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))))
def test_anything_has_a_centreline(mask: NDArray[np.bool_]) -> None:
    labels = np.pad(label(mask), ((0, 0) if len(mask) == 1 else (1, 1), (1, 1), (1, 1)))
    for name in range(1, int(labels.max()) + 1):
        found = measure_skeleton(labels == name, CUBES)
        assert found.branches >= 1
        assert found.length >= 0
        assert found.diameter >= 2

"""How far apart slices are, and when a network sees its neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from mitoflow.data import slice_distance
from mitoflow.data.slice_distance import SliceDistance, closest, is_as_close, neighbour_step


def tissue(depth: int, apart: float, side: int = 160, noise: float = 0.0) -> np.ndarray:
    """Return slices (Z, Y, X) uint8 of an isotropic texture, that many pixels apart."""
    random = np.random.default_rng(0)
    volume = ndimage.gaussian_filter(random.normal(size=(round(depth * apart) + 1, side, side)), 3)
    volume = volume[[round(z * apart) for z in range(depth)]]
    volume = volume / volume.std() + random.normal(size=volume.shape) * noise
    return np.asarray(np.clip(128 + 30 * volume, 0, 255), np.uint8)


def estimated(stack: np.ndarray) -> float | None:
    def read(z: int, box: tuple[int, int, int, int]) -> np.ndarray:
        y0, y1, x0, x1 = box
        return np.asarray(stack[z, y0:y1, x0:x1])

    return slice_distance.estimate(read, stack.shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("apart", [1, 2, 3, 5])
def test_the_distance_of_slices_is_that_of_pixels_as_much_alike(apart: float, noise: float) -> None:
    assert estimated(tissue(8, apart, noise=noise)) == pytest.approx(apart, rel=0.2)


def test_slices_that_show_different_things_are_infinitely_far_apart() -> None:
    assert estimated(tissue(6, 40)) == math.inf


def test_common_padding_makes_no_slices_alike() -> None:
    padded = np.pad(tissue(6, 40), ((0, 0), (0, 60), (0, 60)))
    assert estimated(padded) in (math.inf, None)


def test_a_damaged_slice_changes_little() -> None:
    stack = tissue(12, 2)
    whole = estimated(stack)
    stack[6] = np.random.default_rng(1).integers(0, 256, stack.shape[1:])
    assert estimated(stack) == pytest.approx(whole, rel=0.3)


@pytest.mark.parametrize(
    "stack",
    [
        np.zeros((4, 64, 64), np.uint8),
        np.random.default_rng(0).integers(0, 256, (4, 64, 64), np.uint8),
        tissue(1, 1),
        tissue(4, 1)[:, :20, :20],
    ],
    ids=["constant", "noise", "one slice", "small"],
)
def test_nothing_is_said_of_what_does_not_show_it(stack: np.ndarray) -> None:
    assert estimated(stack) is None


EPFL = SliceDistance(nm=5, pixels=1.1, pixel_nm=5)


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        (EPFL, 2),
        (SliceDistance(nm=3.3), 3),  # every third slice is 10 nm away
        (SliceDistance(nm=10), 1),
        (SliceDistance(nm=13), 1),
        (SliceDistance(nm=20), 0),
        (SliceDistance(nm=50, pixels=8.3, pixel_nm=4.6), 0),
        (SliceDistance(pixels=1.0), 2),
        (SliceDistance(pixels=0.5), 4),
        (SliceDistance(pixels=4.3), 0),
        (SliceDistance(pixels=4.3, pixel_nm=2.5), 1),  # 10.75 nm
        (SliceDistance(nm=5, pixels=math.inf), 0),  # nothing alike, whatever the file says
        (SliceDistance(), 0),
    ],
)
def test_neighbours_are_as_far_away_as_in_training(seen: SliceDistance, step: int) -> None:
    assert neighbour_step(2, EPFL, seen) == step
    assert neighbour_step(0, EPFL, seen) == 0


def test_any_related_slices_do_where_training_is_unknown() -> None:
    assert neighbour_step(2, None, SliceDistance(nm=50)) == 2
    assert neighbour_step(2, None, SliceDistance()) == 2
    assert neighbour_step(2, None, SliceDistance(pixels=math.inf)) == 0


def test_closer_slices_do_for_a_median_and_farther_ones_do_not() -> None:
    assert is_as_close(EPFL, EPFL)
    assert is_as_close(EPFL, SliceDistance(nm=2))
    assert not is_as_close(EPFL, SliceDistance(nm=30))


def test_the_closest_slices_are_learned() -> None:
    thick, thin, unrelated = SliceDistance(nm=50), SliceDistance(nm=5), SliceDistance(pixels=math.inf)
    assert closest([unrelated, thick, thin]) == thin
    assert closest([unrelated, SliceDistance()]) is None

"""Where crops come from: maps, scales, reflections and symmetries."""

import numpy as np
import pytest
from scipy import ndimage

from mitoflow.config.params import Scale
from mitoflow.data.network_input import UNLABELLED
from mitoflow.training import geometry


def smooth_image(shape: tuple[int, int]) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(shape), 3).astype(np.float32)


def random_maps(count: int, strength: float, seed: int = 0) -> np.ndarray:
    """Maps of a crop of 64 x 64, (count, 3, 3)."""
    rng = np.random.default_rng(seed)
    return np.stack([geometry.random_map((64, 64), strength, rng) for _ in range(count)])


def test_strength_zero_is_the_identity() -> None:
    maps = random_maps(4, 0.0)
    assert np.array_equal(maps, np.broadcast_to(np.eye(3), maps.shape))


def test_strength_one_has_the_seeds_ranges() -> None:
    size, maps = 64, random_maps(4000, 1.0)
    scale_x, scale_y = (np.linalg.norm(maps[:, :2, axis], axis=1) for axis in (0, 1))
    for scale in (scale_x, scale_y):
        assert scale.min() == pytest.approx(0.7, abs=0.01)
        assert scale.max() == pytest.approx(1.3, abs=0.01)
    centre = (size - 1) / 2
    shift = maps[:, :2] @ np.array([centre, centre, 1]) - centre
    assert np.linalg.norm(shift, axis=1).max() == pytest.approx(0.3 * size * np.sqrt(2), rel=0.05)
    angle = np.rad2deg(np.arctan2(-maps[:, 0, 1], maps[:, 1, 1]))  # of the y axis, which a flip may turn round
    assert np.mean(np.linalg.det(maps[:, :2, :2]) < 0) == pytest.approx(0.5, abs=0.05)
    unflipped = angle[(np.linalg.det(maps[:, :2, :2]) > 0) & (np.abs(angle) < 90)]
    assert unflipped.min() == pytest.approx(-90, abs=2)
    assert unflipped.max() == pytest.approx(90, abs=2)


def test_shifts_are_of_the_side_along_their_own_axis() -> None:
    """Of a crop of 40 rows and 200 columns up to 12 pixels along y and 60 along x, before it is turned."""
    rng, centre = np.random.default_rng(0), np.array([99.5, 19.5])
    shifts = []
    for _ in range(4000):
        drawn = geometry.random_map((40, 200), 1.0, rng)
        down = drawn[:2, 1] / np.linalg.norm(drawn[:2, 1])  # where the turn, or a flip and the turn, takes the y axis
        turn = np.array([[down[1], down[0]], [-down[0], down[1]]])
        shifts.append(turn.T @ (drawn[:2] @ [*centre, 1] - centre))
    assert np.abs(shifts).max(axis=0) == pytest.approx([60, 12], rel=0.01)


def test_half_strength_halves_the_ranges() -> None:
    full = random_maps(2000, 1.0)
    half = random_maps(2000, 0.5)
    spread = [np.abs(np.linalg.norm(maps[:, :2, 0], axis=1) - 1).max() for maps in (full, half)]
    assert spread[1] == pytest.approx(spread[0] / 2, rel=1e-6)


def reader(array: np.ndarray) -> geometry.Read:
    return lambda box: array[box[0] : box[1], box[2] : box[3]]


@pytest.mark.parametrize("corner", [(0, 0), (40, 70), (-30, 90), (96, -10)])
def test_a_crop_is_that_of_scipy(corner: tuple[int, int]) -> None:
    size, shape = 64, (128, 160)
    image = smooth_image(shape)
    mask = (image > 0).astype(np.uint8)
    for transform in (*random_maps(6, 1.0, seed=5), None):
        crop = geometry.Crop(corner, (size, size), transform, shape)
        to_slice = np.array([[1, 0, corner[1]], [0, 1, corner[0]], [0, 0, 1]]) @ (
            np.eye(3) if transform is None else transform
        )
        # scipy's axes are (y, x), the maps' are (x, y); its "reflect" is the one that repeats the edge pixel.
        matrix = to_slice[np.ix_([1, 0, 2], [1, 0, 2])]
        wanted = ndimage.affine_transform(image, matrix, order=1, mode="reflect", output_shape=(size, size))
        truth = ndimage.affine_transform(mask, matrix, order=0, mode="reflect", output_shape=(size, size))
        assert np.abs(crop.image(reader(image)) - wanted).max() < 0.02 * np.ptp(image)  # OpenCV counts in 1/32 px
        assert np.mean(crop.mask(reader(mask)) != truth) < 5e-3
        y0, y1, x0, x1 = crop.box
        assert 0 <= y0 < y1 <= shape[0]
        assert 0 <= x0 < x1 <= shape[1]


def test_a_crop_without_a_map_keeps_every_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 4096, (100, 90), dtype=np.uint16)
    assert np.array_equal(
        geometry.Crop((20, 13), (64, 64), None, image.shape).image(reader(image)), image[20:84, 13:77]
    )


def test_a_crop_larger_than_the_slice_reflects_it() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    crop = geometry.Crop((-22, -17), (64, 64), None, image.shape)
    assert np.array_equal(crop.image(reader(image))[22:42, 17:47], image)
    assert np.array_equal(crop.image(reader(image))[2:22, 17:47], image[::-1])


def test_all_eight_turns_come_and_are_turns() -> None:
    square = np.arange(9).reshape(3, 3)
    rng = np.random.default_rng(0)
    seen = {geometry.random_turn(square.shape, rng)(square).tobytes() for _ in range(200)}
    wanted = {
        each.tobytes() for turns in range(4) for each in (np.rot90(square, turns), np.rot90(square, turns)[:, ::-1])
    }
    assert seen == wanted


def scalings(count: int, **values: float) -> np.ndarray:
    """Scalings on every crop, (count, 2, 2)."""
    rng, scale = np.random.default_rng(0), Scale(share=1.0, **values)
    drawn = [geometry.random_scaling(scale, rng) for _ in range(count)]
    return np.stack([scaling for scaling in drawn if scaling is not None])


def test_scales_are_even_in_log_and_rotations_in_angle() -> None:
    drawn = scalings(4000, low=0.25, high=2.0, stretch=1.5)
    steps = np.sqrt(np.linalg.det(drawn))
    share_smaller = np.log(4) / np.log(8)  # of the range in log, from 1/4 to 2
    assert np.mean(steps > 1) == pytest.approx(share_smaller, abs=0.03)
    assert steps.min() == pytest.approx(1 / 2, rel=0.01)
    assert steps.max() == pytest.approx(4, rel=0.01)
    lengths = np.linalg.norm(drawn, axis=1)
    assert (lengths[:, 0] / lengths[:, 1]).max() == pytest.approx(1.5, rel=0.01)
    assert (lengths[:, 0] / lengths[:, 1]).min() == pytest.approx(1 / 1.5, rel=0.01)
    quarters = np.histogram(np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0]), 4, (-np.pi, np.pi))[0] / len(drawn)
    np.testing.assert_allclose(quarters, 0.25, atol=0.03)


def test_without_a_share_nothing_is_drawn() -> None:
    rng = np.random.default_rng(0)
    assert geometry.random_scaling(Scale(), rng) is None
    assert rng.random() == np.random.default_rng(0).random()
    drawn = [geometry.random_scaling(Scale(share=0.3), rng) is None for _ in range(1000)]
    assert np.mean(drawn) == pytest.approx(0.7, abs=0.05)


def test_a_crop_at_half_the_size_is_the_mean_of_squares() -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 240), dtype=np.uint8)
    half = 2 * np.eye(2)
    assert geometry.scaled_sides((64, 64), half) == (128, 128)
    crop = geometry.Crop((30, 41), (64, 64), geometry.scaled_map((64, 64), half), image.shape)
    squares = image[30:158, 41:169].reshape(64, 2, 64, 2).mean(axis=(1, 3))
    assert np.abs(crop.image(reader(image)) - squares).max() <= 1
    mask = (image > 128).astype(np.uint8)
    shares = mask[30:158, 41:169].reshape(64, 2, 64, 2).mean(axis=(1, 3))
    assert np.array_equal(crop.mask(reader(mask)), shares >= 0.5)


def test_a_square_with_a_pixel_that_nobody_looked_at_was_not_looked_at() -> None:
    half = 2 * np.eye(2)
    crop = geometry.Crop((30, 41), (64, 64), geometry.scaled_map((64, 64), half), (200, 240))
    mask = (np.random.default_rng(0).random((200, 240)) < 0.5).astype(np.uint8)
    partial = mask.copy()
    partial[50, 61:101] = UNLABELLED
    unknown = (partial == UNLABELLED)[30:158, 41:169].reshape(64, 2, 64, 2).any(axis=(1, 3))
    assert unknown.sum() == 20
    assert np.array_equal(crop.mask(reader(partial)), np.where(unknown, UNLABELLED, crop.mask(reader(mask))))


@pytest.mark.parametrize("step", [1.6, 2.0, 2.7, 4.0])
def test_a_pattern_too_fine_for_a_small_crop_becomes_grey(step: float) -> None:
    """Stripes of a single pixel, which a map alone would turn into broad ones."""
    stripes = np.tile(np.array([0, 200], np.uint8), (600, 300))
    crop = geometry.Crop((10, 10), (96, 96), geometry.scaled_map((96, 96), step * np.eye(2)), stripes.shape)
    assert crop.image(reader(stripes)).astype(float).std() < 30
    alone = geometry.Crop((10, 10), (96, 96), geometry.scaled_map((96, 96), 1.3 * np.eye(2)), stripes.shape)
    assert alone.image(reader(stripes)).astype(float).std() > 50


def test_scaled_crops_show_image_and_mask_of_the_same_place_and_no_border() -> None:
    image = (smooth_image((150, 170)) > 0).astype(np.uint8)
    grey = image * np.uint8(200) + np.uint8(50)
    for corner, scaling in zip([(0, 0), (90, 100), (-40, -30), (20, 10)] * 8, scalings(32, low=0.2), strict=True):
        crop = geometry.Crop(corner, (64, 64), geometry.scaled_map((64, 64), scaling), image.shape)
        seen, mask = crop.image(reader(grey)), crop.mask(reader(image))
        assert seen.min() >= 50
        assert np.mean((seen > 150) != mask) < 0.1
        y0, y1, x0, x1 = crop.box
        assert 0 <= y0 < y1 <= 150
        assert 0 <= x0 < x1 <= 170


@pytest.mark.parametrize("scaling", [np.eye(2), 0.5 * np.eye(2), 3 * np.eye(2), np.array([[0.0, -1.5], [1.5, 0.0]])])
def test_the_middle_of_the_box_is_the_middle_of_the_crop(scaling: np.ndarray) -> None:
    sides = (40, 64)
    height, width = geometry.scaled_sides(sides, scaling)
    centre = geometry.scaled_map(sides, scaling) @ [(sides[1] - 1) / 2, (sides[0] - 1) / 2, 1]
    np.testing.assert_allclose(centre, [(width - 1) / 2, (height - 1) / 2, 1])

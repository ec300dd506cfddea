import numpy as np
import pytest
from scipy import ndimage

from mitoflow.training import augmentation


def smooth_image(shape: tuple[int, int]) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(shape), 3).astype(np.float32)


def random_maps(count: int, strength: float, seed: int = 0) -> np.ndarray:
    """Maps of a crop of 64 x 64, (count, 3, 3)."""
    rng = np.random.default_rng(seed)
    return np.stack([augmentation.random_map((64, 64), strength, rng) for _ in range(count)])


def test_strength_zero_changes_nothing() -> None:
    maps = random_maps(4, 0.0)
    assert np.array_equal(maps, np.broadcast_to(np.eye(3), maps.shape))
    image = np.random.default_rng(0).random((8, 8, 1), dtype=np.float32)
    assert augmentation.vary_grey_values(image, 0.0, np.random.default_rng(0)) is image


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


def test_half_strength_halves_the_ranges() -> None:
    full = random_maps(2000, 1.0)
    half = random_maps(2000, 0.5)
    spread = [np.abs(np.linalg.norm(maps[:, :2, 0], axis=1) - 1).max() for maps in (full, half)]
    assert spread[1] == pytest.approx(spread[0] / 2, rel=1e-6)


def reader(array: np.ndarray) -> augmentation.Read:
    return lambda box: array[box[0] : box[1], box[2] : box[3]]


@pytest.mark.parametrize("corner", [(0, 0), (40, 70), (-30, 90), (96, -10)])
def test_a_crop_is_that_of_scipy(corner: tuple[int, int]) -> None:
    size, shape = 64, (128, 160)
    image = smooth_image(shape)
    mask = (image > 0).astype(np.uint8)
    for transform in (*random_maps(6, 1.0, seed=5), None):
        crop = augmentation.Crop(corner, (size, size), transform, shape)
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
        augmentation.Crop((20, 13), (64, 64), None, image.shape).image(reader(image)), image[20:84, 13:77]
    )


def test_a_crop_larger_than_the_slice_reflects_it() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    crop = augmentation.Crop((-22, -17), (64, 64), None, image.shape)
    assert np.array_equal(crop.image(reader(image))[22:42, 17:47], image)
    assert np.array_equal(crop.image(reader(image))[2:22, 17:47], image[::-1])


def test_all_eight_turns_come_and_are_turns() -> None:
    square = np.arange(9).reshape(3, 3)
    rng = np.random.default_rng(0)
    seen = {augmentation.random_turn(square.shape, rng)(square).tobytes() for _ in range(200)}
    wanted = {
        each.tobytes() for turns in range(4) for each in (np.rot90(square, turns), np.rot90(square, turns)[:, ::-1])
    }
    assert seen == wanted


def test_grey_values_stay_in_range_and_vary_within_it() -> None:
    image = np.full((32, 32, 3), 0.5, np.float32)
    rng = np.random.default_rng(0)
    varied = np.stack([augmentation.vary_grey_values(image, 1.0, rng) for _ in range(200)])
    assert varied.dtype == np.float32
    assert varied.min() >= 0
    assert varied.max() <= 1
    means = varied.mean(axis=(1, 2, 3))
    assert means.std() > 0.05  # brightness and gamma
    assert np.ptp(varied.mean(axis=(1, 2)), axis=1).max() > 0.02  # slices by themselves
    half = np.stack([augmentation.vary_grey_values(image, 0.25, np.random.default_rng(seed)) for seed in range(200)])
    assert half.mean(axis=(1, 2, 3)).std() < means.std() / 2

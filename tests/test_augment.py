import numpy as np
import pytest
from scipy import ndimage

from mitoflow import augment


def smooth_images(count: int, size: int) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal((count, size, size))
    return ndimage.gaussian_filter(noise, (0, 3, 3))[..., None].astype(np.float32)


def test_strength_zero_changes_nothing() -> None:
    maps = augment.random_maps(4, 64, 0.0, np.random.default_rng(0))
    assert np.array_equal(maps, np.broadcast_to(np.eye(3), maps.shape))
    images = smooth_images(4, 64)
    masks = (images > 0).astype(np.float32)
    for before, after in zip((images, masks), augment.resample(images, masks, maps), strict=True):
        assert np.array_equal(before, after)


def test_strength_one_has_the_seeds_ranges() -> None:
    size, count = 64, 4000
    maps = augment.random_maps(count, size, 1.0, np.random.default_rng(0))
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
    full = augment.random_maps(2000, 64, 1.0, np.random.default_rng(0))
    half = augment.random_maps(2000, 64, 0.5, np.random.default_rng(0))
    spread = [np.abs(np.linalg.norm(maps[:, :2, 0], axis=1) - 1).max() for maps in (full, half)]
    assert spread[1] == pytest.approx(spread[0] / 2, rel=1e-6)


def test_resampling_is_that_of_scipy() -> None:
    size = 64
    images = smooth_images(3, size)
    masks = (images > 0).astype(np.float32)
    maps = augment.random_maps(3, size, 1.0, np.random.default_rng(5))
    got_images, got_masks = (np.asarray(got) for got in augment.resample(images, masks, maps))
    for i in range(3):
        # scipy's axes are (y, x), the maps' are (x, y); its "reflect" is the one that repeats the edge pixel.
        matrix = maps[i][np.ix_([1, 0, 2], [1, 0, 2])]
        image = ndimage.affine_transform(images[i, ..., 0], matrix, order=1, mode="reflect")
        mask = ndimage.affine_transform(masks[i, ..., 0], matrix, order=0, mode="reflect")
        assert np.abs(got_images[i, ..., 0] - image).max() < 1e-3
        assert np.mean(got_masks[i, ..., 0] != mask) < 2e-3  # ties between two neighbours may go either way


def test_masks_move_with_their_images() -> None:
    images = smooth_images(8, 64)
    masks = (images > 0).astype(np.float32)
    maps = augment.random_maps(8, 64, 1.0, np.random.default_rng(1))
    got_images, got_masks = (np.asarray(got) for got in augment.resample(images, masks, maps))
    assert set(np.unique(got_masks)) == {0.0, 1.0}
    assert np.mean((got_images > 0) == (got_masks > 0)) > 0.95

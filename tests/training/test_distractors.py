"""Sheaths of myelin that are drawn into crops."""

import numpy as np

from mitoflow.training.distractors import add_myelin


def crop(channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    image = rng.uniform(0.4, 0.9, (128, 96, channels)).astype(np.float32)
    image[:16, :16] = 0.1  # as dark as a mitochondrion, so that a sheath is too
    return image, np.ones((128, 96, 1), np.uint8)


def test_sheaths_are_dark_and_background() -> None:
    image, mask = crop()
    covered = 0
    for seed in range(20):
        drawn, left = add_myelin(image, mask, np.random.default_rng(seed))
        under = (left == 0)[..., 0]
        covered += under.sum()
        assert drawn.shape == image.shape and drawn.dtype == np.float32 and left.dtype == mask.dtype
        assert drawn.min() >= 0 and drawn.max() <= 1
        if under.sum() > 500:
            assert drawn[under].mean() < image[under].mean() - 0.1
    assert covered > 20 * 500


def test_pixels_beside_a_sheath_stay_as_they_are() -> None:
    image, mask = crop()
    drawn, left = add_myelin(image, mask, np.random.default_rng(1))
    changed = (drawn != image)[..., 0]
    assert (left == 0)[..., 0][~changed].sum() == 0
    assert 0 < changed.sum() < changed.size


def test_the_background_stays_background_and_the_input_as_it_is() -> None:
    image, mask = crop()
    mask[:64] = 0
    before = image.copy(), mask.copy()
    _, left = add_myelin(image, mask, np.random.default_rng(1))
    assert not left[:64].any()
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


def test_neighbouring_slices_get_the_same_sheaths() -> None:
    image, mask = crop(channels=1)
    drawn, _ = add_myelin(np.repeat(image, 3, axis=-1), mask, np.random.default_rng(1))
    np.testing.assert_array_equal(drawn[..., 0], drawn[..., 2])


def test_the_same_random_numbers_give_the_same_sheaths() -> None:
    image, mask = crop()
    one, other = (add_myelin(image, mask, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])

"""How grey values vary, and what is missing or damaged."""

import numpy as np
import pytest
from scipy import ndimage

from mitoflow.config.params import Augmentation
from mitoflow.training import augmentation


def test_strength_zero_changes_nothing_and_draws_nothing() -> None:
    image, rng = np.random.default_rng(0).random((8, 8, 1), dtype=np.float32), np.random.default_rng(0)
    assert augmentation.vary_grey_values(image, 0.0, rng, Augmentation()) is image
    assert rng.random() == np.random.default_rng(0).random()


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


def test_gamma_is_a_power_between_the_roots_of_e() -> None:
    """0 and 1 stay; 1/4 becomes at least 0.25 ** 1.649 and at most 0.25 ** 0.607, and 1/16 its square."""
    image = np.array([0, 1, 1 / 4, 1 / 16], np.float32).reshape(2, 2, 1)
    rng = np.random.default_rng(0)
    varied = np.stack([augmentation.vary_gamma(image, 1.0, rng).ravel() for _ in range(1000)])
    assert set(varied[:, 0]) == {0}
    assert set(varied[:, 1]) == {1}
    np.testing.assert_allclose(varied[:, 3], varied[:, 2] ** 2, rtol=1e-5)
    assert (varied[:, 2].min(), varied[:, 2].max()) == pytest.approx((0.1017, 0.4313), abs=2e-3)


def test_half_of_the_crops_get_another_gamma(monkeypatch: pytest.MonkeyPatch) -> None:
    table = augmentation.GREY_VALUE_AUGMENTATIONS
    monkeypatch.setattr(augmentation, "GREY_VALUE_AUGMENTATIONS", {"gamma": table["gamma"]})
    image, rng = np.full((2, 2, 1), 0.25, np.float32), np.random.default_rng(0)
    varied = [augmentation.vary_grey_values(image, 1.0, rng) is not image for _ in range(1000)]
    assert np.mean(varied) == pytest.approx(0.5, abs=0.05)


CONFIGURED = [name for name, entry in augmentation.GREY_VALUE_AUGMENTATIONS.items() if entry.share is None]


def only(name: str, **values: float) -> Augmentation:
    """Parameters with a single augmentation, on every crop."""
    return Augmentation.model_validate({name: {"share": 1.0, **values}})


def texture(channels: int) -> np.ndarray:
    """Smooth structures with some noise, (96, 96, channels) float32 in [0.2, 0.8]."""
    noise = np.random.default_rng(0).standard_normal((96, 96, channels))
    image = ndimage.gaussian_filter(noise, (3, 3, 0)) * 2 + noise * 0.1
    return np.interp(image, (image.min(), image.max()), (0.2, 0.8)).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("name", CONFIGURED)
def test_each_of_the_parameters_switches_its_augmentation_on(name: str, channels: int) -> None:
    image, original = texture(channels), texture(channels)
    varied = [augmentation.vary_grey_values(image, 0.0, np.random.default_rng(i), only(name)) for i in range(8)]
    assert np.array_equal(image, original)
    assert all(each.shape == image.shape and each.dtype == np.float32 for each in varied)
    assert all(each.min() >= 0 and each.max() <= 1 for each in varied)
    changes = not (name == "damaged_slices" and channels == 1)
    assert any(np.abs(each - image).max() > 0.05 for each in varied) == changes


def test_the_share_is_how_often_and_the_limit_how_much() -> None:
    image, half = np.full((32, 32, 1), 0.5, np.float32), Augmentation.model_validate({"inversion": {"share": 0.3}})
    rng = np.random.default_rng(0)
    image[:16] = 0.2
    inverted = [augmentation.vary_grey_values(image, 0.0, rng, half) is not image for _ in range(1000)]
    assert np.mean(inverted) == pytest.approx(0.3, abs=0.05)
    flat = np.full((64, 64, 1), 0.5, np.float32)
    spread = []
    for limit in (0.02, 0.1):
        further = only("correlated_noise", limit=limit)
        drawn = [augmentation.vary_grey_values(flat, 0.0, np.random.default_rng(i), further).std() for i in range(100)]
        spread.append(max(drawn))
    np.testing.assert_allclose(spread, [0.02, 0.1], rtol=0.1)


def test_inversion_exchanges_dark_and_bright() -> None:
    image = texture(1)
    np.testing.assert_allclose(
        augmentation.vary_grey_values(image, 0.0, np.random.default_rng(0), only("inversion")), 1 - image
    )


def correlation(image: np.ndarray) -> float:
    """Between each pixel and the next, of (Y, X)."""
    return float(np.corrcoef(image[:, 1:].ravel(), image[:, :-1].ravel())[0, 1])


def test_neighbouring_pixels_share_correlated_noise_and_not_white_noise() -> None:
    flat = np.full((96, 96, 1), 0.5, np.float32)
    correlated = augmentation.add_correlated_noise(flat, 0.1, np.random.default_rng(0))
    white = augmentation.add_noise(flat, 1.0, np.random.default_rng(0))
    assert correlation(correlated[..., 0]) > 0.3 > 0.1 > abs(correlation(white[..., 0]))


def test_shading_is_smooth() -> None:
    flat = np.full((96, 96, 3), 0.5, np.float32)
    shaded = augmentation.shade(flat, 0.12, np.random.default_rng(1))
    assert np.ptp(shaded) > 0.02
    assert np.abs(np.diff(shaded, axis=0)).max() < 0.1 * np.ptp(shaded)
    assert np.array_equal(shaded[..., 0], shaded[..., 2])


def test_sharpening_strengthens_edges_and_keeps_the_mean() -> None:
    image = texture(1)
    sharp = augmentation.sharpen(image, 1.5, np.random.default_rng(0))
    assert np.abs(np.diff(sharp, axis=0)).mean() > 1.2 * np.abs(np.diff(image, axis=0)).mean()
    assert sharp.mean() == pytest.approx(image.mean(), abs=0.01)


def test_local_contrast_becomes_even() -> None:
    """A half with a tenth of the contrast comes out with more of it."""
    image = texture(1)
    image[:, 48:] = 0.5 + (image[:, 48:] - 0.5) / 10
    equalised = augmentation.equalise_locally(image, 5.0, np.random.default_rng(0))
    before, after = (each[:, 48:].std() / each[:, :48].std() for each in (image, equalised))
    assert after > 1.5 * before


def test_cutouts_are_boxes_of_one_grey_value() -> None:
    image, largest = texture(3), 0
    for seed in range(40):
        cut = augmentation.cut_out(image, 20, np.random.default_rng(seed))
        changed = cut != image
        parts, count = ndimage.label(changed.any(axis=-1))
        assert 1 <= count <= 3
        largest = max(
            largest, *(max(part.stop - part.start for part in parts_) for parts_ in ndimage.find_objects(parts))
        )
    assert 15 < largest <= 3 * 20  # boxes may touch


def test_the_slice_in_the_middle_stays_and_another_is_damaged() -> None:
    image, kinds = texture(5), set()
    for seed in range(60):
        damaged = augmentation.damage_slice(image, 16, np.random.default_rng(seed))
        (channel,) = np.flatnonzero((damaged != image).any(axis=(0, 1)))
        assert channel != 2
        found = damaged[..., channel]
        inwards = image[..., channel + (1 if channel < 2 else -1)]
        if np.ptp(found) == 0:
            kinds.add("constant")
        elif np.array_equal(found, inwards):
            kinds.add("repeated")
        else:
            y, x = shift_between(image[..., channel], found)
            assert max(abs(y), abs(x)) <= 16
            inner = slice(16, 80)
            rolled = np.roll(image[..., channel], (y, x), (0, 1))
            assert np.array_equal(found[inner, inner], rolled[inner, inner])
            kinds.add("shifted")
    assert kinds == {"constant", "repeated", "shifted"}


def shift_between(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """Return by how many pixels along y and x `other` is moved, by the peak of their correlation."""
    spectra = np.fft.fft2(one - one.mean()).conj() * np.fft.fft2(other - other.mean())
    peak = np.unravel_index(np.fft.ifft2(spectra / np.abs(spectra)).real.argmax(), one.shape)
    y, x = (int(place) - length * (place > length // 2) for place, length in zip(peak, one.shape, strict=True))
    return y, x

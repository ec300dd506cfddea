from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from mitoflow.data import fingerprint
from mitoflow.data.fingerprint import Fingerprint, differences, measure
from mitoflow.errors import InputError


def draw(seed: int, size: int = 128, scale: float = 1.0, noise: float = 0.03) -> np.ndarray:
    """Draw thin dark membranes on a bright ground; `scale` times as many pixels for the same structure."""
    rng = np.random.default_rng(seed)
    places = (np.mgrid[:size, :size] / scale).astype(float)
    image = np.full((size, size), 0.62)
    for _ in range(12):
        centre, radius = rng.uniform(0, size / scale, 2), rng.uniform(12, 40)
        distance = np.abs(np.hypot(*(places - centre[:, None, None])) - radius)
        image -= 0.3 * np.exp(-((distance / 3) ** 2))
    image += ndimage.gaussian_filter(rng.normal(0, 1, (size, size)), 5 * scale) * 0.35 * scale
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def trained() -> Fingerprint:
    return measure((draw(seed) for seed in range(24)), {})


@pytest.fixture(scope="module")
def patches() -> list[np.ndarray]:
    return [draw(seed) for seed in range(100, 116)]


def test_images_like_those_of_training_give_no_warning(trained: Fingerprint, patches: list[np.ndarray]) -> None:
    assert differences(trained, measure(patches, {})) == []


def test_inverted_contrast_is_reported(trained: Fingerprint, patches: list[np.ndarray]) -> None:
    found = differences(trained, measure([1 - patch for patch in patches], {}))
    assert "contrast is inverted" in found[0]


def test_a_small_slice_shows_too_little_to_say_that_its_contrast_is_inverted(
    trained: Fingerprint, patches: list[np.ndarray]
) -> None:
    seen = measure([1 - patch for patch in patches], {})
    assert not any("inverted" in line for line in differences(trained, seen, area=96 * 128))
    assert any("inverted" in line for line in differences(trained, seen, area=256 * 256))


def test_coarser_pixels_are_reported(trained: Fingerprint) -> None:
    coarse = [draw(seed, scale=1 / 3) for seed in range(100, 116)]
    (found,) = [line for line in differences(trained, measure(coarse, {})) if "pixels are" in line]
    times = float(found.split("about ")[1].split(" x coarser")[0])
    assert 2 < times < 4.5


def test_known_voxel_sizes_are_compared(trained: Fingerprint, patches: list[np.ndarray]) -> None:
    known, seen = replace(trained, spacing={"y": 5.0, "x": 5.0}), measure(patches, {"y": 15.0, "x": 15.0})
    assert differences(known, seen) == [
        "its pixels are about 3.0 x coarser (15 nm, 5 nm in the training images; --rescale training resamples it)"
    ]
    assert differences(known, replace(seen, spacing={"x": 5.5})) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda patch: patch * 0.4, "it is darker"),
        (lambda patch: (patch - 0.5) * 0.3 + 0.5, "it has less contrast"),
        (lambda patch: np.clip(patch + np.random.default_rng(0).normal(0, 0.2, patch.shape), 0, 1), "it is noisier"),
        (lambda patch: ndimage.gaussian_filter(patch, 1.2), "it is smoother"),
    ],
)
def test_other_differences_are_reported(
    trained: Fingerprint, patches: list[np.ndarray], change: object, message: str
) -> None:
    assert callable(change)
    found = differences(trained, measure([change(patch) for patch in patches], {}))
    assert any(line.startswith(message) for line in found), found
    assert not any("inverted" in line for line in found)


def test_noise_is_measured_beside_structure() -> None:
    for sigma in (0.02, 0.1):
        noisy = draw(0, noise=0) * 0.5 + 0.2 + np.random.default_rng(0).normal(0, sigma, (128, 128))
        assert fingerprint.noise_scale(noisy) == pytest.approx(sigma, rel=0.15)


def test_texture_grows_with_the_image_and_not_with_noise() -> None:
    image = draw(0, noise=0)
    twice = ndimage.zoom(image, 2, order=1)
    assert fingerprint.texture_scale(twice) == pytest.approx(2 * fingerprint.texture_scale(image), rel=0.1)
    noisy = image + np.random.default_rng(0).normal(0, 0.1, image.shape)
    assert fingerprint.texture_scale(noisy) == pytest.approx(fingerprint.texture_scale(image), rel=0.15)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 3), (32, 32)])
def test_constant_and_tiny_images_do_no_harm(shape: tuple[int, int]) -> None:
    with np.errstate(all="raise"):
        seen = measure([np.full(shape, 0.5, np.float32)], {})
    assert seen.noise == [0, 0, 0]
    assert seen.contrast == [0, 0, 0]


def test_quantiles_come_from_the_histogram() -> None:
    seen = measure([np.linspace(0.25, 0.75, 6400, dtype=np.float32).reshape(80, 80)], {})
    assert seen.quantile(0.5) == pytest.approx(0.5, abs=0.01)
    assert seen.quantile(0.005) == pytest.approx(0.25, abs=0.01)


def test_a_fingerprint_survives_its_file(tmp_path: Path, trained: Fingerprint) -> None:
    trained.write(tmp_path / "domain.yaml")
    assert Fingerprint.read(tmp_path / "domain.yaml") == trained
    (tmp_path / "domain.yaml").write_text("size: 3")
    with pytest.raises(InputError, match="domain.yaml: histogram: found no such key"):
        Fingerprint.read(tmp_path / "domain.yaml")

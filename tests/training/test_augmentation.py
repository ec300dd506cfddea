"""How grey values vary, and what is missing or damaged."""

import cv2
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


def drawn(function: str, image: np.ndarray, amount: float, times: int = 1000) -> np.ndarray:
    """Return what an augmentation makes of an image, many times: (times, Y, X, C)."""
    rng = np.random.default_rng(0)
    return np.stack([getattr(augmentation, function)(image, amount, rng) for _ in range(times)])


BLACK_AND_WHITE = np.array([0, 1], np.float32).reshape(1, 2, 1)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_contrast_is_a_gain_about_the_mean_and_an_offset(strength: float) -> None:
    varied = drawn("vary_contrast", BLACK_AND_WHITE, strength)
    gain, offset = np.log(np.ptp(varied, axis=(1, 2, 3))), varied.mean(axis=(1, 2, 3)) - 0.5
    for found, limit in ((gain, 0.4), (offset, 0.15)):
        assert (found.min(), found.max()) == pytest.approx((-limit * strength, limit * strength), rel=0.02)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_each_slice_has_a_gain_and_an_offset_of_its_own(strength: float) -> None:
    varied = drawn("vary_slices", np.repeat(BLACK_AND_WHITE, 3, axis=-1), strength)
    gain, offset = np.log(np.ptp(varied, axis=(1, 2))), varied.min(axis=(1, 2))
    for found, limit in ((gain, 0.1), (offset, 0.05)):
        assert (found.min(), found.max()) == pytest.approx((-limit * strength, limit * strength), rel=0.02)
        assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.1


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_blur_is_as_wide_along_y_as_along_x_and_reaches_from_nothing_to_its_limit(strength: float) -> None:
    point, places = np.zeros((25, 25, 1), np.float32), np.arange(-12, 13) ** 2
    point[12, 12] = 1
    blurred = drawn("blur", point, strength, 500)[..., 0]
    along_y, along_x = (np.sqrt(blurred.sum(axis=axis) @ places) for axis in (2, 1))
    np.testing.assert_allclose(along_y, along_x, atol=1e-3)
    assert along_x.max() == pytest.approx(1.5 * strength, rel=0.05)
    assert np.mean(along_x < 0.75 * strength) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_deviation_of_noise_reaches_from_nothing_to_its_limit(strength: float) -> None:
    deviations = drawn("add_noise", np.full((64, 64, 1), 0.5, np.float32), strength, 300).std(axis=(1, 2, 3))
    assert deviations.max() == pytest.approx(0.08 * strength, rel=0.05)
    assert deviations.mean() == pytest.approx(0.04 * strength, rel=0.1)


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


def test_shading_is_as_strong_as_its_limit_and_has_no_edges() -> None:
    flat = np.zeros((96, 96, 1), np.float32)
    weak, strong = (drawn("shade", flat, limit, 300) for limit in (0.05, 0.1))
    assert strong.std() == pytest.approx(2 * weak.std())
    assert 0.3 * 0.1 < strong.std() < 0.1 / np.sqrt(3)  # of the nodes, less what lies between them
    bends = np.abs(np.diff(strong, 2, axis=1)).max(axis=(1, 2, 3))
    assert (bends < 0.01 * np.ptp(strong, axis=(1, 2, 3))).all()


def test_sharpening_adds_up_to_its_limit_of_what_a_blur_takes_away() -> None:
    """A blur leaves nothing of a chequerboard, so that its contrast grows by just that factor."""
    board = (np.indices((32, 32)).sum(axis=0) % 2 - 0.5).astype(np.float32)[..., None]
    added = np.ptp(drawn("sharpen", board, 1.5, 300)[:, 8:24, 8:24], axis=(1, 2, 3)) - 1
    assert (added.min(), added.max()) == pytest.approx((0, 1.5), abs=0.03)


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


def test_local_contrast_has_two_to_eight_areas_a_clip_limit_and_eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unchanged:
        def apply(self, levels: np.ndarray) -> np.ndarray:
            return levels

    asked = []
    monkeypatch.setattr(cv2, "createCLAHE", lambda *arguments: asked.append(arguments) or Unchanged())
    image = np.array([-0.5, 0, 0.502, 1, 1.5], np.float32).reshape(1, 5, 1)
    for each in drawn("equalise_locally", image, 5.0, 500):
        np.testing.assert_allclose(each.ravel(), [0, 0, 128 / 255, 1, 1], rtol=1e-6)
    limits, areas = zip(*asked, strict=True)
    assert (min(limits), max(limits)) == pytest.approx((1, 5), abs=0.05)
    assert {*areas} == {(each, each) for each in range(2, 9)}


def test_a_cutout_has_any_side_place_grey_value_and_number_of_slices() -> None:
    image, sides, corners, values, slices, counts = texture(3)[:12, :12], set(), set(), [], [], set()
    for cut in drawn("cut_out", image, 9, 3000):
        changed = cut != image
        boxes, count = ndimage.label(changed.any(axis=-1))
        counts.add(count)
        if count == 1 and len(found := np.unique(cut[changed])) == 1:  # one box, or several of one grey value
            (box,) = ndimage.find_objects(boxes)
            if changed[box].any(axis=-1).all():
                sides.add(tuple(part.stop - part.start for part in box))
                corners |= {(box[0].start, box[1].start), (box[0].stop, box[1].stop)}
                values.append(float(found[0]))
                slices.append(int(changed.any(axis=(0, 1)).sum()))
    assert counts >= {1, 2}
    assert {(4, 9), (9, 4), (4, 4), (9, 9)} <= sides
    assert {(0, 0), (12, 12)} <= corners
    assert min(min(each) for each in sides) == 4
    assert (min(values), max(values)) == (0, 1)
    for share in (np.equal(values, 0).mean(), np.equal(values, 1).mean()):
        assert share == pytest.approx(1 / 3, abs=0.05)
    assert {*slices} <= {1, 2, 3}
    assert np.equal(slices, 3).mean() == pytest.approx(0.5, abs=0.1)


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
    image, kinds, channels, constants, shifts = texture(5)[:20, :20], [], set(), set(), set()
    all_shifts = [(y, x) for y in range(-2, 3) for x in range(-2, 3)]
    for damaged in drawn("damage_slice", image, 2, 2000):
        changed = np.flatnonzero((damaged != image).any(axis=(0, 1)))
        if not len(changed):  # shifted by nothing
            kinds.append("shifted")
            continue
        (channel,) = changed
        channels.add(int(channel))
        found = damaged[..., channel]
        if np.ptp(found) == 0:
            kinds.append("constant")
            constants.add(float(found[0, 0]))
        elif np.array_equal(found, image[..., channel + (1 if channel < 2 else -1)]):
            kinds.append("repeated")
        else:
            kinds.append("shifted")
            reflected = np.pad(image[..., channel], 2, mode="symmetric")
            (shift,) = [
                (y, x) for y, x in all_shifts if np.array_equal(found, reflected[2 - y : 22 - y, 2 - x : 22 - x])
            ]
            shifts.add(shift)
    assert channels == {0, 1, 3, 4}
    assert constants == {0, 1}
    assert shifts == {*all_shifts} - {(0, 0)}
    for kind in ("constant", "repeated", "shifted"):
        assert kinds.count(kind) / 2000 == pytest.approx(1 / 3, abs=0.04)

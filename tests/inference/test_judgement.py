"""The Dice to be expected: high where a network agrees with itself, and calibrated on stacks whose Dice is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from mitoflow.errors import InputError
from mitoflow.inference import judgement
from mitoflow.inference.agreement import Agreement, agreements, windows
from mitoflow.inference.judgement import Calibration
from mitoflow.inference.model_input import ArrayVolume
from mitoflow.inference.predictor import Predictor

from .disks import disks


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        (1, "usable"),
        (0.8, "usable"),
        (0.79, "look closely"),
        (0.6, "look closely"),
        (0.59, "do not use"),
        (0, "do not use"),
    ],
)
def test_verdict(dice: float, expected: str) -> None:
    assert judgement.verdict(dice) == expected


def test_calibration_returns_the_line_through_what_was_measured(tmp_path: Path) -> None:
    products = np.linspace(0.2, 0.9, 8)
    agreements = [Agreement(product, 1) for product in products]
    dices = 0.1 + 0.9 * products
    calibration = Calibration.fit(agreements, dices.tolist())
    assert calibration.dice(Agreement(0.5, 1)) == pytest.approx(0.55)
    assert calibration.dice(Agreement(1, 1)) == 1
    assert calibration.error == pytest.approx(0, abs=1e-9)
    assert calibration.stacks == 8
    calibration.write(tmp_path / "calibration.yaml")
    assert Calibration.read(tmp_path / "calibration.yaml") == calibration
    (tmp_path / "calibration.yaml").write_text("slope: 1\n")
    with pytest.raises(InputError, match="intercept"):
        Calibration.read(tmp_path / "calibration.yaml")


def test_its_error_is_what_four_of_five_stacks_lie_within() -> None:
    agreements = [Agreement(product, 1) for product in (0.2, 0.4, 0.6, 0.8) * 25]
    rng = np.random.default_rng(0)
    dices = [agreed.product + rng.uniform(-0.1, 0.1) for agreed in agreements]
    assert Calibration.fit(agreements, dices).error == pytest.approx(0.08, abs=0.015)


def test_a_line_is_checked_on_stacks_that_it_was_not_fitted_to() -> None:
    line = Calibration(slope=1.0, intercept=0.0, error=0.01, stacks=20)
    checked = line.checked_on([Agreement(0.5, 1)] * 5, [0.5, 0.55, 0.4, 0.3, 0.9])
    assert checked == Calibration(1.0, 0.0, pytest.approx(0.24), 5)  # errors 0, 0.05, 0.1, 0.2, 0.4


@pytest.mark.parametrize(
    ("shape", "scale", "count"),
    [
        ((1, 768, 1024), 1, 1),
        ((1, 1536, 2048), 2, 1),  # the same slice, enlarged
        ((1, 1448, 1448), 1, 2),
        ((1, 4096, 4096), 1, 5),
        ((2, 768, 1024), 1, 5),
    ],
)
def test_a_small_slice_has_one_window(shape: tuple[int, int, int], scale: float, count: int) -> None:
    assert len(list(windows(ArrayVolume(np.zeros(shape, np.uint8)), scale))) == count


@pytest.mark.slow
def test_agreement_is_high_at_the_right_scale_and_low_at_a_wrong_one(finder: Predictor) -> None:
    def at_scale(factor: float) -> ArrayVolume:
        return ArrayVolume(disks(12 * factor, (2, round(600 * factor), round(600 * factor))))

    right, strict = agreements(finder, at_scale, 0.5, [0.5, 0.99])
    (wrong,) = agreements(finder, at_scale, 0.9, [0.5])
    assert right.product > strict.product
    assert right.mirrored == pytest.approx(1, abs=0.02)  # the network has no preferred side
    assert right.product > wrong.product


@pytest.mark.parametrize(
    ("background", "mirrored"),
    [(slice(0, 0), 0), (slice(0, 10), 0), (slice(40, 70), 2 / 3), (slice(10, 80), 2 / 3), (slice(0, 100), 0)],
)
def test_masks_of_nearly_everything_agree_by_their_background(background: slice, mirrored: float) -> None:
    """The background is some columns, and in mirrored images those on the other side; all else is marked.

    Of columns 40 to 69 and 30 to 59, 20 are common, 2 * 20 / 60; of the 70 marked ones 60 are, 2 * 60 / 140. Of columns
    10 to 79 and 20 to 89 it is the other way round.
    """

    def probabilities(images: np.ndarray) -> np.ndarray:
        marked = np.ones(images.shape, np.float32)
        marked[:, :, background] = 0
        return marked

    predictor = SimpleNamespace(probabilities=probabilities)
    volume = ArrayVolume(np.zeros((1, 100, 100), np.uint8))
    (found,) = agreements(cast(Predictor, predictor), lambda scale: volume, 1.0, [0.5])
    assert found.mirrored == pytest.approx(mirrored)
    assert found.product <= mirrored

"""The scale at which a network agrees most with itself is that of the structures that it knows."""

from __future__ import annotations

import pytest

from mitoflow.inference import scale
from mitoflow.inference.agreement import HALF_OCTAVE
from mitoflow.inference.model_input import ArrayVolume
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.scale import CLEARLY, Scales

from .disks import disks


@pytest.mark.slow
@pytest.mark.parametrize(("radius", "factor"), [(6, 1), (12, 1 / 2), (24, 1 / 4), (17, 1 / 2 / HALF_OCTAVE)])
def test_it_finds_the_scale(finder: Predictor, radius: float, factor: float) -> None:
    def at_scale(factor: float) -> ArrayVolume:
        return ArrayVolume(disks(radius * factor, (3, round(1024 * factor), round(1024 * factor))))

    found = scale.search(finder, at_scale)
    # The mask is compared with that of half an octave above: the network knows structures between the two sizes best.
    assert found.best == pytest.approx(max(factor / HALF_OCTAVE, scale.OCTAVES[0]))


def test_the_expected_scale_is_left_only_for_one_that_is_clearly_better() -> None:
    better, little_better = Scales({1.0: 0.5, 0.5: 0.5 + 2 * CLEARLY}), Scales({1.0: 0.5, 0.5: 0.5 + CLEARLY / 2})
    assert better.chosen(1.0) == 0.5
    assert little_better.chosen(1.0) == 1.0
    assert little_better.best == 0.5
    assert Scales({2.0: 0.5, 1.0: 0.5, 0.5: 0.5}).best == 1.0

"""The scale that a network expects most of is that of the structures that it knows."""

from __future__ import annotations

import pytest

from mitoflow.inference import scale
from mitoflow.inference.model_input import ArrayVolume
from mitoflow.inference.predictor import Predictor

from .disks import disks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("radius", "factor"), [(6, 1), (12, 1 / 2), (24, 1 / 4), (17, 1 / 2 / scale.HALF_OCTAVE)])
def test_it_finds_the_scale(finder: Predictor, radius: float, factor: float) -> None:
    def at_scale(factor: float) -> ArrayVolume:
        return ArrayVolume(disks(radius * factor, (3, round(1024 * factor), round(1024 * factor))))

    found = scale.search(finder, at_scale)
    assert found.best == pytest.approx(factor)
    assert found.gain(found.best) == 0
    assert all(found.gain(other) > 0 for other in found.confidence if other != found.best)

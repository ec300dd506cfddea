"""The scale and the threshold at which a network agrees most with itself are those that suit a stack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mitoflow.evaluation import metrics
from mitoflow.inference import operating_point
from mitoflow.inference.adaptation import enlarged
from mitoflow.inference.agreement import HALF_OCTAVE, Agreement, for_windows
from mitoflow.inference.model_input import ArrayVolume
from mitoflow.inference.operating_point import CLEARLY, OperatingPoint, OperatingPoints
from mitoflow.inference.predictor import Predictor

from .disks import RADIUS, disks

USUAL = OperatingPoint(1.0, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("radius", "factor"), [(6, 1), (12, 1 / 2), (6 * HALF_OCTAVE, 1 / HALF_OCTAVE)])
def test_it_finds_the_scale(finder: Predictor, radius: float, factor: float) -> None:
    def at_scale(factor: float) -> ArrayVolume:
        return ArrayVolume(disks(radius * factor, (3, round(1024 * factor), round(1024 * factor))))

    found = operating_point.search(finder, at_scale, USUAL, thresholds=[], enough=np.inf)
    # The mask is compared with that of half an octave above: the network knows structures between the two sizes best.
    assert found.best.scale == pytest.approx(factor / HALF_OCTAVE)
    assert {point.threshold for point in found.agreement} == {0.5}


@pytest.mark.parametrize(("enough", "scales"), [(0, 1), (np.inf, 6)])
def test_no_other_scale_is_tried_where_the_agreement_is_enough(finder: Predictor, enough: float, scales: int) -> None:
    stack = ArrayVolume(disks(2 * RADIUS, (1, 160, 160)))  # at a third of its size it would be too small
    found = operating_point.search(finder, lambda scale: enlarged(stack, (scale, scale)), USUAL, [], enough)
    assert USUAL in found.agreement
    assert len(found.agreement) == scales


@pytest.mark.slow
def test_it_finds_a_threshold_for_pale_structures(finder: Predictor) -> None:
    truth = disks(RADIUS, (2, 600, 600)) < 125
    pale = ArrayVolume(np.where(truth, 100, 190).astype(np.uint8))
    found = operating_point.search(finder, lambda scale: enlarged(pale, (scale, scale)), USUAL)
    chosen = found.chosen(USUAL)
    assert chosen.scale == 1
    assert chosen.threshold < 0.2
    probability = finder.probabilities(pale.read(0, (0, 600, 0, 600))[None])[0]
    as_found, as_usual = (
        float(metrics.dice(metrics.count(truth[:1], (probability >= threshold)[None]).sum(0)))
        for threshold in (chosen.threshold, USUAL.threshold)
    )
    assert as_found > 0.4 > 0.1 > as_usual


@pytest.mark.parametrize(
    ("agreement", "chosen"),
    [
        ({USUAL: 0.5, (0.5, 0.5): 0.54, (0.5, 0.1): 0.54}, USUAL),  # nothing is clearly better
        ({USUAL: 0.5, (0.5, 0.5): 0.6, (1.0, 0.1): 0.64, (0.5, 0.1): 0.64}, (0.5, 0.5)),  # the scale is enough
        ({USUAL: 0.5, (0.5, 0.5): 0.55, (1.0, 0.1): 0.64, (0.5, 0.1): 0.66}, (1.0, 0.1)),  # the threshold is enough
        ({USUAL: 0.5, (0.5, 0.5): 0.55, (1.0, 0.1): 0.55, (0.5, 0.1): 0.7}, (0.5, 0.1)),  # it takes both
        ({USUAL: 0.3, (2.0, 0.5): 0.5, (0.5, 0.5): 0.5, (1.0, 0.5): 0.5}, (1.0, 0.5)),
    ],
)
def test_the_usual_operating_point_is_left_only_for_one_that_is_clearly_better(
    agreement: dict[tuple[float, float], float], chosen: tuple[float, float]
) -> None:
    points = OperatingPoints({OperatingPoint(*point): Agreement(agreed, 1) for point, agreed in agreement.items()})
    assert points.chosen(USUAL) == chosen


def test_a_mean_over_symmetries_is_no_agreement(finder: Predictor) -> None:
    averaged = finder.with_settings(replace(finder.settings, tta=8))
    assert for_windows(averaged).settings == for_windows(finder).settings


def test_clearly_is_more_than_a_little() -> None:
    for difference, chosen in ((2 * CLEARLY, (0.5, 0.5)), (CLEARLY / 2, USUAL)):
        better = Agreement(0.5 + difference, 1)
        points = OperatingPoints({USUAL: Agreement(0.5, 1), OperatingPoint(0.5, 0.5): better})
        assert points.chosen(USUAL) == chosen

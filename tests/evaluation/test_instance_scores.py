"""Pairs of instances against all pairs, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mitoflow.evaluation import instance_scores, metrics
from mitoflow.evaluation.bootstrap import bootstrap_interval
from mitoflow.instances.components import label

labels = hnp.arrays(np.uint16, (2, 4, 4), elements=st.sampled_from([0, 0, 1, 2, 5]))


def every_pair(truth: NDArray[np.uint16], prediction: NDArray[np.uint16]) -> dict[tuple[int, int], float]:
    return {
        (t, p): np.sum((truth == t) & (prediction == p)) / np.sum((truth == t) | (prediction == p))
        for t in np.unique(truth[truth > 0]).tolist()
        for p in np.unique(prediction[prediction > 0]).tolist()
    }


@given(labels, labels)
def test_pairs_are_those_of_all_pairs_above_a_half(truth, prediction):
    matching = instance_scores.match(truth, prediction)
    expected = {pair: iou for pair, iou in every_pair(truth, prediction).items() if iou > 0.5}
    found = zip(matching.true.tolist(), matching.predicted.tolist(), strict=True)
    assert dict(zip(found, matching.iou.tolist(), strict=True)) == expected
    assert matching.true_instances == len(np.unique(truth[truth > 0]))
    assert matching.predicted_instances == len(np.unique(prediction[prediction > 0]))


@given(labels, labels, st.sampled_from([0.5, 0.6, 0.75]))
def test_objects_are_every_instance_once(truth, prediction, threshold):
    matching = instance_scores.match(truth, prediction)
    rows = matching.objects(threshold)
    tp, fp, fn, iou = rows.sum(0)
    expected = [value for value in every_pair(truth, prediction).values() if value > threshold]
    assert (tp, tp + fp, tp + fn) == (len(expected), matching.predicted_instances, matching.true_instances)
    assert iou == pytest.approx(sum(expected))
    assert np.array_equal(rows[:, :3].sum(1), np.ones(len(rows)))
    assert np.array_equal(rows[:, 3] > 0, rows[:, 0] == 1)


@given(labels, labels)
def test_panoptic_quality_is_f1_times_the_mean_iou_and_the_same_both_ways(truth, prediction):
    matching = instance_scores.match(truth, prediction)
    total = matching.objects().sum(0)
    mean = matching.iou.mean() if len(matching.iou) else 1
    assert metrics.panoptic_quality(total) == pytest.approx(metrics.dice(total) * mean)
    swapped = instance_scores.match(prediction, truth).objects().sum(0)
    assert metrics.panoptic_quality(swapped) == pytest.approx(metrics.panoptic_quality(total))


def blocks(*places: int) -> NDArray[np.uint8]:
    """Cubes of 4 voxels a side in a row, from these places along x on."""
    mask = np.zeros((4, 4, 40), np.uint8)
    for x in places:
        mask[..., x : x + 4] = 1
    return mask


def score(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> tuple[float, ...]:
    total = instance_scores.match(label(truth), label(prediction)).objects().sum(0)
    return tuple(float(f(total)) for f in (metrics.precision, metrics.recall, metrics.dice, metrics.panoptic_quality))


def test_missed_invented_and_shifted_instances():
    assert score(blocks(0, 10), blocks(0, 10)) == (1, 1, 1, 1)
    assert score(blocks(0, 10), blocks(0)) == pytest.approx((1, 1 / 2, 2 / 3, 2 / 3))
    assert score(blocks(0), blocks(0, 10)) == pytest.approx((1 / 2, 1, 2 / 3, 2 / 3))
    assert score(blocks(0), blocks(1)) == pytest.approx((1, 1, 1, 3 / 5))  # 3 of 5 layers are shared
    assert score(blocks(0), blocks(2)) == (0, 0, 0, 0)  # 2 of 6
    assert score(blocks(), blocks()) == (1, 1, 1, 1)
    assert score(blocks(0), blocks()) == (1, 0, 0, 0)


def test_a_bridge_that_dice_hardly_sees_costs_two_instances():
    truth, merged = blocks(0, 6), blocks(0, 6)
    merged[0, 0, 4:6] = 1
    assert metrics.dice(metrics.count(truth, merged).sum(0)) > 0.99
    assert score(truth, merged) == (0, 0, 0, 0)


def test_just_a_half_is_no_pair():
    truth, prediction = blocks(0, 4), blocks(0)  # four of eight layers
    assert instance_scores.match(label(truth), label(prediction)).iou.tolist() == []


def test_few_instances_have_a_wide_interval_and_many_a_narrow_one():
    rows = instance_scores.match(label(blocks(0, 10, 20)), label(blocks(0, 11, 30))).objects()
    few, many = (
        bootstrap_interval(objects, metrics.panoptic_quality, block=1, resamples=1000, seed=0)
        for objects in (rows, np.tile(rows, (50, 1)))
    )
    assert few.value == pytest.approx(many.value) == pytest.approx((1 + 3 / 5) / 3)
    assert few.low < many.low < many.value < many.high < few.high


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        instance_scores.match(np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3, 4), np.uint8))
    with pytest.raises(ValueError, match=r"below 0\.5"):
        instance_scores.match(np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)).objects(0.4)

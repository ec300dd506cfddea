"""Counts, scores, intervals and curves, against scikit-learn and against a plain resampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, f1_score, jaccard_score

from mitoflow.evaluation import curves, metrics
from mitoflow.evaluation.bootstrap import Interval, bootstrap_interval, paired_difference, simultaneous_level
from mitoflow.evaluation.curves import ProbabilityHistogram
from mitoflow.evaluation.metrics import Counts

probabilities = hnp.arrays(np.float32, (2, 3, 5), elements=st.floats(0, 1, width=32))
masks = hnp.arrays(bool, (2, 3, 5))


@given(masks, masks, masks)
def test_counts_are_the_confusion_matrix_of_owned_pixels(truth, prediction, owned):
    for t, p, o, counts in zip(truth, prediction, owned, metrics.count(truth, prediction, owned), strict=True):
        tn, fp, fn, tp = confusion_matrix(t[o], p[o], labels=[False, True]).ravel() if o.any() else (0, 0, 0, 0)
        assert counts.tolist() == [tp, fp, fn, tn]


@given(masks, masks)
def test_scores_are_those_of_scikit_learn(truth, prediction):
    counts = metrics.count(truth, prediction).sum(0)
    flat = truth.ravel(), prediction.ravel()
    assert metrics.dice(counts) == pytest.approx(f1_score(*flat, zero_division=1))
    assert metrics.iou(counts) == pytest.approx(
        jaccard_score(*flat, zero_division=0) if (truth | prediction).any() else 1
    )
    assert metrics.accuracy(counts) == np.mean(truth == prediction)


def test_nothing_to_get_wrong_scores_one():
    for score in metrics.scores_of("pixels").values():
        assert score(np.zeros(4, np.int64)) == 1
    missed, invented = np.array([0, 0, 7, 0]), np.array([0, 7, 0, 0])
    assert (metrics.precision(missed), metrics.recall(missed), metrics.dice(missed)) == (1, 0, 0)
    assert (metrics.precision(invented), metrics.recall(invented), metrics.iou(invented)) == (0, 1, 0)


def test_quantiles_are_of_the_slices_with_mitochondria():
    counts = np.array([[8, 1, 1, 90], [0, 0, 0, 100], [6, 2, 2, 90], [0, 3, 0, 97], [4, 0, 0, 96]])
    assert metrics.slice_dice(counts).tolist() == pytest.approx([16 / 18, 12 / 16, 0, 1])
    quantiles = metrics.slice_dice_quantiles(counts)
    assert quantiles["min"] == 0
    assert quantiles["median"] == pytest.approx((16 / 18 + 12 / 16) / 2)
    assert quantiles["min"] <= quantiles["q05"] <= quantiles["median"] <= quantiles["q95"] <= 1
    assert set(metrics.slice_dice_quantiles(counts[1:2]).values()) == {1.0}


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.count(np.zeros((2, 4, 4)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="differ in shape"):
        ProbabilityHistogram().add(np.zeros((2, 4, 4)), np.zeros((4, 4)))


@given(masks, probabilities, st.sampled_from(curves.THRESHOLDS.tolist()))
def test_histogram_counts_are_those_of_the_prediction_rule(truth, probability, threshold):
    histogram = ProbabilityHistogram()
    for row in zip(truth, probability, strict=True):
        histogram.add(*row)
    assert np.array_equal(histogram.counts_at(threshold), metrics.count(truth, probability >= threshold))


@given(masks, hnp.arrays(int, (2, 3, 5), elements=st.integers(0, 256)))
def test_probabilities_on_the_very_threshold_count_as_foreground(truth, k):
    probability = (k / 256).astype(np.float32)
    histogram = ProbabilityHistogram()
    histogram.add(truth, probability)
    for threshold in np.unique(np.minimum(k, 255)) / 256:
        assert histogram.counts_at(threshold).tolist() == [
            metrics.count(truth, probability >= threshold).sum(0).tolist()
        ]


def test_a_threshold_between_bins_is_refused():
    with pytest.raises(ValueError, match="k/256"):
        ProbabilityHistogram().counts_at(0.3)


@pytest.mark.parametrize("wrong", [np.nan, -0.1, 1.1])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match="NaN or outside"):
        ProbabilityHistogram().add(np.zeros((1, 2)), np.array([[0.5, wrong]]))


@pytest.fixture(scope="module")
def predicted() -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Truth and probabilities of an overconfident model, (4, 64, 64)."""
    rng = np.random.default_rng(3)
    truth = rng.random((4, 64, 64)) < 0.1
    logits = rng.normal(np.where(truth, 3, -4), 2.5)
    return truth, (1 / (1 + np.exp(-logits))).astype(np.float32)


@pytest.fixture(scope="module")
def histogram(predicted) -> ProbabilityHistogram:
    histogram = ProbabilityHistogram()
    for truth, probability in zip(*predicted, strict=True):
        histogram.add(truth, probability)
    return histogram


def test_best_threshold_beats_every_other(predicted, histogram):
    truth, probability = predicted
    scores = [metrics.dice(metrics.count(truth, probability >= t).sum(0)) for t in curves.THRESHOLDS]
    assert scores[int(curves.best_threshold([histogram]) * 256)] == max(scores)


def test_of_equal_thresholds_the_one_nearest_to_half_is_best():
    histogram = ProbabilityHistogram()
    histogram.add(np.array([[0, 1]]), np.array([[0.25, 0.75]]))
    assert curves.best_threshold([histogram]) == 0.5


def test_precision_recall_is_that_of_scikit_learn(predicted, histogram):
    truth, probability = predicted
    curve = histogram.precision_recall()
    binned = np.minimum(np.floor(probability * 256), 255)
    assert curve.average_precision == pytest.approx(average_precision_score(truth.ravel(), binned.ravel()))
    counts = metrics.count(truth, probability >= 0.5).sum(0)
    assert curve.precision[128] == metrics.precision(counts)
    assert curve.recall[128] == metrics.recall(counts)


def test_reliability_is_that_of_the_pixels(predicted, histogram):
    truth, probability = predicted
    reliability = histogram.reliability(bins=8)
    groups = np.minimum((probability * 8).astype(int), 7)
    for i in range(8):
        assert reliability.probability[i] == pytest.approx(probability[groups == i].mean())
        assert reliability.frequency[i] == pytest.approx(truth[groups == i].mean())
    gaps = [abs(probability[groups == i].mean() - truth[groups == i].mean()) * np.mean(groups == i) for i in range(8)]
    assert reliability.expected_calibration_error == pytest.approx(sum(gaps))
    assert reliability.brier == pytest.approx(brier_score_loss(truth.ravel(), probability.ravel()))


def test_curves_over_sets_are_means_of_sets(predicted, histogram):
    truth, probability = predicted
    easy = ProbabilityHistogram()
    easy.add(truth[0], np.where(truth[0], 0.6, 0.2).astype(np.float32))
    both = [histogram, easy]
    scores = np.mean([each.dice() for each in both], axis=0)
    threshold = curves.best_threshold(both)
    assert scores[int(threshold * 256)] == scores.max()
    assert threshold != curves.best_threshold([histogram])
    curve = curves.mean_precision_recall(both)
    assert curve.recall[200] == np.mean([each.precision_recall().recall[200] for each in both])
    reliability = curves.mean_reliability(both)
    assert reliability.brier == np.mean([each.reliability().brier for each in both])
    shares = reliability.pixels / reliability.pixels.sum()
    in_last = [np.mean(probability >= 15 / 16), 0.0]
    assert shares[-1] == pytest.approx(np.mean(in_last), abs=1e-3)


def test_the_curves_of_one_set_are_its_own(histogram):
    alone, own = curves.mean_reliability([histogram]), histogram.reliability()
    assert np.array_equal(alone.probability, own.probability)
    assert np.array_equal(alone.pixels, own.pixels)
    curve, own_curve = curves.mean_precision_recall([histogram]), histogram.precision_recall()
    assert np.array_equal(curve.precision, own_curve.precision)


def test_bins_without_pixels_are_left_out():
    histogram = ProbabilityHistogram()
    histogram.add(np.array([[0, 1]]), np.array([[0.0, 1.0]]))
    reliability = histogram.reliability()
    assert reliability.probability.tolist() == reliability.frequency.tolist() == [0, 1]
    assert reliability.expected_calibration_error == reliability.brier == 0


def drifting_counts(slices: int, seed: int, correlation: float = 0.9) -> Counts:
    """Counts whose Dice wanders from slice to slice, as in a stack; true pooled Dice is 0.9 for an endless one."""
    rng = np.random.default_rng(seed)
    drift = np.zeros(slices + 100)
    for i in range(1, len(drift)):
        drift[i] = correlation * drift[i - 1] + np.sqrt(1 - correlation**2) * rng.normal()
    wrong = np.round(1000 + 200 * drift[100:]).astype(np.int64)
    tp = np.full_like(wrong, 9000)
    return np.stack([tp, wrong, wrong, np.full_like(wrong, 80_000)], axis=-1)


def test_interval_is_that_of_a_plain_resampling():
    counts, block, resamples = drifting_counts(23, seed=1), 5, 4000
    stacks = ["a"] * 13 + ["b"] * 10
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(resamples):
        drawn = []
        for ring in (np.arange(13), np.arange(13, 23)):
            starts = rng.integers(len(ring), size=len(ring))
            picked = [ring[(start + i) % len(ring)] for start in starts for i in range(block)]
            drawn += picked[: len(ring)]
        scores.append(metrics.dice(counts[drawn].sum(0)))
    interval = bootstrap_interval(counts, metrics.dice, block, resamples, seed=0, stacks=stacks)
    assert interval.value == metrics.dice(counts.sum(0))
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(scores, [0.025, 0.975])), abs=5e-4)


@pytest.mark.slow
def test_blocks_hold_the_truth_where_single_slices_promise_too_much():
    """How often the interval holds the Dice of an endless stack, over 300 stacks of 165 slices."""

    def coverage(block: int) -> float:
        intervals = (
            bootstrap_interval(drifting_counts(165, seed, correlation=0.6), metrics.dice, block, 400, seed)
            for seed in range(300)
        )
        return sum(interval.low <= 0.9 <= interval.high for interval in intervals) / 300

    assert coverage(block=10) > 0.83
    assert coverage(block=1) < 0.7


@settings(max_examples=50)
@given(st.integers(2, 30), st.integers(1, 40), st.integers(0, 3))
def test_interval_repeats_and_holds_its_value(slices, block, seed):
    counts = drifting_counts(slices, seed)
    interval = bootstrap_interval(counts, metrics.iou, block, 200, seed)
    assert interval == bootstrap_interval(counts, metrics.iou, block, 200, seed)
    assert interval.low <= interval.value <= interval.high
    assert interval.low < interval.high


def test_order_of_stacks_and_their_labels_do_not_matter():
    counts = drifting_counts(20, seed=2)
    by_name = bootstrap_interval(counts, metrics.dice, 4, 300, 0, stacks=["x"] * 12 + ["y"] * 8)
    by_number = bootstrap_interval(counts, metrics.dice, 4, 300, 0, stacks=np.repeat([3, 5], [12, 8]).tolist())
    assert by_name == by_number


def test_files_of_one_slice_count_as_one_stack():
    counts = drifting_counts(20, seed=0)
    files = bootstrap_interval(counts, metrics.dice, 5, 300, 0, stacks=[f"page{i}" for i in range(20)])
    assert files == bootstrap_interval(counts, metrics.dice, 5, 300, 0)


def test_interval_of_fractions_is_that_of_a_plain_resampling():
    rows = np.random.default_rng(5).random((40, 2))
    drawn = np.random.default_rng(1).integers(40, size=(4000, 40))
    interval = bootstrap_interval(rows, lambda r: metrics.ratio(r[..., 0], r.sum(-1)), 1, 4000, seed=0)
    scores = rows[drawn].sum(1)
    expected = np.quantile(scores[:, 0] / scores.sum(1), [0.025, 0.975])
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=5e-3)


def test_a_single_slice_has_the_widest_interval():
    counts = drifting_counts(1, seed=0)
    interval = bootstrap_interval(counts, metrics.dice, 5, 100, 0)
    assert interval == Interval(float(metrics.dice(counts[0])), 0, 1)
    assert paired_difference(counts, counts, metrics.dice, 5, 100, 0) == Interval(0, -1, 1)


@pytest.mark.parametrize("block", [1, 10])
def test_slices_that_nobody_looked_at_are_not_drawn(block: int) -> None:
    """Two are drawn of two: Dice is 16/18 or 8/14 where one is drawn twice, and 24/32 of both."""
    counts = np.zeros((40, 4), np.int64)
    counts[[3, 29]] = [8, 1, 1, 0], [4, 3, 3, 0]
    assert bootstrap_interval(counts, metrics.dice, block, 200, 0) == Interval(24 / 32, 8 / 14, 16 / 18)
    stacks = ["a"] * 20 + ["b"] * 20  # slices that are alone in their stack count together
    assert bootstrap_interval(counts, metrics.dice, block, 200, 0, stacks) == Interval(24 / 32, 8 / 14, 16 / 18)
    worse = counts[:, [1, 0, 2, 3]]  # Dice is 2/11 and 6/13, or 8/24 of both
    gain = paired_difference(counts, worse, metrics.dice, block, 200, 0)
    expected = (24 / 32 - 8 / 24, 8 / 14 - 6 / 13, 16 / 18 - 2 / 11)
    assert (gain.value, gain.low, gain.high) == pytest.approx(expected)


def test_where_one_slice_was_looked_at_nothing_is_known() -> None:
    counts = np.zeros((40, 4), np.int64)
    assert bootstrap_interval(counts, metrics.dice, 5, 50, 0) == Interval(1, 0, 1)
    counts[7] = [8, 1, 1, 0]
    assert bootstrap_interval(counts, metrics.dice, 5, 50, 0) == Interval(16 / 18, 0, 1)
    assert paired_difference(counts, counts, metrics.dice, 5, 50, 0) == Interval(0, -1, 1)


def test_several_sets_count_alike_whatever_their_size():
    """A plain resampling of slices within each of three sets; the mean of their scores is not that of all pixels."""
    sizes = {"large": 40, "small": 8, "other": 20}
    counts = np.concatenate([drifting_counts(n, seed) for seed, n in enumerate(sizes.values())])
    counts[40:48, 0] //= 4  # the small set is the hard one
    datasets = np.repeat([*sizes], [*sizes.values()]).tolist()
    rows = [np.flatnonzero(np.array(datasets) == name) for name in sizes]
    rng = np.random.default_rng(3)
    draws = [
        np.mean([metrics.dice(counts[rng.choice(of_set, len(of_set))].sum(0)) for of_set in rows]) for _ in range(4000)
    ]
    interval = bootstrap_interval(counts, metrics.dice, 1, 4000, seed=0, stacks=["s"] * 68, datasets=datasets)
    assert interval.value == np.mean([metrics.dice(counts[of_set].sum(0)) for of_set in rows])
    assert interval.value < metrics.dice(counts.sum(0)) - 0.05
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=1e-3)


def test_draws_of_two_sets_are_independent_of_each_other():
    """Two sets with the same counts: the mean of two independent draws varies less than one by itself."""
    alone = drifting_counts(60, seed=3)
    one = bootstrap_interval(alone, metrics.dice, 5, 2000, 0)
    twice = bootstrap_interval(np.concatenate([alone] * 2), metrics.dice, 5, 2000, 0, datasets=[0] * 60 + [1] * 60)
    assert twice.value == one.value
    assert (twice.high - twice.low) / (one.high - one.low) == pytest.approx(2**-0.5, abs=0.06)


def test_one_set_is_what_no_set_is_and_a_set_of_one_slice_adds_its_doubt():
    counts = drifting_counts(20, seed=2)
    assert bootstrap_interval(counts, metrics.dice, 4, 300, 0, datasets=["a"] * 20) == bootstrap_interval(
        counts, metrics.dice, 4, 300, 0
    )
    some = bootstrap_interval(counts[:19], metrics.dice, 4, 300, 0)
    doubtful = bootstrap_interval(counts, metrics.dice, 4, 300, 0, datasets=["a"] * 19 + ["b"])
    assert (doubtful.low, doubtful.high) == pytest.approx((some.low / 2, (1 + some.high) / 2))


def test_a_paired_difference_over_sets_is_the_mean_of_theirs():
    counts, gain = drifting_counts(50, seed=1), np.array([60, -60, -60, 60])
    better = counts + np.repeat([gain, -3 * gain], [40, 10], axis=0)
    datasets = ["large"] * 40 + ["small"] * 10
    over = paired_difference(better, counts, metrics.dice, 4, 500, 0, datasets=datasets)
    each = [
        paired_difference(better[of], counts[of], metrics.dice, 4, 500, 0).value for of in (slice(40), slice(40, 50))
    ]
    assert each[0] > 0 > each[1]
    assert over.value == pytest.approx(np.mean(each))
    assert over.high < 0 < paired_difference(better, counts, metrics.dice, 4, 500, 0).value


def test_pairing_sees_a_difference_that_single_intervals_hide():
    worse = drifting_counts(165, seed=4)
    better = worse + np.array([60, -60, -60, 60])
    difference = paired_difference(better, worse, metrics.dice, block=10, resamples=1000, seed=0)
    low, high = (bootstrap_interval(c, metrics.dice, 10, 1000, 0) for c in (better, worse))
    assert low.low < high.high  # each interval alone overlaps the other
    assert difference.low > 0
    assert difference.value == pytest.approx(low.value - high.value)
    back = paired_difference(worse, better, metrics.dice, block=10, resamples=1000, seed=0)
    assert (back.low, back.high) == pytest.approx((-difference.high, -difference.low))


def test_the_difference_from_a_model_that_finds_nothing_is_the_score() -> None:
    """Its Dice is 0 on every draw, so that the interval is that of the other model by itself, stack by stack."""
    counts, nothing = drifting_counts(24, seed=2), np.tile([0, 0, 1, 9], (24, 1))
    how = {"block": 4, "resamples": 300, "seed": 0, "stacks": ["a"] * 15 + ["b"] * 9}
    alone = bootstrap_interval(counts, metrics.dice, **how)
    assert paired_difference(counts, nothing, metrics.dice, **how) == alone
    assert alone != bootstrap_interval(counts, metrics.dice, **{**how, "stacks": None})
    ten = paired_difference(counts, nothing, metrics.dice, **how, comparisons=10)
    as_many_draws = bootstrap_interval(counts, metrics.dice, **{**how, "resamples": 3000})
    assert ten.value == alone.value
    assert ten.low < as_many_draws.low < as_many_draws.high < ten.high
    assert (simultaneous_level(1), simultaneous_level(10)) == (0.95, 0.995)


def test_a_model_does_not_differ_from_itself():
    counts = drifting_counts(40, seed=6)
    assert paired_difference(counts, counts, metrics.dice, 10, 200, 0) == Interval(0, 0, 0)


def test_counts_of_other_slices_cannot_be_paired():
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(drifting_counts(4, 0), drifting_counts(5, 0), metrics.dice, 2, 10, 0)


def test_an_interval_is_written_and_read_in_one_way() -> None:
    interval = Interval(0.91234, -0.5, 0.92)
    assert (str(interval), f"{interval}", f"{interval:+.2f}") == (
        "0.9123 [-0.5000, 0.9200]",
        "0.9123 [-0.5000, 0.9200]",
        "+0.91 [-0.50, +0.92]",
    )
    tags = {key: str(value) for key, value in interval.as_dict("mitoflow.dice", ".").items()}
    assert tags == {"mitoflow.dice": "0.91234", "mitoflow.dice.low": "-0.5", "mitoflow.dice.high": "0.92"}
    assert Interval.from_dict("mitoflow.dice", tags, ".") == interval
    assert Interval.from_dict("mitoflow.dice", {"mitoflow.dice": "0.9"}, ".") is None
    figures = {"dice": 0.91234, "dice_low": -0.5, "dice_high": 0.92}
    assert interval.as_dict("dice") == figures
    assert Interval.from_dict("dice", figures) == interval


@pytest.mark.slow
def test_the_intervals_of_many_comparisons_hold_together() -> None:
    """Of ten models that are as good as another one, the best seems better in few queues, and not in one of four."""
    rng = np.random.default_rng(1)

    def counts_of_a_model() -> np.ndarray:
        found = rng.binomial(100, 0.8, 80)
        return np.stack([found, np.full(80, 5), 100 - found, np.full(80, 900)], axis=1)

    queues, ten = 60, 10
    misled = {1: 0, ten: 0}
    for _ in range(queues):
        champion, candidates = counts_of_a_model(), [counts_of_a_model() for _ in range(ten)]
        for allowed in misled:
            gains = [
                paired_difference(each, champion, metrics.dice, 4, 300, 1, comparisons=allowed) for each in candidates
            ]
            misled[allowed] += any(gain.low > 0 for gain in gains)
    assert misled[ten] / queues <= 0.1
    assert misled[1] / queues > 0.2


def test_counts_are_of_any_number_of_leading_axes():
    truth, found = np.array([[1, 1, 0], [0, 0, 0]]), np.array([[1, 0, 1], [0, 0, 1]])
    assert metrics.count(truth, found).tolist() == [1, 2, 1, 2]
    both = metrics.count(np.stack([[truth, found]] * 3), np.stack([[found, found]] * 3))
    assert both.tolist() == [[[1, 2, 1, 2], [3, 0, 0, 3]]] * 3


def share_of_ten(counts: NDArray) -> NDArray:
    """The sum of the first column over what ten pixels in each of 6 slices give."""
    return counts[..., 0] / 60


@pytest.mark.parametrize("block", [1, 2, 4, 5])
@pytest.mark.parametrize("stacks", [None, [*"aaabbc"], [*"abcdef"], [*"aabbcc"]])
def test_each_draw_has_as_many_slices_as_there_are(block: int, stacks: list[str] | None):
    """Also where blocks leave a rest, of stacks of two slices, and of slices that are alone."""
    interval = bootstrap_interval(np.full((6, 1), 10), share_of_ten, block, 50, 0, stacks)
    assert interval == Interval(1, 1, 1)


def test_blocks_are_at_most_half_of_a_stack_and_not_less():
    """Two slices that follow each other are a whole and an empty one, so every draw of blocks of two is the same."""
    counts = np.array([[10, 0], [0, 10], [10, 0], [0, 10]])
    assert bootstrap_interval(counts, lambda c: c[..., 0] / 40, 10, 50, 0) == Interval(0.5, 0.5, 0.5)
    assert bootstrap_interval(counts, lambda c: c[..., 0] / 40, 1, 50, 0).low < 0.5


def test_two_slices_are_enough_to_draw_from_and_one_is_not():
    counts = np.array([[8, 1, 1, 0]] * 2)
    assert bootstrap_interval(counts, metrics.dice, 5, 50, 0) == Interval(16 / 18, 16 / 18, 16 / 18)
    assert bootstrap_interval(counts[:1], metrics.dice, 5, 50, 0) == Interval(16 / 18, 0, 1)

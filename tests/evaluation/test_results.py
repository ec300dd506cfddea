"""Measurements on the test part, and the scores computed from them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from mitoflow.config.params import Instances
from mitoflow.data.conventions import Conventions
from mitoflow.data.masks import binarise
from mitoflow.data.network_input import UNLABELLED
from mitoflow.data.pairs import Pair, read_pairs
from mitoflow.evaluation import metrics, protocols
from mitoflow.evaluation.bootstrap import Interval
from mitoflow.evaluation.protocols import Choice, Measured
from mitoflow.evaluation.results import Results, score
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.io.tiff import Stack, open_stack, write_stack

THRESHOLD = 0.5
BOOTSTRAP = {"block": 2, "resamples": 100, "seed": 0}


class Counted:
    """A stack that counts how often each of its slices is read."""

    def __init__(self, stack: Any) -> None:
        self._stack = stack
        self.reads: Counter[int] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stack, name)

    def slice(self, z: int) -> np.ndarray:
        self.reads[z] += 1
        return self._stack.slice(z)


def stack_of(slices: Sequence[np.ndarray], path: Path) -> Stack:
    """Write slices to a file, and open it."""
    write_stack(path, np.stack(slices))
    return open_stack(path)


NONZERO = Conventions(8, "nonzero")


@pytest.fixture(scope="module")
def pairs(small_dataset: Path) -> list[Pair]:
    """Two stacks of eight slices, whose reads of the masks are counted."""
    (pair,) = read_pairs(small_dataset / "test")
    return [dataclasses.replace(pair, name=name, mask=Counted(pair.mask)) for name in ("a", "b")]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """What is dark is mitochondrion."""
    inputs = keras.Input((None, None, 1))
    constant = keras.initializers.Constant
    dark = keras.layers.Conv2D(1, 1, kernel_initializer=constant(-9), bias_initializer=constant(4))
    settings = Settings(bit_depth=8, divisor=4, tile=64, overlap=16, threshold=THRESHOLD)
    return Predictor(keras.Model(inputs, dark(inputs)), settings)


@pytest.fixture(scope="module")
def measured(predictor: Predictor, pairs: list[Pair]) -> dict[str, Measured]:
    return protocols.measure(predictor, pairs, {"phantom": NONZERO}, 64, Instances())


@pytest.fixture(scope="module")
def results(measured: dict[str, Measured]) -> Results:
    return score(measured, Choice(THRESHOLD, 1, 0.9), **BOOTSTRAP)


@pytest.fixture(scope="module")
def two_sets(predictor: Predictor, pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measured]:
    """The first stack as it is, and three slices of the second one with a truth that has few of the mitochondria."""
    folder = tmp_path_factory.mktemp("hard")
    masks = [binarise(mask, "nonzero") * (np.arange(128) < 24) for mask in pairs[1].mask.slices()][:3]
    eroded = Counted(stack_of(np.array(masks, np.uint8), folder / "mask.tif"))
    image = stack_of([*pairs[1].image.slices()][:3], folder / "image.tif")
    hard = dataclasses.replace(pairs[1], image=image, mask=eroded, dataset="hard")
    return protocols.measure(predictor, [pairs[0], hard], {"phantom": NONZERO, "hard": NONZERO}, 64, Instances())


def test_each_mask_is_read_once(pairs: list[Pair], measured: dict[str, Measured]) -> None:
    for pair, stack in zip(pairs, measured["phantom"].stacks, strict=True):
        assert pair.mask.reads == Counter(range(8))
        np.testing.assert_array_equal(stack.truth, [binarise(mask, "nonzero") for mask in pair.mask.slices()])


def test_counts_are_those_of_the_masks(measured: dict[str, Measured], results: Results) -> None:
    (of_set,) = measured.values()
    counts = np.concatenate([metrics.count(stack.truth, stack.mask) for stack in of_set.stacks])
    assert 0 < counts[:, 0].sum() < counts[:, :2].sum()
    np.testing.assert_array_equal(results.counts, counts)
    assert results.whole_slice.intervals["dice"].value == metrics.dice(counts.sum(0))
    patch_wise = np.concatenate([stack.patch_wise for stack in of_set.stacks])
    np.testing.assert_array_equal(patch_wise, counts)  # each pixel is predicted from itself alone


def test_slices_that_nobody_looked_at_change_no_interval(measured: dict[str, Measured]) -> None:
    (of_set,) = measured.values()
    stack = of_set.stacks[0]
    truth, mask = np.full((20, *stack.truth.shape[1:]), UNLABELLED, np.uint8), np.zeros((20, *stack.mask.shape[1:]))
    truth[4:12], mask[4:12] = stack.truth, stack.mask
    shapes = protocols.compare_shapes(truth, mask.astype(bool), Instances(), None)
    within = dataclasses.replace(
        stack, truth=truth, mask=mask, patch_wise=metrics.count(truth, mask), single_slice=None, shapes=shapes
    )
    alone = dataclasses.replace(
        stack, single_slice=None, shapes=protocols.compare_shapes(stack.truth, stack.mask, Instances(), None)
    )
    few, all_ = (
        score({"phantom": Measured([each], of_set.whole_slice)}, Choice(THRESHOLD, 1, 0.9), **BOOTSTRAP)
        for each in (within, alone)
    )
    assert few.whole_slice == all_.whole_slice
    assert few.patch_wise == all_.patch_wise
    assert few.shapes == all_.shapes


def test_the_summary_has_each_score_with_its_interval(results: Results) -> None:
    summary = results.summary()
    for protocol in ("patch_wise", "whole_slice"):
        intervals = getattr(results, protocol).intervals
        assert {name: Interval.from_dict(name, summary[protocol]) for name in intervals} == intervals
    assert {name: Interval.from_dict(name, summary) for name in results.shapes} == results.shapes
    assert (summary["threshold"], summary["median"], summary["validation_dice"]) == (THRESHOLD, 1, 0.9)


def test_there_is_a_row_for_each_slice(results: Results) -> None:
    columns = results.slices()
    assert {len(values) for values in columns.values()} == {16}
    assert list(zip(columns["stack"], columns["z"], strict=True)) == [(name, z) for name in "ab" for z in range(8)]
    rows = np.stack([columns[name] for name in ("tp", "fp", "fn", "tn")], axis=-1)
    np.testing.assert_array_equal(rows, results.counts)
    np.testing.assert_array_equal(columns["dice"], metrics.dice(rows))


def test_one_set_has_the_keys_of_before_there_were_sets(results: Results) -> None:
    counted = {"true_instances", "predicted_instances"}
    quantiles = {f"slice_dice_{name}" for name in ("min", "q05", "median", "q95")}
    curves = {"average_precision", "calibration_error", "brier"}
    intervals = {f"{name}{end}" for name in results.shapes for end in ("", "_low", "_high")}
    sections = {"patch_wise", "whole_slice", "threshold", "median", "validation_dice"}
    assert results.summary().keys() == sections | counted | quantiles | curves | intervals
    assert "set" not in results.slices()
    assert [*results.by_set] == ["phantom"]


def test_over_sets_a_score_is_the_mean_of_theirs(two_sets: dict[str, Measured]) -> None:
    results = score(two_sets, Choice(THRESHOLD, 1, 0.8, {"phantom": 0.9, "hard": 0.7}), **BOOTSTRAP)
    summary = results.summary()
    assert [*summary["sets"]] == ["phantom", "hard"]
    for name, each in two_sets.items():
        alone = score({name: each}, Choice(THRESHOLD, 1, 0.8), **BOOTSTRAP).summary()
        of_set = summary["sets"][name]
        assert of_set["validation_dice"] == results.choice.sets[name]
        common = of_set.keys() - {"validation_dice"}
        assert {key: of_set[key] for key in common} == {key: alone[key] for key in common}
        assert alone.keys() - common == {"threshold", "median", "validation_dice"}
    for protocol in ("whole_slice", "patch_wise"):
        for name, value in summary[protocol].items():
            if not name.endswith(("_low", "_high")):
                assert value == pytest.approx(np.mean([each[protocol][name] for each in summary["sets"].values()]))
    means = ("boundary_f1", "instance_f1_50", "panoptic_quality", "average_precision", "calibration_error", "brier")
    for name in means:
        assert summary[name] == pytest.approx(np.mean([each[name] for each in summary["sets"].values()])), name
    assert summary["true_instances"] == sum(each["true_instances"] for each in summary["sets"].values())
    pooled = float(metrics.dice(results.counts.sum(0)))
    assert summary["whole_slice"]["dice"] < pooled - 0.02
    assert list(results.slices()["set"]) == ["phantom"] * 8 + ["hard"] * 3
    assert "validation_dice" not in score(two_sets, Choice(THRESHOLD, 1, 0.9), **BOOTSTRAP).summary()["sets"]["hard"]


def test_a_set_without_any_instance_counts_like_the_others(two_sets: dict[str, Measured]) -> None:
    (stack,) = two_sets["hard"].stacks
    nothing = np.zeros_like(stack.truth)
    empty = dataclasses.replace(
        stack, truth=nothing, mask=nothing, shapes=protocols.compare_shapes(nothing, nothing, Instances(), None)
    )
    sets = two_sets | {"hard": dataclasses.replace(two_sets["hard"], stacks=[empty])}
    summary = score(sets, Choice(THRESHOLD, 1, 0.9), **BOOTSTRAP).summary()
    assert summary["sets"]["hard"]["instance_f1_50"] == 1
    assert summary["instance_f1_50"] == (1 + summary["sets"]["phantom"]["instance_f1_50"]) / 2


def test_single_slices_are_scored_where_a_stack_is_seen_otherwise(pairs: list[Pair], tmp_path: Path) -> None:
    """The network sees the slice after this one alone: by itself, a slice is its own neighbour."""
    inputs = keras.Input((None, None, 3))
    last = np.array([0.0, 0.0, -9.0], np.float32).reshape(1, 1, 3, 1)
    layer = keras.layers.Conv2D(1, 1, bias_initializer=keras.initializers.Constant(4))
    network = keras.Model(inputs, layer(inputs))
    layer.set_weights([last, np.array([4.0], np.float32)])
    settings = Settings(bit_depth=8, divisor=4, tile=64, overlap=16, threshold=THRESHOLD, context=1)
    predictor = Predictor(network, settings)
    measured = protocols.measure(predictor, pairs[:1], {"phantom": NONZERO}, 64, Instances())
    (stack,) = measured["phantom"].stacks
    images = [*pairs[0].image.slices()]
    alone = np.stack([predictor.masks(image[None])[0] for image in images])
    np.testing.assert_array_equal(stack.single_slice, metrics.count(stack.truth, alone))
    assert (stack.single_slice[:-1] != metrics.count(stack.truth, stack.mask)[:-1]).any()
    results = score(measured, Choice(THRESHOLD, 1, 0.9), **BOOTSTRAP)
    summary = results.summary()
    assert summary["single_slice"].keys() == summary["whole_slice"].keys()
    assert summary["single_slice"]["dice"] == metrics.dice(stack.single_slice.sum(0))
    # A stack of one slice is a single slice, so there is nothing else to score.
    image = stack_of(images[:1], tmp_path / "image.tif")
    mask = stack_of([*pairs[0].mask.slices()][:1], tmp_path / "mask.tif")
    one = dataclasses.replace(pairs[0], image=image, mask=mask)
    (alone_in_stack,) = protocols.measure(predictor, [one], {"phantom": NONZERO}, 64, Instances())["phantom"].stacks
    assert alone_in_stack.single_slice is None

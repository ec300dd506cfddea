"""Measurements on the test part, and the scores computed from them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from mitoflow.data.masks import binarise
from mitoflow.data.pairs import Pair, read_pairs
from mitoflow.evaluation import metrics, protocols
from mitoflow.evaluation.bootstrap import Interval
from mitoflow.evaluation.protocols import Choice, Measured
from mitoflow.evaluation.results import Results, score
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings

THRESHOLD = 0.5


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


@pytest.fixture(scope="module")
def pairs(small_dataset: Path) -> list[Pair]:
    """Two stacks of eight slices, whose reads of the masks are counted."""
    (pair,) = read_pairs(small_dataset / "test")
    return [dataclasses.replace(pair, name=name, mask=Counted(pair.mask)) for name in ("a", "b")]


@pytest.fixture(scope="module")
def measured(pairs: list[Pair]) -> Measured:
    inputs = keras.Input((None, None, 1))
    constant = keras.initializers.Constant
    dark = keras.layers.Conv2D(1, 1, kernel_initializer=constant(-9), bias_initializer=constant(4))
    settings = Settings(bit_depth=8, divisor=4, tile=64, overlap=16, threshold=THRESHOLD)
    return protocols.measure(
        Predictor(keras.Model(inputs, dark(inputs)), settings), pairs, {"phantom": "nonzero"}, size=64
    )


@pytest.fixture(scope="module")
def results(measured: Measured) -> Results:
    return score(measured, Choice(THRESHOLD, 1, 0.9), block=2, resamples=100, seed=0)


def test_each_mask_is_read_once(pairs: list[Pair], measured: Measured) -> None:
    for pair, stack in zip(pairs, measured.stacks, strict=True):
        assert pair.mask.reads == Counter(range(8))
        np.testing.assert_array_equal(stack.truth, [binarise(mask, "nonzero") for mask in pair.mask.slices()])


def test_counts_are_those_of_the_masks(measured: Measured, results: Results) -> None:
    counts = np.concatenate([metrics.count(stack.truth, stack.mask) for stack in measured.stacks])
    assert 0 < counts[:, 0].sum() < counts[:, :2].sum()
    np.testing.assert_array_equal(results.counts, counts)
    assert results.whole_slice.intervals["dice"].value == metrics.dice(counts.sum(0))
    patch_wise = np.concatenate([stack.patch_wise for stack in measured.stacks])
    np.testing.assert_array_equal(patch_wise, counts)  # each pixel is predicted from itself alone


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

"""The record of an evaluation, of one set and of several."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mitoflow.config.params import Bootstrap
from mitoflow.evaluation import metrics
from mitoflow.evaluation.bootstrap import Interval
from mitoflow.evaluation.evaluation_record import Evaluation


def of_set(digest: str, slices: int, right: int, boundaries: bool = True) -> Evaluation:
    counts = [[right + 7 * z % 50, 50, 1000 - right, 9000] for z in range(slices)]
    outlines = [[10, 5 + z % 3, 10, 5, 9, 3] for z in range(slices)] if boundaries else []
    return Evaluation("m" * 64, digest, ["s"] * slices, counts, 4, 200, 1, outlines)


@pytest.fixture
def sets() -> dict[str, Evaluation]:
    return {"epfl": of_set("e" * 16, 30, 900), "vnc": of_set("v" * 16, 10, 500)}


def test_one_set_is_recorded_as_it_was_before_there_were_sets(tmp_path: Path) -> None:
    alone = of_set("e" * 16, 6, 900)
    assert Evaluation.of_sets({"epfl": alone}) == alone
    assert alone.sets == {"": alone}
    alone.write(tmp_path / "evaluation.json")
    known = {"model_sha256", "test_hash", "stacks", "counts", "block", "resamples", "seed", "boundaries"}
    assert json.loads((tmp_path / "evaluation.json").read_text()).keys() == known


def test_what_counts_as_a_mitochondrion_identifies_an_evaluation(tmp_path: Path) -> None:
    before = of_set("e" * 16, 6, 900)
    small, large = (replace(before, instances={"smallest_voxels": size}) for size in (500, 600))
    assert len({each.sha256 for each in (before, small, large)}) == 3
    assert small.interval("dice") == large.interval("dice")
    small.write(tmp_path / "evaluation.json")
    assert Evaluation.read(tmp_path / "evaluation.json") == small


def test_several_sets_are_taken_apart_again(sets: dict[str, Evaluation], tmp_path: Path) -> None:
    both = Evaluation.of_sets(sets)
    assert both.sets == sets
    assert both.test_hash not in both.test_hashes.values()
    both.write(tmp_path / "evaluation.json")
    again = Evaluation.read(tmp_path / "evaluation.json")
    assert (again, again.sha256) == (both, both.sha256)
    plain = Evaluation.of_sets({name: replace(each, boundaries=[]) for name, each in sets.items()})
    assert plain.sets["vnc"].boundaries == []


@pytest.mark.parametrize("score", ["dice", "accuracy", "boundary_f1"])
def test_a_score_over_sets_is_the_mean_of_theirs(sets: dict[str, Evaluation], score: str) -> None:
    both = Evaluation.of_sets(sets)
    assert both.interval(score).value == np.mean([each.interval(score).value for each in sets.values()])
    assert both.sets["epfl"].interval(score) == sets["epfl"].interval(score)


def test_slices_that_nobody_looked_at_do_not_count_and_those_without_boundary_do() -> None:
    """One slice with boundary F1 1/2 and 40 that nobody looked at; then one without mitochondria, whose F1 is 1."""
    counts, boundaries = [[8, 1, 1, 0]] + [[0] * 4] * 40, [[10, 5, 10, 5, 2, 2]] + [[0] * 6] * 40
    one = replace(of_set("e" * 16, 41, 0), counts=counts, boundaries=boundaries)
    assert one.interval("boundary_f1") == Interval(0.5, 0, 1)
    assert one.better_by(one, Bootstrap(block=4, resamples=200, seed=1), "boundary_f1") == Interval(0, -1, 1)
    two = replace(one, counts=[*counts[:1], [0, 0, 0, 10], *counts[2:]])
    assert two.interval("boundary_f1") == Interval(0.5, 0.5, 1)


def test_the_shared_sets_are_found_by_their_test_data(sets: dict[str, Evaluation]) -> None:
    both = Evaluation.of_sets(sets)
    renamed = Evaluation.of_sets({"drosophila": sets["vnc"], "heart": of_set("h" * 16, 5, 700)})
    assert both.shared_sets(renamed) == {"vnc": (sets["vnc"], sets["vnc"])}
    assert renamed.shared_sets(both) == {"drosophila": (sets["vnc"], sets["vnc"])}
    old = sets["vnc"]  # of one set, which has no name in its record
    assert old.shared_sets(both) == {"vnc": (old, old)}
    assert old.shared_sets(of_set("x" * 16, 10, 500)) == {}


def test_a_gain_over_sets_is_the_mean_of_their_gains(sets: dict[str, Evaluation]) -> None:
    worse = Evaluation.of_sets({"epfl": of_set("e" * 16, 30, 890), "vnc": of_set("v" * 16, 10, 600)})
    both, bootstrap = Evaluation.of_sets(sets), Bootstrap(block=4, resamples=200, seed=1)
    gains = [ours.better_by(theirs, bootstrap) for ours, theirs in both.shared_sets(worse).values()]
    assert gains[0].low > 0 > gains[1].high
    over = both.better_by(worse, bootstrap)
    assert over.value == pytest.approx(np.mean([gain.value for gain in gains]))
    pixels = (metrics.dice(np.sum(each.counts, axis=0)) for each in (both, worse))
    assert over.value != pytest.approx(next(pixels) - next(pixels), abs=1e-3)

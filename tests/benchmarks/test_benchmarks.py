"""The runner of the benchmarks, with contenders that sleep; what they measure is for `make bench`."""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from benchmarks.measure import Lap, Series, alternate, quartiles, ratio
from benchmarks.table import compare, markdown

ROOT = Path(__file__).parents[2]


def sleep(seconds: float, work: float, lap: Lap) -> None:
    time.sleep(0.3)  # setting up, which must not count
    while True:
        time.sleep(seconds)
        lap(work)


def hold(mebibytes: int, lap: Lap) -> None:
    held = b"x" * (mebibytes << 20)
    while True:
        lap(len(held))


def lack_a_library(lap: Lap) -> None:
    import no_such_library  # noqa: F401


def fail(lap: Lap) -> None:
    lap(1)
    raise ValueError("broken")


def test_quartiles() -> None:
    found = quartiles([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.low, found.median, found.high) == (2, 3, 4)
    assert quartiles([7.0]).median == quartiles([7.0]).high == 7


def test_a_ratio_compares_work_a_second_round_by_round() -> None:
    # A slow moment of the machine in the third round hits both, and leaves its ratio as it is.
    ours, theirs = Series(8, [1, 1, 10, 1, 1], 0), Series(4, [1, 2, 10, 1.5, 1.25], 0)
    found = ratio(ours, theirs)
    assert (found.low, found.median, found.high) == (2, 2.5, 4)


@pytest.mark.slow
def test_contenders_work_in_turn_and_their_first_piece_does_not_count() -> None:
    series = alternate({"quick": partial(sleep, 0.02, 1), "slow": partial(sleep, 0.06, 1)}, rounds=3)
    assert {name: len(each.seconds) for name, each in series.items()} == {"quick": 3, "slow": 3}
    assert max(series["quick"].seconds) < 0.3
    assert 1.5 < ratio(series["quick"], series["slow"]).median < 4


def test_peak_memory_is_that_of_the_contender_alone() -> None:
    held = bytearray(256 << 20)
    series = alternate({"small": partial(hold, 1), "large": partial(hold, 100)}, rounds=1)
    assert series["small"].peak_mib < len(held) / 2**20
    assert 90 < series["large"].peak_mib - series["small"].peak_mib < 110


def test_a_contender_without_its_library_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    series = alternate({"mitoflow": partial(sleep, 0.01, 1), "other": lack_a_library}, rounds=1)
    assert list(series) == ["mitoflow"]
    assert "other is left out: No module named 'no_such_library'" in capsys.readouterr().err
    row = compare("what", "a second", series, "other", "a baseline", 2, "command")
    assert row.cells["baseline"] == "a baseline: left out"
    assert row.cells["met"] == ""


def test_a_contender_that_fails_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match="broken one failed"):
        alternate({"broken one": fail}, rounds=2)


def test_a_row_says_whether_the_goal_was_met() -> None:
    series = {"mitoflow": Series(10, [1, 1, 1], 100), "other": Series(5, [1, 1, 1], 200)}
    rows = [compare("speed", "px/s", series, "other", "a baseline", goal, "command") for goal in (2, 2.1)]
    assert [row.cells["met"] for row in rows] == ["yes", "no"]
    assert rows[0].cells["ratio"] == "**2 ×** [2, 2]"
    assert "| speed | 10 (10 to 10) px/s | a baseline: 5 (5 to 5) px/s |" in markdown(rows)


@pytest.mark.slow
def test_the_command_runs_a_benchmark_and_writes_its_results(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "startup", "--rounds", "3", "--into", str(tmp_path)]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (results,) = tmp_path.glob("*.json")
    assert results.stem.endswith("-startup")  # the results of all of them stay as they are
    (row,) = json.loads(results.read_text())["rows"]
    assert len(row["series"]["mitoflow"]["seconds"]) == 3
    assert row["cells"]["met"] == "yes"
    assert "| `mitoflow --help` |" in printed
    assert results.with_suffix(".md").read_text() in printed


@pytest.mark.slow
def test_an_unknown_benchmark_is_refused_in_one_line() -> None:
    command = [sys.executable, "-m", "benchmarks", "speed"]
    refused = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "speed: expected one of startup" in refused.stderr
    assert "Traceback" not in refused.stderr

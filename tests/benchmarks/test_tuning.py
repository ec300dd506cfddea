"""The tables of the benchmark of the study."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tuning
from benchmarks.result_lines import ROOT, Results
from mitoflow.config import presets
from mitoflow.config.params import Params


def test_the_rank_correlation_depends_on_ranks_alone_and_its_interval_on_the_number_of_pairs() -> None:
    few, many = ([*range(n)] for n in (6, 24))
    assert tuning.rank_correlation(few, [rank**3 for rank in few]) == (1.0, 1.0, 1.0)
    swapped = tuning.rank_correlation(few, [1, 0, 3, 2, 5, 4])
    assert swapped[0] == pytest.approx(1 - 6 * 6 / (6 * 35))
    longer = tuning.rank_correlation(many, [rank ^ 1 for rank in many])
    assert longer[2] - longer[1] < swapped[2] - swapped[1]
    assert -1 < swapped[1] < swapped[0] < swapped[2] < 1
    assert tuning.rank_correlation([1, 2, 3], [1, 3, 2]) == (0.5, -1.0, 1.0)


def test_the_tables_have_each_search_and_each_rung() -> None:
    def trained(kind: str, seed: int, dice: float) -> dict[str, Any]:
        budget = 0 if kind == "defaults" else 8000
        of_test = {"dice": dice, "dice_low": dice - 0.01, "dice_high": dice + 0.01}
        return {"set": "epfl", "kind": kind, "budget": budget, "seed": seed, **of_test, "val_dice": dice + 0.02}

    rows = [trained("defaults", 1, 0.88), trained("tuned", 1, 0.9), trained("tuned", 2, 0.86)]
    same = {"set": "epfl", "kind": tuning.CONFIGURATION, "budget": 8000}
    for number, (short, whole) in enumerate([(0.1, 0.7), (0.3, 0.8), (0.2, 0.9), (0.4, 1.0)]):
        rows.append({**same, "number": number, "scores": {"666": short, "2666": whole}, "trained": whole})
    table = tuning.tables(rows).splitlines()
    assert "| epfl | defaults | 0 | 0.8800 [0.8700, 0.8900] | 0.8800 | 0.9000 |  |" in table
    assert "| epfl | tuned | 8,000 | 0.9000 [0.8900, 0.9100], 0.8600 [0.8500, 0.8700] | 0.8800 | 0.9000 |  |" in table
    assert "| epfl | 2,666 | 4 | 1.00 [1.00, 1.00] |  |" in table
    (first,) = [line for line in table if line.startswith("| epfl | 666 | 4 | 0.80 [")]
    assert first
    others = [{**row, "settings": "abc"} for row in rows]
    assert tuning.tables([*rows, *others]).splitlines()[2:4] == table[2:4]
    assert "| epfl | 2,666 | 4 | 1.00 [1.00, 1.00] | abc |" in tuning.tables([*rows, *others])


def test_what_the_measurement_costs_is_known_before_it_starts() -> None:
    """By the crops of `docs/tuning.md`: nine trainings, six searches, and twelve configurations."""
    settings = Params.model_validate(
        {"tune": {"trials": 6, "reduction": 3, "budget": 8000}, "train": {"epochs": 10, "patches_per_epoch": 800}}
    )
    rows = list(tuning.rows(settings, "abc", tuning.parse([])))
    costs: dict[str, int] = {}
    for row in rows:
        costs[row.key["kind"]] = costs.get(row.key["kind"], 0) + row.crops
    assert costs == {
        "defaults": 3 * 8000,
        "tuned": 3 * 16000,
        "random": 3 * 16000,
        tuning.CONFIGURATION: 12 * (666 + 2000 + 8000),
    }
    assert len({str(row.key) for row in rows}) == len(rows) == 21
    twice = [str(row.key) for row in tuning.rows(settings, "abc", tuning.parse(["--budget", "4000", "8000"]))]
    assert len(twice) - len(set(twice)) == 3  # the defaults do not depend on the budget


def test_keys_are_those_of_the_settings_of_a_project_and_not_of_an_interrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/images.tif").write_text("12 slices")
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.setattr(tuning.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0))
    found: list[list[tuning.Row]] = []
    monkeypatch.setattr(tuning, "measure_rows", lambda _, wanted, __: found.append(list(wanted)))
    monkeypatch.setattr(tuning, "configuration", lambda _, number, values, budget: values)
    options = tuning.parse([".", "--budget", "3000", "--configurations", "3"])

    def keys(**changes: str) -> tuple[list[Any], list[Any]]:
        presets.change(tuning.PARAMS, {key.replace("__", "."): value for key, value in changes.items()})
        tuning.measure(Results(tmp_path / "rows.jsonl"), options)
        values = [row.measure() for row in found[-1] if row.key["kind"] == tuning.CONFIGURATION]
        return [row.key for row in found[-1]], values

    first = keys()
    left = {"train__learning_rate": "0.001", "train__seed": "3", "tune__seed": "3", "tune__budget": "32"}
    assert keys(**left) == first
    digests = {first[0][0]["settings"]}
    for changes in ({"patch__gap": "2"}, {"train__epochs": "7"}, {"evaluate__tile": "128"}):
        digests.add(keys(**changes)[0][0]["settings"])
    (tmp_path / "data/train/images.tif").write_text("20 slices")
    digests.add(keys()[0][0]["settings"])
    assert len(digests) == 5


def test_results_of_projects_lie_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"dice": 0.5, "dice_low": 0.4, "dice_high": 0.6, "val_dice": 0.7}

    def measure(results: Results, _: Any) -> None:
        results.add({"set": Path.cwd().name, "kind": "defaults", "budget": 0, "seed": 1}, figures)

    monkeypatch.setattr(tuning, "measure", measure)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    tuning.main(["one", "two"])
    printed = capsys.readouterr().out
    for name in ("one", "two"):
        assert f"| {name} | defaults | 0 | 0.5000 [0.4000, 0.6000] |" in printed
        assert [row["set"] for row in Results(Path(name) / ".mitoflow/benchmarks/tuning.jsonl").rows] == [name]
    tuning.main([])
    assert "| vnc | defaults | 0 |" in capsys.readouterr().out  # published


def test_an_interrupted_measurement_goes_on_after_its_last_result(tmp_path: Path) -> None:
    measured: list[int] = []

    def row(seed: int, fails: bool = False) -> tuning.Row:
        def measure() -> dict[str, Any]:
            if fails:
                raise KeyboardInterrupt
            measured.append(seed)
            return {"dice": seed / 10}

        return tuning.Row({"kind": "defaults", "seed": seed}, 100, measure)

    with pytest.raises(KeyboardInterrupt):
        tuning.measure_rows(Results(tmp_path / "found.jsonl"), [row(1), row(2, fails=True), row(3)], "epfl")
    results = Results(tmp_path / "found.jsonl")
    tuning.measure_rows(results, [row(1), row(2), row(3), row(3)], "epfl")
    assert measured == [1, 2, 3]
    assert [found["dice"] for found in results.rows] == [0.1, 0.2, 0.3]

"""Successive halving: which trials there are, which go on, and what workers and interruptions change about it."""

from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from mitoflow.config.params import Tune
from mitoflow.errors import InputError
from mitoflow.tuning import halving, optuna_study
from tests.parts import ENVIRONMENT, scheduling, started, until
from tests.studies import SETTINGS, Interrupted, endless, interrupted_after, opened, outcome, score, search, slowly

SPACE = halving.distributions(SETTINGS)


@pytest.mark.parametrize(
    ("trials", "reduction", "expected"),
    [
        (1, 3, [(1, 1200)]),
        (3, 2, [(3, 400)]),
        (4, 2, [(4, 150), (2, 300)]),
        (6, 3, [(6, 100), (2, 300)]),
        (9, 2, [(9, 44), (4, 100), (2, 200)]),
        (5000, 5000, [(5000, 1)]),
    ],
)
def test_rungs_share_the_budget_and_the_last_compares_trials(trials: int, reduction: int, expected: list) -> None:
    assert halving.rungs(Tune(trials=trials, reduction=reduction), 1200) == expected


def test_the_first_trial_has_the_values_to_start_from_and_the_others_fill_the_ranges() -> None:
    first, *others = halving.starting_points(SETTINGS.model_copy(update={"trials": 17}), SPACE)
    assert first == {"learning_rate": 0.002, "depth": 4, "augment_strength": 0.7}
    assert {values["depth"] for values in others} == {2, 3, 4}
    sixteenths = {int(16 * values["augment_strength"]) for values in others}
    assert len(sixteenths) == 13, "16 independent values lie in ten of them"
    assert all(1e-4 <= values["learning_rate"] <= 1e-2 for values in others)
    assert sum(values["learning_rate"] < 1e-3 for values in others) == 8, "evenly on a log scale"


def test_a_huge_seed_gives_points_and_another_seed_gives_others() -> None:
    points = [
        list(halving.starting_points(SETTINGS.model_copy(update={"seed": seed}), SPACE)) for seed in (0, 1, 2**32 - 1)
    ]
    assert points[0][0] == points[1][0] == points[2][0]
    assert len({str(each[1:]) for each in points}) == 3


@pytest.mark.slow
def test_the_winner_is_the_best_of_the_longest_rung_not_of_a_short_one(tmp_path: Path) -> None:
    def overtaken(number: int, values: dict[str, Any], crops: Any, check: Any) -> halving.History:
        short = [0.5, 0.9, 0.1, 0.6, 0.2, 0.3]  # three go on; the best of them is the worst when they are longer
        return [{"val_dice": 0.01}, {"val_dice": short[number] if len(crops) == 1 else 0.8 - short[number] / 2}]

    study = opened(tmp_path / "s.db")
    searching = search(study)
    searching.here(overtaken)
    assert [trial.state.name for trial in study.get_trials()] == [
        *("COMPLETE", "COMPLETE", "PRUNED", "COMPLETE", "PRUNED", "PRUNED"),
    ]
    assert max(trial.value for trial in study.get_trials()) < 0.9
    assert study.best_trial.number == 0
    assert study.best_value == pytest.approx(0.55)
    assert [trial.intermediate_values.keys() for trial in study.get_trials()][:3] == [{60, 180}, {60, 180}, {60}]
    (reason,) = {line[2] for line in searching.callback.lines if line[:2] == ("ended", 2)}
    assert reason == "0.1000 after 60 crops; 3 of 6 trials went on, with at least 0.5000"
    assert study.get_trials()[2].user_attrs["pruned"] == reason


def test_a_value_that_is_given_is_not_searched(tmp_path: Path) -> None:
    study = opened(tmp_path / "s.db")
    searching = halving.Search(study, SETTINGS, ("learning_rate",), 720, search(study).callback)
    searching.here(lambda number, values, crops, check: [{"val_dice": values["learning_rate"]}])
    assert {tuple(trial.params) for trial in study.get_trials()} == {("learning_rate",)}
    assert len({trial.params["learning_rate"] for trial in study.get_trials()}) == 6


@pytest.mark.slow
def test_the_same_seed_gives_the_same_study(tmp_path: Path) -> None:
    studies = [opened(tmp_path / f"{i}.db") for i in range(2)]
    for study in studies:
        search(study).here(score)
    assert outcome(studies[0]) == outcome(studies[1])
    assert Counter(state for state, *_ in outcome(studies[0])) == {"PRUNED": 3, "COMPLETE": 3}


@pytest.mark.slow
@pytest.mark.parametrize("fits", [0, 1, 5, 6, 8])
def test_an_interrupted_study_ends_as_an_undisturbed_one(tmp_path: Path, fits: int) -> None:
    undisturbed, study = opened(tmp_path / "undisturbed.db"), opened(tmp_path / "s.db")
    search(undisturbed).here(score)
    with pytest.raises(Interrupted):
        search(study).here(interrupted_after(fits))
    searching = search(opened(tmp_path / "s.db"))
    searching.here(score)
    assert outcome(study) == outcome(undisturbed)
    assert sum(line[0] == "rung" for line in searching.callback.lines) == 9 - fits, "nothing is fitted twice"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["add_trial", "tell"])
@pytest.mark.parametrize("calls", [1, 3])
def test_a_study_killed_while_it_stores_trials_goes_on(tmp_path: Path, what: str, calls: int) -> None:
    undisturbed = opened(tmp_path / "undisturbed.db")
    search(undisturbed).here(score)
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        import optuna
        from tests.studies import opened, score, search
        original, calls = optuna.Study.{what}, []
        def killed(study, *arguments, **options):
            if study.study_name == "s" and len(calls) == {calls}:
                os.kill(os.getpid(), signal.SIGKILL)
            if study.study_name == "s":
                calls.append(arguments)
            return original(study, *arguments, **options)
        optuna.Study.{what} = killed
        search(opened(Path({str(tmp_path / "killed.db")!r}))).here(score)
    """)
    died = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, check=False)
    assert died.returncode == -signal.SIGKILL
    study = opened(tmp_path / "killed.db")
    search(study).here(score)
    assert outcome(study) == outcome(undisturbed)


def test_a_failing_trial_ends_the_study_loudly(tmp_path: Path) -> None:
    study = opened(tmp_path / "s.db")

    def broken(*arguments: Any) -> halving.History:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        search(study).here(broken)


def worker(address: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return started("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")


@pytest.mark.slow
def test_one_worker_finds_what_one_process_finds(tmp_path: Path, threads: str) -> None:
    studies = [opened(tmp_path / f"{i}.db") for i in range(2)]
    searches = [search(study) for study in studies]
    searches[0].here(score)
    searches[1].on_cluster(score, address=threads)
    assert outcome(studies[1]) == outcome(studies[0])
    assert "PRUNED" in {state for state, *_ in outcome(studies[1])}
    assert searches[1].callback.lines == searches[0].callback.lines


@pytest.mark.e2e
def test_workers_come_and_go_and_each_trial_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study, left = opened(tmp_path / "s.db"), tmp_path / "fits"
    left.mkdir()
    settings = SETTINGS.model_copy(update={"trials": 12})
    searching = search(study, settings)

    def fits(of: str) -> list[str]:
        return [file.name for file in left.iterdir() if of in file.name]

    with scheduling() as (_, address), worker(address) as first, ThreadPoolExecutor() as thread:
        done = thread.submit(searching.on_cluster, functools.partial(slowly, left), address=address)
        until(lambda: len(fits(f"process {first.pid}")) >= 2)
        first.send_signal(signal.SIGKILL)
        first.wait()
        with worker(address) as second:
            until(lambda: fits(f"process {second.pid}"))
            with worker(address) as third:
                until(lambda: fits(f"process {third.pid}"))
                done.result(timeout=120)
    undisturbed = opened(tmp_path / "undisturbed.db")
    search(undisturbed, settings).here(score)
    assert outcome(study) == outcome(undisturbed)
    assert study.best_trial.number == undisturbed.best_trial.number
    assert set(Counter(searching.callback.lines).values()) == {1}
    assert len(fits("trial")) > 12 + 6 + 3, "the trial of the worker that died was fitted on another one"


@pytest.mark.e2e
def test_where_the_owner_dies_workers_stop_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = textwrap.dedent(f"""
        import functools
        from pathlib import Path
        from tests.studies import endless, opened, search
        study = opened(Path({str(tmp_path / "s.db")!r}))
        search(study).on_cluster(functools.partial(endless, Path({str(tmp_path)!r})), address=ADDRESS)
    """)
    with scheduling() as (_, address), worker(address):
        owner = subprocess.Popen([sys.executable, "-c", script.replace("ADDRESS", repr(address))], env=ENVIRONMENT)
        until(lambda: (tmp_path / "trial 0 started").exists())
        owner.kill()
        owner.wait()
        until(lambda: (tmp_path / "trial 0 ended").exists())
        study = opened(tmp_path / "s.db")
        search(study).on_cluster(score, address=address)
    assert [trial.number for trial in optuna_study.finished_trials(study)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.e2e
def test_processes_of_this_machine_share_a_study(tmp_path: Path) -> None:
    study = opened(tmp_path / "s.db")
    left = tmp_path / "fits"
    left.mkdir()
    search(study).on_cluster(functools.partial(slowly, left), workers=2)
    assert len(optuna_study.finished_trials(study)) == 6
    assert len({file.name.rpartition(" ")[2] for file in left.iterdir()}) == 2


def test_a_trial_that_fails_on_a_worker_ends_the_study_loudly(tmp_path: Path, threads: str) -> None:
    def broken(*arguments: Any) -> halving.History:
        raise RuntimeError("no such kernel")

    with pytest.raises(halving.TrialError, match="no such kernel"):
        search(opened(tmp_path / "s.db")).on_cluster(broken, address=threads)


def test_a_full_disk_of_a_worker_is_one_line(tmp_path: Path, threads: str) -> None:
    def saving(*arguments: Any) -> halving.History:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch/rung-0.keras")
        except OSError as error:
            raise ValueError("not saved") from error  # as a library wraps it

    with pytest.raises(InputError) as raised:
        search(opened(tmp_path / "s.db")).on_cluster(saving, address=threads)
    found, remedy = "no space left on the disk, expected room for the output", "free some space and run it again"
    assert str(raised.value) == f"/scratch/rung-0.keras: found {found}; {remedy}"


@pytest.mark.e2e
def test_a_scheduler_that_goes_away_is_one_line_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = opened(tmp_path / "s.db")
    with scheduling() as (scheduler, address), worker(address), ThreadPoolExecutor() as thread:
        done = thread.submit(search(study).on_cluster, functools.partial(endless, tmp_path), address=address)
        until(lambda: (tmp_path / "trial 0 started").exists())
        scheduler.kill()
        with pytest.raises(InputError, match="--dask: found a scheduler that went away"):
            done.result(timeout=120)
    search(study).here(score)
    assert len(optuna_study.finished_trials(study)) == 6

import functools
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import pytest
from distributed import LocalCluster

from mitoflow.errors import InputError
from mitoflow.tuning import optuna_study
from tests.parts import ENVIRONMENT, scheduling, started, until
from tests.services import PostgreSQL
from tests.studies import SETTINGS, endless, opened, score, search, slowly


def outcome(study: optuna.Study) -> list:
    return [(trial.state.name, trial.params, trial.value) for trial in optuna_study.finished_trials(study)]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_study(tmp_path: Path) -> None:
    studies = [opened(tmp_path / f"{i}.db") for i in range(2)]
    for study in studies:
        search(study).here(score)
    assert outcome(studies[0]) == outcome(studies[1])
    assert len(outcome(studies[0])) == 6
    assert "PRUNED" in {state for state, *_ in outcome(studies[0])}


@pytest.mark.slow
def test_a_study_killed_at_any_moment_goes_on(tmp_path: Path) -> None:
    undisturbed = opened(tmp_path / "undisturbed.db")
    search(undisturbed).here(score)
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from mitoflow.tuning import optuna_study
        from tests.studies import opened, score, search
        from pathlib import Path
        study = opened(Path({str(tmp_path / "killed.db")!r}))
        calls = 0
        def killed(name, values, report):
            global calls
            calls += 1
            if calls == 3:
                report(0, dict(val_dice=0.9))
                os.kill(os.getpid(), signal.SIGKILL)
            return score(name, values, report)
        optuna_study.recover(study)
        search(study).here(killed)
    """)
    died = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    study = opened(tmp_path / "killed.db")
    assert len(optuna_study.finished_trials(study)) == 2
    assert optuna_study.recover(study) == [2]
    search(study).here(score)
    assert outcome(study) == outcome(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [0, 1, 2, 3])
def test_a_trial_cut_off_while_its_values_were_drawn_is_the_same_again(tmp_path: Path, drawn: int) -> None:
    undisturbed, study = opened(tmp_path / "undisturbed.db"), opened(tmp_path / "killed.db")
    search(undisturbed).here(score)
    search(study, SETTINGS.model_copy(update={"trials": 2})).here(score)
    for _ in range(2):  # the second time it is one whose values were queued
        with cut_off_after(drawn), pytest.raises(KeyboardInterrupt):
            search(study).here(interrupted)
        assert len(optuna_study.recover(study)) == 1
    search(study).here(score)
    assert outcome(study) == outcome(undisturbed)


@contextmanager
def cut_off_after(drawn: int) -> Iterator[None]:
    """Cut off the next trial when that many values were drawn."""
    left = [drawn]

    def suggest(trial: optuna.Trial, name: str, distribution: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return original(trial, name, distribution)

    original = optuna.Trial._suggest
    with mock.patch.object(optuna.Trial, "_suggest", suggest):
        yield


def interrupted(*_: Any) -> float:
    raise KeyboardInterrupt


def test_a_huge_seed_is_a_seed(tmp_path: Path) -> None:
    study = opened(tmp_path / "study.db")
    search(study, SETTINGS.model_copy(update={"seed": 2**32 - 1, "trials": 1})).here(score)
    assert len(outcome(study)) == 1


def test_more_trials_keep_the_finished_ones_until_the_results_are_delivered(tmp_path: Path) -> None:
    study = opened(tmp_path / "s.db")
    search(study, SETTINGS.model_copy(update={"trials": 3})).here(score)
    first = outcome(study)
    study = opened(tmp_path / "s.db")
    search(study, SETTINGS.model_copy(update={"trials": 4})).here(score)
    assert outcome(study)[:3] == first
    optuna_study.mark_delivered(study, "abc")
    assert outcome(opened(tmp_path / "s.db", recorded="of another study")) == outcome(study)
    assert optuna_study.finished_trials(opened(tmp_path / "s.db", recorded="abc")) == []


@pytest.mark.slow
def test_plots_are_the_same_files_again_and_need_no_network(tmp_path: Path) -> None:
    study = opened(tmp_path / "s.db")
    search(study).here(score)
    for folder in ("one", "two"):
        optuna_study.write_plots(study, tmp_path / folder, seed=1)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["study.html"]
    page = (tmp_path / "one/study.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "two/study.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link)[^>]*(src|href)=", page)
    assert re.findall(r'<div id="(\w+)"', page) == ["history", "parallel", "importance"]
    assert len(page) < 6e6  # plotly is in it once


def test_a_failing_trial_ends_the_study_loudly(tmp_path: Path) -> None:
    study = opened(tmp_path / "s.db")

    def broken(name: str, values: dict[str, Any], report: optuna_study.Report) -> float:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        search(study).here(broken)


def worker(address: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return started("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")


@pytest.fixture
def threads() -> Iterator[str]:
    """A Dask scheduler in this process, with one worker."""
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


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
    study, left = opened(tmp_path / "s.db"), tmp_path / "epochs"
    left.mkdir()
    settings = SETTINGS.model_copy(update={"trials": 12})
    searching = search(study, settings)

    def epochs(of: str) -> list[str]:
        return [file.name for file in left.iterdir() if of in file.name]

    with scheduling() as (_, address), worker(address) as first, ThreadPoolExecutor() as thread:
        done = thread.submit(searching.on_cluster, functools.partial(slowly, left), address=address)
        until(lambda: len(epochs(f"process {first.pid}")) >= 2)
        first.send_signal(signal.SIGKILL)
        first.wait()
        with worker(address) as second:
            until(lambda: epochs(f"process {second.pid}"))
            with worker(address) as third:
                until(lambda: epochs(f"process {third.pid}"))
                done.result(timeout=120)
    stored = opened(tmp_path / "s.db").get_trials()
    assert [trial.state.name in ("COMPLETE", "PRUNED") for trial in stored] == [True] * 12
    for trial in stored:
        complete = score("", trial.params, lambda epoch, logs: None)
        assert trial.value == complete or trial.state.name == "PRUNED"
        assert len(trial.intermediate_values) == 3 or trial.state.name == "PRUNED"
    assert study.best_value == max(trial.value for trial in stored if trial.state.name == "COMPLETE")
    counts = Counter(searching.callback.lines)
    assert set(counts.values()) == {1}
    assert sum(line[0] == "ended" for line in counts) == 12
    fitted = {tuple(name.split(", ")[::2]) for name in epochs("trial")}
    assert len(fitted) > 12, "the trial of the worker that died was fitted on another one"


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
        until(lambda: (tmp_path / "trial 0 began").exists())
        owner.kill()
        owner.wait()
        until(lambda: (tmp_path / "trial 0 ended").exists())
        study = opened(tmp_path / "s.db")
        (cut_off,) = study.get_trials()
        assert optuna_study.recover(study) == [0]
        search(study).on_cluster(score, address=address)
    assert [trial.number for trial in optuna_study.finished_trials(study)] == [1, 2, 3, 4, 5, 6]
    assert study.get_trials()[1].params == cut_off.params


@pytest.mark.e2e
def test_processes_of_this_machine_share_a_study(tmp_path: Path) -> None:
    study = opened(tmp_path / "s.db")
    left = tmp_path / "epochs"
    left.mkdir()
    search(study).on_cluster(functools.partial(slowly, left), workers=2)
    assert len(optuna_study.finished_trials(study)) == 6
    assert len({file.name.rpartition(" ")[2] for file in left.iterdir()}) == 2


def test_a_trial_that_fails_on_a_worker_ends_the_study_loudly(tmp_path: Path, threads: str) -> None:
    def broken(name: str, values: dict[str, Any], report: optuna_study.Report) -> float:
        raise RuntimeError("no such kernel")

    with pytest.raises(optuna_study.TrialError, match="no such kernel"):
        search(opened(tmp_path / "s.db")).on_cluster(broken, address=threads)


@pytest.mark.e2e
def test_a_scheduler_that_goes_away_is_one_line_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = opened(tmp_path / "s.db")
    with scheduling() as (scheduler, address), worker(address), ThreadPoolExecutor() as thread:
        done = thread.submit(search(study).on_cluster, functools.partial(endless, tmp_path), address=address)
        until(lambda: (tmp_path / "trial 0 began").exists())
        scheduler.kill()
        with pytest.raises(InputError, match="--dask: found a scheduler that went away"):
            done.result(timeout=120)
    assert optuna_study.recover(study) == [0]
    search(study).here(score)
    assert len(optuna_study.finished_trials(study)) == 6


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense of user:secret@host", "found no URL of a database"),
        ("postgresql+secret://host", "found no URL of a database"),
        ("sqlite:///somewhere.db", "found another database"),
        ("postgresql://user:secret@127.0.0.1:9/studies", "does not answer"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line_without_its_password(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MITOFLOW_OPTUNA_STORAGE", url)
    with (
        pytest.raises(InputError, match=f"MITOFLOW_OPTUNA_STORAGE: .*{message}") as refused,
        optuna_study.owned_study("s"),
    ):
        pass
    assert "secret" not in str(refused.value)


def test_a_driver_that_is_missing_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MITOFLOW_OPTUNA_STORAGE", "postgresql://user:secret@127.0.0.1:9/studies")
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as where it is not installed
    remedy = r"pip install -e \.\[postgresql\]$"
    with (
        pytest.raises(InputError, match=f"no driver of PostgreSQL .*; {remedy}") as refused,
        optuna_study.owned_study("s"),
    ):
        pass
    assert "secret" not in str(refused.value)


@pytest.mark.e2e
def test_a_study_in_postgresql_has_one_owner_and_goes_on_in_another_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgresql: PostgreSQL, threads: str
) -> None:
    monkeypatch.setenv("MITOFLOW_OPTUNA_STORAGE", postgresql.create("optuna"))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    alone = opened(tmp_path / "alone.db")
    search(alone).here(score)
    monkeypatch.chdir(tmp_path / "one")
    with optuna_study.owned_study("s") as study:
        search(study, SETTINGS.model_copy(update={"trials": 3})).here(score)
        study.ask()  # and is cut off
        monkeypatch.chdir(tmp_path / "other")
        with (
            pytest.raises(InputError, match="a process of another checkout that works on s"),
            optuna_study.owned_study("s"),
        ):
            pass
    with pytest.raises(InputError, match="a database that does not answer"), optuna_study.owned_study("s") as study:
        assert optuna_study.recover(study) == [3]
        end = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
        postgresql.run("psql", "--dbname=optuna", f"--command={end}")  # as a restart or a firewall does
        search(study).here(score)
    with optuna_study.owned_study("s") as study:
        optuna_study.recover(study)
        search(study).on_cluster(score, address=threads)
        assert outcome(study) == outcome(alone)
        assert study.best_value == alone.best_value

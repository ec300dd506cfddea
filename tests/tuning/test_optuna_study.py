"""Where a study is stored, who owns it, and its plots."""

import re
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from werkzeug.test import Client

from mitoflow.config.params import SAMPLED
from mitoflow.core import sqlite
from mitoflow.errors import InputError
from mitoflow.tuning import halving, optuna_study
from tests.services import PostgreSQL
from tests.studies import SETTINGS, Interrupted, Recorder, interrupted_after, opened, outcome, score, search


@pytest.mark.slow
def test_a_study_that_delivered_its_results_starts_again_where_dvc_has_them_on_record(tmp_path: Path) -> None:
    study = opened(tmp_path / "s.db")
    search(study).here(score)
    optuna_study.mark_delivered(study, "abc")
    assert len(optuna_study.finished_trials(opened(tmp_path / "s.db", recorded="of another study"))) == 6
    assert optuna_study.finished_trials(opened(tmp_path / "s.db", recorded="abc")) == []


def test_what_was_measured_stays_with_the_study(tmp_path: Path) -> None:
    assert optuna_study.measured_once(opened(tmp_path / "s.db"), "crops", lambda: 300) == 300
    assert optuna_study.measured_once(opened(tmp_path / "s.db"), "crops", lambda: 400) == 300


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
    assert re.findall(r'<div id="(\w+)"', page) == ["rungs", "parallel", "importance"]
    assert len(page) < 6e6  # plotly is in it once


@pytest.mark.slow
@pytest.mark.parametrize(("tuned", "gain"), [(SAMPLED, 0), (("depth",), 1)], ids=["equal scores", "equal values"])
def test_a_study_that_cannot_tell_what_is_important_ends_without_that_plot(
    tmp_path: Path, tuned: tuple[str, ...], gain: int
) -> None:
    """Of six trials two are complete: with equal scores, or with different ones and the same depth, 4."""
    study, settings = opened(tmp_path / "s.db"), SETTINGS.model_copy(update={"reduction": 3})
    scored = halving.Search(study, settings, tuned, settings.budget, Recorder())
    scored.here(lambda number, values, _crops, _check: [{"val_dice": gain * (values["depth"] / 10 + number / 1000)}])
    first, second = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert (first.value != second.value, first.params == second.params) == (bool(gain), bool(gain))
    optuna_study.write_plots(study, tmp_path / "plots", seed=1)
    page = (tmp_path / "plots/study.html").read_text(encoding="utf-8")
    assert re.findall(r'<div id="(\w+)"', page) == ["rungs", "parallel"]


@pytest.mark.slow
def test_optuna_dashboard_shows_scores_by_crops_and_why_trials_were_pruned(tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is in requirements-test.lock alone")
    from optuna_dashboard import wsgi

    study = opened(tmp_path / "s.db")
    search(study).here(score)
    client = Client(wsgi(f"sqlite:///{tmp_path}/s.db"))
    (listed,) = client.get("/api/studies").json["study_summaries"]
    assert (listed["study_name"], listed["directions"]) == ("s", ["maximize"])
    shown = client.get(f"/api/studies/{listed['study_id']}").json
    trials = shown["trials"]
    states = Counter(trial["state"] for trial in trials)
    assert states == Counter(trial.state.name.capitalize() for trial in study.trials)
    for trial, stored in zip(trials, study.trials, strict=True):
        facts = {each["key"]: each["value"] for each in trial["user_attrs"]}
        assert facts.keys() == stored.user_attrs.keys()
        assert ("pruned" in facts) == (trial["state"] == "Pruned")
        by_crops = {each["step"]: each["value"] for each in trial["intermediate_values"]}
        assert by_crops == stored.intermediate_values
        assert {each["name"] for each in trial["params"]} == set(SAMPLED)


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


@pytest.mark.slow
def test_a_file_of_studies_that_cannot_be_used_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MITOFLOW_OPTUNA_STORAGE", raising=False)
    monkeypatch.setattr(sqlite, "PATIENCE", 0.2)
    file = tmp_path / ".mitoflow/optuna.db"
    with optuna_study.owned_study("s") as study:
        search(study).here(score)
    with closing(sqlite3.connect(file)) as other:
        other.execute("begin exclusive")
        locked = "optuna.db: found a database that another process keeps locked, .*; close the program that has it op"
        with pytest.raises(InputError, match=locked), optuna_study.owned_study("s"):
            pass
        other.rollback()
        other.execute("update alembic_version set version_num = 'v99.0.0'")
        other.commit()
    newer = f"optuna.db: found tables of another Optuna, expected those of Optuna {optuna.__version__}; remove it"
    with pytest.raises(InputError, match=newer), optuna_study.owned_study("s"):
        pass
    file.write_bytes(b"damage".ljust(200) + file.read_bytes()[200:])
    with (
        pytest.raises(InputError, match="optuna.db: found a damaged file .*; remove it: the study starts again"),
        optuna_study.owned_study("s"),
    ):
        pass
    file.write_bytes(b"")  # holds nothing that could be lost
    with optuna_study.owned_study("s") as study:
        assert optuna_study.finished_trials(study) == []


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
        with pytest.raises(Interrupted):
            search(study).here(interrupted_after(3))
        monkeypatch.chdir(tmp_path / "other")
        with (
            pytest.raises(InputError, match="a process of another checkout that works on s"),
            optuna_study.owned_study("s"),
        ):
            pass
    with pytest.raises(InputError, match="a database that does not answer"), optuna_study.owned_study("s") as study:
        end = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
        postgresql.run("psql", "--dbname=optuna", f"--command={end}")  # as a restart or a firewall does
        search(study).here(score)
    with optuna_study.owned_study("s") as study:
        search(study).on_cluster(score, address=threads)
        assert outcome(study) == outcome(alone)
        assert study.best_value == alone.best_value

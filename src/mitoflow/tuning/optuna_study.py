"""The Optuna study: where it is stored, who owns it, and its plots.

One process owns a study, and it alone writes to its storage, which may be a local file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from mitoflow.core import sqlite, workspace
from mitoflow.errors import InputError

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
DELIVERED = "delivered"  # set on a study whose results were written: DVC's hash of them
STORAGE = "MITOFLOW_OPTUNA_STORAGE"  # names the database of studies, where it is not a file of the checkout


@contextmanager
def owned_study(name: str, recorded: str | None = None) -> Iterator[optuna.Study]:
    """Open the study `name` as `open_study` does, and own it; other processes that open it wait.

    It lies in ``.mitoflow/optuna.db`` of the checkout, or in the PostgreSQL database whose URL is in the environment
    variable ``MITOFLOW_OPTUNA_STORAGE``: then another machine can resume it, and dashboards can show it.

    Raises
    ------
    InputError
        There is no such database, it went away, or a process of another checkout owns the study; or the file is locked,
        damaged or of another Optuna.
    """
    given = os.environ.get(STORAGE)
    with workspace.exclusive(name):
        if not given:
            with _explained(workspace.state_dir() / "optuna.db") as file:
                yield open_study(f"sqlite:///{file}", name, recorded)
            return
        with _owned(given, name) as lock:
            yield open_study(given, name, recorded, lock)


@contextmanager
def _explained(file: Path) -> Iterator[Path]:
    """Raise what is wrong with an SQLite file of studies as one line that says what to do."""
    remedy = "remove it: the study starts again"
    sqlite.require_readable(file, remedy)
    try:
        yield file
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        if line := sqlite.as_user_error(file, error, remedy):
            raise line from None
        raise
    except RuntimeError as error:
        if "compatible with the table schema" not in str(error):
            raise
        raise InputError(file, "tables of another Optuna", f"those of Optuna {optuna.__version__}", remedy) from None


@contextmanager
def _owned(url: str, name: str) -> Iterator[sqlalchemy.Connection]:
    """Hold a lock of PostgreSQL, which ends with the connection, and so with the process, however it ends."""
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            lock = sqlalchemy.text("select pg_try_advisory_lock(hashtextextended(:name, 0))")
            if not connection.execute(lock, {"name": name}).scalar():
                found, expected = f"a process of another checkout that works on {name}", "one at a time"
                raise InputError(STORAGE, found, expected, "wait for it, and run it again")
            yield connection
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        found = f"a database that does not answer ({getattr(cause, 'orig', None) or type(error).__name__})"
        remedy = "repair it, then run it again: it resumes"
        raise InputError(STORAGE, found, "one that does", remedy) from None


def _engine(url: str) -> sqlalchemy.Engine:
    """Return the engine of a PostgreSQL database; errors do not show its URL, which holds a password."""
    try:
        if sqlalchemy.make_url(url).get_backend_name() == "postgresql":
            return sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
        found = "another database"
    except ImportError as error:
        found, remedy = f"no driver of PostgreSQL ({error})", "pip install -e .[postgresql]"
        raise InputError(STORAGE, found, "psycopg, which postgresql:// takes", remedy) from None
    except sqlalchemy.exc.ArgumentError as error:
        found = f"no URL of a database that is known here ({type(error).__name__})"
    form = "postgresql://USER:PASSWORD@HOST/DATABASE"
    raise InputError(STORAGE, found, form, "change it, or unset it for a file in .mitoflow/") from None


def open_study(
    url: str, name: str, recorded: str | None = None, lock: sqlalchemy.Connection | None = None
) -> optuna.Study:
    """Open the study `name` in the database at `url`, or create it.

    An interrupted study resumes. A study that delivered the results that DVC has `recorded` starts again. If a `lock`
    ended with its connection, another process may own the study, and it cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A connection that the database closed meanwhile is replaced.
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    if lock is not None:
        sqlalchemy.event.listen(storage.engine, "engine_connect", lambda _: lock.execute(sqlalchemy.text("select 1")))
    known = {summary.study_name: summary for summary in optuna.get_all_study_summaries(storage)}
    if recorded and name in known and known[name].user_attrs.get(DELIVERED) == recorded:
        optuna.delete_study(study_name=name, storage=storage)
    return optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)


def measured_once(study: optuna.Study, name: str, measure: Callable[[], int]) -> int:
    """Return what was measured when the study started, so that it is the same where the study resumes."""
    if name not in study.user_attrs:
        study.set_user_attr(name, measure())
    return int(study.user_attrs[name])


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that ended, complete or pruned, by their number."""
    return study.get_trials(states=FINISHED)


def mark_delivered(study: optuna.Study, md5: str) -> None:
    """Note that the results are written, and DVC's hash of them; see `open_study`."""
    study.set_user_attr(DELIVERED, md5)


def write_plots(study: optuna.Study, folder: Path, seed: int) -> None:
    """Write Optuna's plots of the scores by crops, of the values and of their importance as one page without a network.

    The importance of a parameter needs two complete trials that differ in their values and scores.
    """
    from optuna import visualization as plots

    figures = {"rungs": plots.plot_intermediate_values(study), "parallel": plots.plot_parallel_coordinate(study)}
    if len(study.get_trials(states=(TrialState.COMPLETE,))) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
        try:
            figures["importance"] = plots.plot_param_importances(study, evaluator=evaluator)
        except RuntimeError as error:
            if "zero total variance" not in str(error):
                raise
    folder.mkdir(parents=True, exist_ok=True)
    parts = (  # of one page, because each page holds all of plotly
        figure.to_html(full_html=False, include_plotlyjs=name == next(iter(figures)), div_id=name)
        for name, figure in figures.items()
    )
    (folder / "study.html").write_text("\n".join(['<!doctype html><meta charset="utf-8">', *parts]), encoding="utf-8")

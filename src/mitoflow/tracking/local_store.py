"""The SQLite file of MLflow in this checkout: whether it can be used, and where its artifacts are."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow

from mitoflow.core import sqlite, workspace
from mitoflow.errors import InputError
from mitoflow.tracking.places import file_of

FILE, ARTIFACTS = "mlflow.db", "mlruns"  # in the main checkout
#: What to do about a database of this checkout that is damaged or empty.
START_AGAIN = "restore it from a copy, or remove it and run `mitoflow register`: the runs in it are lost"
#: The columns of MLflow's tables with the places of artifacts.
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def require_usable(place: str) -> None:
    """Look into the SQLite file at ``place``, if that is what is there.

    Raises
    ------
    InputError
        It is locked or damaged; or it is that of this checkout, and empty where there are artifacts, or of a checkout
        in another place: then artifacts would be written there.
    """
    if not (path := file_of(place)) or not path.exists():
        return
    own = workspace.main_checkout()
    if path == own / FILE and not path.stat().st_size and any((own / ARTIFACTS).glob("*")):
        raise InputError(path, "an empty file", "the runs whose artifacts are in mlruns/", START_AGAIN)
    sqlite.require_readable(path, START_AGAIN)
    if others := _other_checkouts(path):
        found, expected = f"artifacts in {others[0] / ARTIFACTS}", own / ARTIFACTS
        raise InputError(path, found, expected, "run `mitoflow relocate`: the checkout was moved or copied")


def relocate() -> list[Path]:
    """Have the SQLite file of this checkout name artifacts here, after the checkout was moved or copied.

    Returns
    -------
    before
        The checkouts that it named; empty where it named this one.

    Raises
    ------
    InputError
        ``mlruns/`` is not here, or the file cannot be used.
    """
    own = workspace.main_checkout()
    path = own / FILE
    if not path.exists():
        return []
    with workspace.exclusive("store"):
        sqlite.require_readable(path, START_AGAIN)
        others = _other_checkouts(path)
        if others and not (own / ARTIFACTS).is_dir():
            remedy = f"copy {others[0] / ARTIFACTS}, or remove mlflow.db"
            raise InputError(own / ARTIFACTS, "no such folder", "the artifacts of the runs in mlflow.db", remedy)
        with closing(sqlite3.connect(path)) as database, database:
            for other in others:
                _replace_start(database, f"{other.as_uri()}/{ARTIFACTS}", f"{own.as_uri()}/{ARTIFACTS}")
                _replace_start(database, f"{other}/{ARTIFACTS}", f"{own}/{ARTIFACTS}")
    return others


def _replace_start(database: sqlite3.Connection, old: str, new: str) -> None:
    """Replace the start of the places of artifacts, where it is the folder `old`."""
    for table, column in PLACES:
        database.execute(
            f"update {table} set {column} = ? || substr({column}, ?) where substr({column} || '/', 1, ?) = ?",
            (new, len(old) + 1, len(old) + 1, f"{old}/"),
        )


def _other_checkouts(path: Path) -> list[Path]:
    """Return the checkouts, other than this one, whose ``mlruns/`` the experiments in our own SQLite file name."""
    own = workspace.main_checkout()
    if path != own / FILE:
        return []
    with closing(sqlite3.connect(path)) as database:
        if not database.execute("select 1 from sqlite_master where name = 'experiments'").fetchone():
            return []
        rows = database.execute("select artifact_location from experiments where artifact_location like 'file:///%'")
        places = {Path(unquote(urlsplit(location).path)) for (location,) in rows}
    return sorted(place.parent for place in places if place.name == ARTIFACTS and place.parent != own)


def as_user_error(place: str, error: BaseException) -> InputError | None:
    """Return what is wrong with the file at ``place`` as one line that says what to do; None for other errors."""
    path = file_of(place)
    if path is None:
        return None
    schema = re.search(r"database schema \(found version (\w+)", str(error))
    return _other_schema(path, schema[1]) if schema else sqlite.as_user_error(path, error, START_AGAIN)


def _other_schema(path: Path, revision: str) -> InputError:
    """Return the line about a database whose tables are of another MLflow than this one."""
    known = list((Path(mlflow.__file__).parent / "store/db_migrations/versions").glob(f"{revision}_*.py"))
    found = f"tables of {'an older' if known else 'a newer'} MLflow"
    remedy = f"copy it, then run `mlflow db upgrade sqlite:///{path}`" if known else "use the MLflow that wrote them"
    return InputError(path, found, f"those of MLflow {mlflow.__version__}", remedy)

"""SQLite files of a project: what is wrong with one that cannot be used, and what to do about it."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import closing
from pathlib import Path

from mitoflow.errors import REFUSED, InputError

PATIENCE = 5  # seconds that another process may keep it locked


def require_readable(path: Path, remedy: str) -> None:
    """Read the list of tables of a database, if the file is there.

    Parameters
    ----------
    path
        The file.
    remedy
        What to do about a damaged one.

    Raises
    ------
    InputError
        Another process keeps it locked, it is damaged or a folder, or it may not be opened.
    """
    if not path.exists():
        return
    if path.is_dir():
        raise InputError(path, "a folder", "an SQLite database", remedy)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=PATIENCE)) as database:
            database.execute("select name from sqlite_master").fetchall()
    except sqlite3.Error as error:
        if line := as_user_error(path, error, remedy):
            raise line from None
        raise


def as_user_error(path: Path, error: BaseException, remedy: str) -> InputError | None:
    """Return an error of SQLite, which other errors may wrap, as one that a user can correct; None if it is another."""
    cause: BaseException | None = error
    while cause is not None and not hasattr(cause, "sqlite_errorname"):
        cause = cause.__cause__ or cause.__context__
    name = getattr(cause, "sqlite_errorname", "").removeprefix("SQLITE_")
    if name.startswith(("BUSY", "LOCKED")):
        free = "close the program that has it open, or wait for it, and run this again"
        return InputError(path, "a database that another process keeps locked", "one that is free", free)
    if name.startswith(("CORRUPT", "NOTADB")):
        return InputError(path, f"a damaged file ({cause})", "an SQLite database", remedy)
    if name.startswith(("CANTOPEN", "READONLY")):
        return InputError(path, *REFUSED[errno.EACCES])
    return None

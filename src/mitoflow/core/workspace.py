"""Where a project's files are, and how they are written and hashed."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mitoflow.errors import InputError

UNLOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems without locks


def main_checkout() -> Path:
    """Return the checkout that owns the tracking store and the resumable state.

    ``dvc exp run --temp`` and ``--queue`` execute in a copy of the checkout that is thrown away afterwards; DVC names
    the real one in ``DVC_ROOT``.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def state_dir() -> Path:
    """Return ``.mitoflow/`` of the main checkout: checkpoints, the study and the tracking journal."""
    folder = main_checkout() / ".mitoflow"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Let one process of this checkout at a time into the block; others wait."""
    with (state_dir() / f"{name}.lock").open("w") as stream:
        lock(stream, wait=True)
        yield


def lock(stream: IO[Any], *, wait: bool) -> None:
    """Lock a file for as long as it is open.

    Raises
    ------
    BlockingIOError
        Another process has the lock, and nobody is to wait for it.
    InputError
        The file system has no locks.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise
        remedy = "mount it with locks, or put the project on another one"
        raise InputError(Path(stream.name).parent, "a file system without locks", "one that has them", remedy) from None

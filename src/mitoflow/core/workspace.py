"""Where a project keeps its state, and locks between its processes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mitoflow.errors import InputError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems without locks


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
def exclusive(name: str) -> Iterator[None]:
    """Run the block in one process of this checkout at a time; others wait."""
    with (state_dir() / f"{name}.lock").open("w") as stream:
        lock(stream, wait=True)
        yield


def lock(stream: IO[Any], *, wait: bool) -> None:
    """Lock a file until it is closed, or its process ends, however it ends.

    By `fcntl.flock`, which waits in the kernel. filelock polls, so that a process may wait long where others are
    faster to ask, and locks a file that it makes itself, where a journal must not be made again.

    Raises
    ------
    BlockingIOError
        Another process has the lock, and ``wait`` is False.
    InputError
        The file system has no locks.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except PermissionError as error:  # what some network file systems raise where another machine has the lock
        raise BlockingIOError(errno.EWOULDBLOCK, "another process has the lock", stream.name) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        remedy = "mount it with locks, or put the project on another one"
        raise InputError(Path(stream.name).parent, "a file system without locks", "one that has them", remedy) from None

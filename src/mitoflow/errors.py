"""Errors that a user can correct, as one line each."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

#: What libraries say where a machine has no more memory: the loader, Python, TensorFlow, oneDNN, PyTorch and JAX.
NO_MEMORY = (
    "failed to map segment",
    "cannot allocate memory",
    "can't start new thread",
    "oom when allocating",
    "failed to allocate memory",
    "could not create a primitive",
    "out of memory",
)


class InputError(Exception):
    """An error that a user can correct: a file, a key or an argument.

    Reads as one line, ``WHERE: found FOUND, expected EXPECTED; REMEDY``; commands print it and exit with 2.

    Parameters
    ----------
    where
        The file, the key of ``params.yaml`` or the option that is wrong.
    found, expected
        What is there and what should be.
    remedy
        What to do about it, as an imperative.
    """

    def __init__(self, where: object, found: object, expected: object, remedy: str) -> None:
        self.where, self.found, self.expected, self.remedy = str(where), str(found), str(expected), remedy
        line = f"{self.where}: found {self.found}, expected {self.expected}; {self.remedy}"
        super().__init__(" ".join(line.split()))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str, str]]:
        """Be what it is in another process, too."""
        return InputError, (self.where, self.found, self.expected, self.remedy)


def fail(error: Exception) -> NoReturn:
    """Print ``error`` as one line on stderr, apart from any progress bar, and exit with 2."""
    bars = sys.modules.get("tqdm")  # where it was not imported there are none, and there may be no memory to do it
    write = bars.tqdm.write if bars else print
    write(f"mitoflow: {error}", file=sys.stderr)
    raise SystemExit(2)


def run_as_command(main: Callable[[], None]) -> None:
    """Run ``main``; errors that a user can correct become one line on stderr and exit code 2.

    Besides `InputError` this is what a machine refuses: writing where one may not, a full disk, and more memory.
    """
    try:
        main()
    except Exception as error:
        if not (line := as_user_error(error)):
            raise
        fail(line)


def as_user_error(error: Exception) -> InputError | None:
    """Return the error as one that a user can correct, or None; errors that a library wrapped count too."""
    return next(filter(None, map(_as_user_error, _chain(error))), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _as_user_error(error: BaseException) -> InputError | None:
    sqlite = getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_")
    number = error.errno if isinstance(error, OSError) else None
    where = (error.filename if isinstance(error, OSError) else None) or Path.cwd()
    if isinstance(error, InputError):
        return error
    refused = [words for words in NO_MEMORY if words in str(error).lower()]
    if refused or isinstance(error, MemoryError):
        found = (str(error) if isinstance(error, MemoryError) else refused[0]) or "none left"
        return InputError("memory", found, "enough for this step", "use a machine that has more")
    if isinstance(error, PermissionError) or number == errno.EROFS or sqlite.startswith(("READONLY", "CANTOPEN")):
        return InputError(where, "no permission", "a place that may be read and written", "change its owner or mode")
    if number in (errno.ENOSPC, errno.EDQUOT) or sqlite in ("FULL", "IOERR_WRITE"):
        return InputError(where, "no space left on the disk", "room for the output", "free some space and run it again")
    return None

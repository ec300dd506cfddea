"""Errors that a user can correct, as one line each."""

from __future__ import annotations

import errno
import sys
import time
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

#: What Python says where the clock was never set and a model is saved: archives count from 1980.
NO_CLOCK = "timestamps before 1980"

LONGEST = 1000  # characters of what was found

EUCLEAN, EREMOTEIO = 117, 121  # of Linux: on other systems, Python has no names for them

#: What a machine refuses, by its number: what is found there, what is expected, and what to do.
REFUSED = {
    errno.EACCES: ("no permission", "a place that may be read and written", "change its owner or mode"),
    errno.EBUSY: ("a file that is in use", "one that is free", "close the program that uses it"),
    errno.EFBIG: ("a file that becomes too large", "a file system and a limit that allow it", "see `ulimit -f`"),
    errno.EIO: (
        "a disk that fails to read or write",
        "one that works",
        "look at the log of the system, and replace it",
    ),
    errno.EISDIR: ("a folder", "a file", "check the path"),
    errno.ELOOP: ("links that lead in a circle", "a file or a folder", "correct the links"),
    errno.EMFILE: ("too many open files", "fewer than the limit", "raise it with `ulimit -n`"),
    errno.ENAMETOOLONG: ("a name that is too long", "at most 255 bytes", "give a shorter one"),
    errno.ENOENT: ("no such file", "one that stays while it is used", "check the path, and what removes it"),
    errno.ENOSPC: ("no space left on the disk", "room for the output", "free some space and run it again"),
    errno.ENODEV: (
        "a disk that is gone, or cannot map files into memory",
        "one that is there and can",
        "connect it again, or copy the files to another one",
    ),
    errno.ENOTCONN: ("a network share that is not connected", "one that is", "mount it again, and run it again"),
    errno.ENOTDIR: ("a file in the place of a folder", "a folder", "check the path"),
    errno.ENOTEMPTY: (
        "a folder in which something else writes",
        "one that is left alone while it is used",
        "close the program that uses it, and run it again",
    ),
    errno.EPIPE: ("a closed pipe", "a program that reads the output", "run it without the pipe"),
    EREMOTEIO: (
        "a network share that fails to read or write",
        "one that works",
        "look at its server and the network, and run it again",
    ),
    errno.ESTALE: ("a file of a network share that was replaced", "one that stays while it is used", "run it again"),
    errno.ETIMEDOUT: ("no answer of a network share", "one that answers", "look at the network, and run it again"),
    EUCLEAN: (
        "a damaged file system",
        "an intact one",
        "have it checked with `fsck`, and copy from it what can be read",
    ),
}
REFUSED |= {errno.EPERM: REFUSED[errno.EACCES], errno.EROFS: REFUSED[errno.EACCES], errno.ENFILE: REFUSED[errno.EMFILE]}
REFUSED |= {errno.EDQUOT: REFUSED[errno.ENOSPC], errno.EEXIST: REFUSED[errno.ENOTDIR]}


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
        self.where, self.found, self.expected, self.remedy = str(where), shortened(str(found)), str(expected), remedy
        line = f"{self.where}: found {self.found}, expected {self.expected}; {self.remedy}"
        super().__init__(printable(" ".join(line.split())))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str, str]]:
        """Be what it is in another process, too."""
        return InputError, (self.where, self.found, self.expected, self.remedy)


def shortened(text: str) -> str:
    """Return text, or its beginning where it is too long to be read."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def printable(text: str) -> str:
    """Return text with backslash escapes for what could change a terminal or forge a line of a log.

    These are control characters, those that turn the direction of writing, and bytes of names that are no text.
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def fail(error: Exception) -> NoReturn:
    """Print ``error`` as one line on stderr, apart from any progress bar, and exit with 2."""
    bars = sys.modules.get("tqdm")  # where it was not imported there are none, and there may be no memory to do it
    write = bars.tqdm.write if bars else print
    write(printable(f"mitoflow: {error}"), file=sys.stderr)
    raise SystemExit(2)


def run_as_command(main: Callable[[], None]) -> None:
    """Run ``main``; errors that a user can correct become one line on stderr and exit code 2.

    Besides `InputError` this is what a machine refuses: more memory, and what `REFUSED` lists.
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
    if NO_CLOCK in str(error):
        expected, remedy = "a year from 1980 on, which archives can hold", "set the clock, and run it again: it resumes"
        return InputError("the clock of this machine", time.strftime("%Y"), expected, remedy)
    if sqlite.startswith(("READONLY", "CANTOPEN")):
        number = errno.EACCES
    if sqlite in ("FULL", "IOERR_WRITE"):
        number = errno.ENOSPC
    return InputError(where, *REFUSED[number]) if number in REFUSED else None

"""What a person can get wrong, said in one line."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class InputError(Exception):
    """Input that a person can mend: a file, a key or an argument.

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
    """Print ``error`` as one line on stderr and exit with 2."""
    print(f"mitoflow: {error}", file=sys.stderr)
    raise SystemExit(2)


def one_line(main: Callable[[], None]) -> None:
    """Run ``main`` and turn what a person can mend into one line on stderr and exit code 2.

    Besides `InputError` these are the two things that a machine refuses: writing where one may not, and a full disk.
    """
    try:
        main()
    except InputError as error:
        fail(error)
    except PermissionError as error:
        where = error.filename or Path.cwd()
        fail(InputError(where, "no permission", "a place that may be read and written", "change its owner or mode"))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or Path.cwd()
        fail(InputError(where, "no space left on the disk", "room for the output", "free some space and run it again"))

"""Progress of what takes long: a bar on a terminal, and a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

INTERVAL = 30  # seconds between two lines of a log


class _Lines:
    """A file for `tqdm` that turns each state of a bar into a line on stderr."""

    def write(self, text: str) -> None:
        """Write a state without the carriage return and the spaces around it; the end of a bar is no further line."""
        if state := text.strip():
            print(state, file=sys.stderr)

    def flush(self) -> None:
        """Flush stderr."""
        sys.stderr.flush()


def progress_bar(steps: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """Return a progress bar; see `tqdm` for its options.

    Where stderr is no terminal, it writes a line every `INTERVAL` seconds and one at the end, and nothing for work that
    is done before: an error that comes early stands alone.
    """
    if not sys.stderr.isatty():
        options |= {"file": _Lines(), "mininterval": INTERVAL, "maxinterval": INTERVAL, "delay": INTERVAL}
    return tqdm(steps, **options)

"""Outputs in the making: nobody sees them under their names before they are whole, and a kill costs one block."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mitoflow import workspace
from mitoflow.errors import InputError

PUBLISHING = "publishing.json"


class Partial:
    """The hidden folder beside an output in which it is made, ``.NAME.partial``.

    It holds what was asked for, an empty file for each block that is done, and the files that the blocks go to. A block
    is marked after it was written and written again where it is not marked, so a kill between the two does no harm. The
    process that works on an output holds a lock, which ends with it, however it ends.

    Publishing is a series of renames, which a kill may cut short. What is to be renamed is written down first, so that
    the next process can go on with it.

    Attributes
    ----------
    folder
        Where the files are to be written.
    resumed
        Whether blocks of an earlier process are there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done, self._publishing = folder / "done", folder / PUBLISHING
        self._done.mkdir(exist_ok=True)
        self.resumed = any(self._done.iterdir())

    def is_done(self, block: str) -> bool:
        """Tell whether a block was written."""
        return (self._done / block).exists()

    def mark(self, block: str) -> None:
        """Say that a block was written."""
        (self._done / block).touch()

    @property
    def is_publishing(self) -> bool:
        """Whether an earlier process was killed while it published."""
        return self._publishing.exists()

    def publish(self, names: Mapping[Path, str]) -> None:
        """Give files and folders in this folder their final names, in their order, and remove the folder.

        What has such a name already is replaced.
        """
        workspace.write_json(self._publishing, {str(target.absolute()): name for target, name in names.items()})
        self.go_on_publishing()

    def go_on_publishing(self) -> None:
        """Do what `publish` was about to do."""
        names = json.loads(self._publishing.read_text(encoding="utf-8"))
        for target, name in names.items():
            source = self.folder / name
            if source.exists():
                _replace(source, Path(target), self.folder / "replaced")
        shutil.rmtree(self.folder)


def _replace(source: Path, target: Path, aside: Path) -> None:
    if target.is_dir() or (target.exists() and source.is_dir()):  # folders are neither renamed over nor replace a file
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    source.replace(target)


def place(output: Path) -> Path:
    """Return the folder in which `output` is made."""
    return output.parent / f".{output.name}.partial"


def refuse_existing(output: Path, others: Iterable[Path]) -> None:
    """Refuse to replace `output` and the `others` that are made with it.

    Where a kill cut publishing short, some of them may have their names already, and no harm is done.

    Raises
    ------
    InputError
        One of them exists.
    """
    for path in (output, *others):
        if path.exists() and not (place(output) / PUBLISHING).exists():
            raise InputError(path, "an output that exists", "a new name", "choose another, or give --overwrite")


@contextmanager
def making(output: Path, asked_for: Mapping[str, Any]) -> Iterator[Partial]:
    """Yield the folder in which `output` is made, as an earlier process left it where that was asked for the same.

    What was made for anything else is thrown away. Where the block raises before a block is done, nothing stays.

    Parameters
    ----------
    output
        The final name.
    asked_for
        All that decides the output, as JSON can hold it.

    Raises
    ------
    InputError
        Another process is making this output.
    """
    folder = place(output)
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        _lock(lock.fileno(), output)
        order = folder / "asked_for.json"
        text = json.dumps(asked_for, sort_keys=True)
        if not order.exists() or order.read_text(encoding="utf-8") != text:
            _empty(folder)
            workspace.write_text(order, text)
        partial = Partial(folder)
        try:
            yield partial
        except BaseException as error:
            if folder.exists() and not any((folder / "done").iterdir()):
                shutil.rmtree(folder)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(output)  # a full disk does not say whose it is
            raise


def _lock(descriptor: int, output: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        remedy = "wait for it, or choose another name"
        raise InputError(output, "another process that is making it", "one at a time", remedy) from None


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()

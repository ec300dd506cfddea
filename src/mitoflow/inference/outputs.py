"""Outputs in the making: nobody sees them under their names before they are whole, and a kill costs one block."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mitoflow.core import files, workspace
from mitoflow.errors import InputError

PUBLISHING = "publishing.json"
LOCK = "lock"


class PendingOutput:
    """The folder in which an output is made, ``.NAME.partial/REQUEST``, hidden beside it.

    It holds an empty file for each block that is done, and the files that the blocks go to. A block is marked after it
    was written and written again where it is not marked, so a kill between the two does no harm. The process that works
    on an output holds a lock, which ends with it, however it ends. What was asked for is in the name of the folder: a
    worker that still writes for an earlier request does so elsewhere.

    Publishing is a series of renames, which a kill may cut short. What is to be renamed is written down first, so that
    the next process can go on with it.

    Attributes
    ----------
    folder
        Where the files are to be written.
    resumed
        Whether blocks of an earlier process are there.
    is_published
        Whether the files have their final names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done, self._publishing = folder / "done", folder / PUBLISHING
        self._done.mkdir(exist_ok=True)
        self.resumed = any(self._done.iterdir())
        self.is_published = False

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
        """Give files and folders in this folder their final names, in their order.

        What has such a name already is replaced. Files may go to another file system; folders stay beside the output.
        """
        files.write_json(self._publishing, {str(target.absolute()): name for target, name in names.items()})
        self.go_on_publishing()

    def go_on_publishing(self) -> None:
        """Do what `publish` was about to do."""
        names = json.loads(self._publishing.read_text(encoding="utf-8"))
        for target, name in names.items():
            source = self.folder / name
            if source.exists():
                _replace(source, Path(target), self.folder / "replaced")
        self.is_published = True


def _replace(source: Path, target: Path, aside: Path) -> None:
    if target.is_dir():  # folders are not renamed over
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    if source.is_dir():
        if target.exists():
            target.rename(aside)
        source.replace(target)
        return
    with files.replacing(target) as beside:
        shutil.move(source, beside)


def place(output: Path) -> Path:
    """Return the folder that holds all that is made of `output`."""
    return output.parent / f".{output.name}.partial"


def refuse_existing(output: Path, files: Iterable[Path]) -> None:
    """Refuse to replace the `files` that are made with `output`, before any work.

    Where a kill cut publishing short, some of them may have their names already; whose they are, `making` tells.

    Raises
    ------
    InputError
        One of them exists.
    """
    if not any(place(output).glob(f"*/{PUBLISHING}")):
        _refuse(files)


def _refuse(files: Iterable[Path]) -> None:
    for path in files:
        if path.exists():
            raise InputError(path, "an output that exists", "a new name", "choose another, or give --overwrite")


@contextmanager
def making(output: Path, asked_for: Mapping[str, Any], kept: Iterable[Path] = ()) -> Iterator[PendingOutput]:
    """Yield the folder in which `output` is made, as an earlier process left it where that was asked for the same.

    What was made for anything else is thrown away. Where the block raises before a block is done, nothing stays, and
    nothing stays where it published.

    Parameters
    ----------
    output
        The final name.
    asked_for
        All that decides the output, as JSON can hold it.
    kept
        Files that may not be replaced, unless an earlier process was publishing what was asked for.

    Raises
    ------
    InputError
        Another process is making this output, or a file is there that may not be replaced.
    """
    text = json.dumps(asked_for, sort_keys=True)
    folder, name = place(output), hashlib.sha256(text.encode()).hexdigest()[:16]
    is_over = False
    try:
        with _locked(folder, output):
            if not (folder / name / PUBLISHING).exists():
                _refuse(kept)
            for other in folder.iterdir():
                if other.is_dir() and other.name != name:
                    shutil.rmtree(other, ignore_errors=True)  # a worker may still write there
            (folder / name).mkdir(exist_ok=True)
            partial = PendingOutput(folder / name)
            try:
                yield partial
            except BaseException as error:
                is_over = not any((folder / name / "done").glob("*"))
                if isinstance(error, OSError) and error.filename is None:
                    error.filename = str(output)  # a full disk does not say whose it is
                raise
            else:
                is_over = partial.is_published
            finally:
                if is_over:
                    shutil.rmtree(folder / name, ignore_errors=True)
                    (folder / LOCK).unlink(missing_ok=True)
    finally:
        if is_over:
            with suppress(OSError):  # somebody else may have begun
                folder.rmdir()  # after the lock was closed: NFS keeps a file that is open


@contextmanager
def _locked(folder: Path, output: Path) -> Iterator[None]:
    """Hold the lock of a folder, and make both where they are missing; a file that was removed meanwhile is no lock."""
    path = folder / LOCK
    while True:
        folder.mkdir(exist_ok=True)
        try:
            lock = path.open("w")
        except FileNotFoundError:
            continue
        with lock:
            try:
                workspace.lock(lock, wait=False)
            except BlockingIOError:
                remedy = "wait for it, or choose another name"
                raise InputError(output, "another process that is making it", "one at a time", remedy) from None
            except InputError:
                pass  # an output may lie where there are no locks, and is whole as long as one process makes it
            if _is_at(path, lock.fileno()):
                yield
                return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

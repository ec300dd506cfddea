"""Atomic, resumable outputs: a file appears under its name when it is complete, and a kill costs one block."""

from __future__ import annotations

import errno
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
    """The hidden folder beside an output in which it is written, ``.NAME.partial/DIGEST``.

    It holds the files that the blocks are written to, and an empty file for each block that is done. A block is marked
    after it is written, and a block without a mark is written again, so a kill between the two does no harm. The
    process that works on an output holds a lock, which the operating system releases when the process ends. The folder
    is named by a digest of the request: a worker that still writes for an earlier request writes elsewhere.

    Publishing is a series of renames. The list of renames is written first, so that the next process can finish a
    series that a kill or an error interrupted. A file leaves the folder only by the rename that puts it in its place;
    for another file system it is copied and stays. So what is still in the folder is published, once or again, and
    what is not has its final name.

    Attributes
    ----------
    folder
        Where the files are written.
    resumed
        Whether it holds blocks of an earlier process.
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
        """Return whether a block is done."""
        return (self._done / block).exists()

    def mark_done(self, block: str) -> None:
        """Record that a block is done."""
        (self._done / block).touch()

    def discard(self) -> None:
        """Delete the marks of blocks that are done, so that an exception after it removes the folder."""
        shutil.rmtree(self._done)

    @property
    def is_publishing(self) -> bool:
        """Whether publishing started and did not finish."""
        return self._publishing.exists()

    def publish(self, names: Mapping[Path, str]) -> None:
        """Give the files and folders in this folder their final names, in the order of `names`.

        Existing files of these names are replaced. Files may go to another file system; folders stay beside the output.
        """
        files.write_json(self._publishing, {str(target.absolute()): name for target, name in names.items()})
        self.resume_publishing()

    def resume_publishing(self) -> None:
        """Finish the renames of `publish`.

        Raises
        ------
        InputError
            A file is neither in this folder nor in its place.
        """
        names = json.loads(self._publishing.read_text(encoding="utf-8"))
        for target, name in names.items():
            source = self.folder / name
            if source.exists():
                _replace(source, Path(target), self.folder / "replaced")
            elif not Path(target).exists():
                found = f"neither this file nor {source}, from which it is made"
                raise InputError(target, found, "one of them", f"delete {self.folder.parent}, and run it again")
        self.is_published = True


def _replace(source: Path, target: Path, aside: Path) -> None:
    """Rename a file or a folder to `target`; on an error or a kill it is in one of the two places, whole."""
    if target.is_dir() or (source.is_dir() and target.exists()):  # a folder is not renamed over
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV or source.is_dir():
            error.filename = str(target)
            raise
        with files.replacing(target) as beside:
            shutil.copy2(source, beside)


def partial_folder(output: Path) -> Path:
    """Return the folder that holds the unfinished files of `output`."""
    return output.parent / f".{output.name}.partial"


def refuse_existing(output: Path, files: Iterable[Path]) -> None:
    """Check, before any work, that none of the `files` that belong to `output` exists.

    After a kill during publishing, some of them may exist already; `pending_output` then decides.

    Raises
    ------
    InputError
        One of them exists.
    """
    if not any(partial_folder(output).glob(f"*/{PUBLISHING}")):
        _refuse(files)


def _refuse(files: Iterable[Path]) -> None:
    for path in files:
        if path.exists():
            raise InputError(path, "an output that exists", "a new name", "choose another, or give --overwrite")


@contextmanager
def pending_output(output: Path, request: Mapping[str, Any], kept: Iterable[Path] = ()) -> Iterator[PendingOutput]:
    """Yield the folder in which `output` is written, with the blocks that an earlier process wrote for this request.

    Unfinished files of other requests are removed. The folder is removed when the output is published, and when the
    ``with`` block raises before any block is done.

    Parameters
    ----------
    output
        The final name.
    request
        Everything that decides the output, as values that JSON can hold.
    kept
        Files that may not be replaced, unless an earlier process was publishing this request.

    Raises
    ------
    InputError
        Another process is writing this output, or a file exists that may not be replaced.
    """
    text = json.dumps(request, sort_keys=True)
    folder, name = partial_folder(output), hashlib.sha256(text.encode()).hexdigest()[:16]
    is_over = False
    try:
        with _locked(folder, output):
            try:
                if not (folder / name / PUBLISHING).exists():
                    _refuse(kept)
                for other in folder.iterdir():
                    if other.is_dir() and other.name != name:
                        shutil.rmtree(other, ignore_errors=True)  # a worker may still write there
                (folder / name).mkdir(exist_ok=True)
                pending = PendingOutput(folder / name)
                try:
                    yield pending
                except BaseException as error:
                    is_over = not any((folder / name / "done").glob("*"))
                    if isinstance(error, OSError) and error.filename is None:
                        error.filename = str(output)  # the error of a full disk names no file
                    raise
                else:
                    is_over = pending.is_published
            finally:
                if is_over:
                    shutil.rmtree(folder / name, ignore_errors=True)
                if not any(each.is_dir() for each in folder.iterdir()):
                    (folder / LOCK).unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # unfinished files are there, or another process started meanwhile
            folder.rmdir()  # only after the lock is closed: NFS keeps a file that is open


@contextmanager
def _locked(folder: Path, output: Path) -> Iterator[None]:
    """Hold the lock of a folder; both are created if they are missing, and again if another process removed them."""
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
                raise InputError(output, "another process that is writing it", "one at a time", remedy) from None
            except InputError:
                pass  # a file system without locks: correct as long as one process writes
            if _is_at(path, lock.fileno()):
                yield
                return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

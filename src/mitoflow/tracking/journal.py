"""Tracking events on disk: they are written here first, and sent to MLflow afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from mitoflow.core import files, workspace
from mitoflow.errors import InputError

Event = dict[str, Any]
CHECKSUM = "crc32"
REMOVED = ".removed"  # ends the name of a journal of which all was sent


def folders(*keys: str) -> list[Path]:
    """Return the folders of the journals of the runs ``keys``, or without keys of all runs, oldest first."""
    return sorted(path for path in _root().glob("[0-9]*.*") if not keys or key_of(path) in keys)


def key_of(folder: Path) -> str:
    """Return the key of the run whose journal is in ``folder``."""
    return folder.name.partition(".")[2]


def waiting(folder: Path) -> int:
    """Return how many events of a journal MLflow does not have yet; its process may be running or not."""
    try:
        return sum(1 for _ in _read(folder, _sent(folder)))
    except FileNotFoundError:
        return 0


def _existing(path: str, flags: int) -> int:
    """Open a file that must be there: another process may be removing the journal."""
    return os.open(path, flags & ~os.O_CREAT)


def _root() -> Path:
    root = workspace.state_dir() / "journal"
    root.mkdir(exist_ok=True)
    return root


class Journal:
    """The events of one process about a run and its child runs, in order.

    The folder ``TIME.KEY`` holds ``events.jsonl``, one JSON object with its checksum a line; ``sent``, how many bytes
    of that have reached MLflow; and a copy of every file that an event names. Its process keeps ``events.jsonl`` locked
    for as long as it lives. A process that gets the lock knows that no other one writes, and may send the rest.

    Invariant: an event is on disk before any of it is sent, and `mark_sent` passes it only after MLflow took it. A
    crash in between sends that event once more, so MLflow must be able to take an event twice. A journal is removed
    when all of it was sent.

    Raises
    ------
    BlockingIOError
        Another process has the journal.
    FileNotFoundError
        It is gone: another process sent all of it.
    InputError
        The file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._events = folder / "events.jsonl"
        self._stream = open(self._events, "ab", opener=_existing)  # noqa: SIM115 (it holds the lock until `close`)
        try:
            workspace.lock(self._stream, wait=False)
            if not self._events.exists():
                raise FileNotFoundError(self._events)
        except (OSError, InputError):
            self._stream.close()
            raise
        self._writing = threading.Lock()

    @classmethod
    def create(cls, key: str) -> Self:
        """Start a journal for the run ``key``, which may have older ones."""
        if not re.fullmatch(r"[\w-]+", key):
            raise ValueError(f"key {key!r} has characters other than letters, digits, _ and -")
        # A clock that jumps back must not bring journals out of their order.
        newest = max((int(other.name.partition(".")[0]) for other in folders()), default=0)
        folder = _root() / f"{max(time.time_ns(), newest + 1)}.{key}"
        beside = folder.with_name(f".{folder.name}")  # no process adopts it before it is locked
        beside.mkdir()
        (beside / "events.jsonl").touch()
        journal = cls(beside)
        beside.rename(folder)
        journal.folder, journal._events = folder, folder / "events.jsonl"
        return journal

    @classmethod
    def adopt(cls, folder: Path) -> Self:
        """Open the journal of a process that has ended.

        A last line that ``kill -9`` cut short is dropped, and runs that the process could not end are ended for it, as
        killed at the time of its last event.

        Raises
        ------
        InputError
            A line is damaged; the journal stays as it is.
        """
        journal = cls(folder)
        running: dict[str, None] = {}
        ends, last = [0], 0
        try:
            for event, end in _read(folder):
                ends.append(end)
                last = event["time"]
                if event["event"] == "start":
                    running[event["run"]] = None
                elif event["event"] == "end":
                    running.pop(event["run"], None)
        except InputError:
            journal._stream.close()
            raise
        journal._stream.truncate(ends[-1])
        if _sent(folder) not in ends:
            journal.mark_sent(0)  # it is damaged, and to send an event again changes nothing
        for run in reversed(running):
            journal.append({"event": "end", "run": run, "time": last, "status": "KILLED"})
        return journal

    def append(self, event: Event) -> None:
        """Write an event, and return when it is on disk."""
        line = _compact(event | {CHECKSUM: _checksum(event)}) + b"\n"
        with self._writing:
            self._stream.write(line)
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def keep(self, path: Path) -> str:
        """Copy a file or a folder into the journal and return its place in there, which ends in its own name.

        DVC's ``.gitignore`` files stay behind.
        """
        kept = tempfile.mkdtemp(dir=self.folder)
        place = Path(kept).relative_to(self.folder) / path.name
        target = self.folder / place
        for file in [path, *path.rglob("*")]:  # shutil.copytree hides the error of the disk
            if file.name == ".gitignore":
                continue
            copy = target / file.relative_to(path)
            if file.is_dir():
                copy.mkdir()
            else:
                shutil.copyfile(file, copy)
        return str(place)

    def events(self) -> Iterator[Event]:
        """Yield all events, sent or not."""
        return (event for event, _ in _read(self.folder))

    def start_of(self, run: str) -> Event:
        """Return the event that started ``run``."""
        return next(event for event in self.events() if event["event"] == "start" and event["run"] == run)

    def unsent(self) -> Iterator[tuple[Event, int]]:
        """Yield what is still to be sent: each event with the position after it, for `mark_sent`."""
        return _read(self.folder, _sent(self.folder))

    @property
    def all_sent(self) -> bool:
        """Whether MLflow has every event."""
        return _sent(self.folder) == self._events.stat().st_size

    def mark_sent(self, position: int) -> None:
        """Note that everything before ``position`` has reached MLflow."""
        with files.replacing(self.folder / "sent") as new:
            new.write_text(str(position))

    def close(self) -> None:
        """Give the journal up, and remove it where all of it was sent.

        It gets a hidden name first, so that a process that is killed here leaves a whole journal or none. What is left
        below such a name goes with the next journal.
        """
        if self.all_sent:
            self.folder.rename(self.folder.with_name(f".{self.folder.name}{REMOVED}"))
            for folder in _root().glob(f".*{REMOVED}"):
                shutil.rmtree(folder, ignore_errors=True)  # another process may remove it at the same time
        self._stream.close()


def _sent(folder: Path) -> int:
    try:
        return int((folder / "sent").read_text())
    except (FileNotFoundError, ValueError):  # a power cut may leave it empty
        return 0


def _compact(event: Event) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


def _checksum(event: Event) -> int:
    return zlib.crc32(_compact(event))


def _read(folder: Path, position: int = 0) -> Iterator[tuple[Event, int]]:
    with (folder / "events.jsonl").open("rb") as stream:
        stream.seek(position)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            position += len(line)
            try:
                event = json.loads(line)
                if event.pop(CHECKSUM, None) != _checksum(event):
                    raise ValueError(line)
            except (ValueError, AttributeError, TypeError):
                remedy = "the file has changed since it was written; remove its folder, and that run ends there"
                raise InputError(folder / "events.jsonl", "a damaged line", "an event", remedy) from None
            yield event, position

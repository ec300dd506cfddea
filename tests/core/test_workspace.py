"""Locks between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mitoflow.core import workspace
from mitoflow.errors import InputError

HOLD = """
import sys
from mitoflow.core import workspace
with workspace.exclusive("work"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def holder() -> subprocess.Popen[str]:
    """Start a process that holds the lock until it is killed."""
    command = [sys.executable, "-c", HOLD]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "locked\n"
    return process


def test_one_process_at_a_time_and_a_kill_releases_the_lock(checkout: Path) -> None:
    path, entered = checkout / ".mitoflow" / "work.lock", threading.Event()

    def enter() -> None:
        with workspace.exclusive("work"):
            entered.set()

    with holder() as process:
        with path.open("w") as stream, pytest.raises(BlockingIOError):
            workspace.lock(stream, wait=False)
        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.3)
        process.kill()
        waiting.join(30)
    assert entered.is_set()
    with path.open("w") as stream:
        workspace.lock(stream, wait=False)


def test_locks_of_different_names_are_independent(checkout: Path) -> None:
    with workspace.exclusive("one"), workspace.exclusive("other"):
        pass


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EACCES, BlockingIOError), (errno.ENOLCK, InputError), (errno.EOPNOTSUPP, InputError), (errno.EIO, OSError)],
)
def test_errors_of_a_file_system_in_locking(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (checkout / "file").open("w") as stream, pytest.raises(error) as raised:
        workspace.lock(stream, wait=False)
    assert raised.type is error

"""Parts that several tests use; they load no Keras, because every test does with `tests.services`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Of processes that tests start: they know the tests, too, and leave cores to each other.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_NUM_INTRAOP_THREADS": "1",
}
PATIENCE = 120  # seconds; two workers share the machine


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def until(true: Callable[[], object], why: Callable[[], object] = str) -> None:
    """Wait until a condition holds; `why` returns the message of the error if it does not in time."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, why()
        time.sleep(0.1)


@contextmanager
def scheduling() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a Dask scheduler on loopback; its address is in the file that it writes."""
    scheduler_file = Path("where.json")
    where = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(scheduler_file))
    with started("scheduler", *where) as process:
        until(lambda: scheduler_file.exists() and scheduler_file.read_text().endswith("}"))
        yield process, json.loads(scheduler_file.read_text())["address"]


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a Dask process, and kill it in the end if it still lives."""
    command = [sys.executable, "-m", "dask", *arguments]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()

"""What a stage does before it begins."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from mitoflow import errors

MULTIPLY = """
import resource
from pathlib import Path
import numpy as np
from mitoflow import stages

def main():
    (held,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line]
    resource.setrlimit(resource.RLIMIT_AS, (1024 * int(held), resource.RLIM_INFINITY))
    print((np.eye(3) @ np.full((3, 3), 7.0))[0])

stages.as_process(main)
"""


@pytest.mark.parametrize(
    ("stage", "megabytes"),
    [
        *(("patch", megabytes) for megabytes in (60, 280, 500, 900)),
        *(("tune", 1300), ("train", 1400), ("evaluate", 1900), ("train", 3000)),
    ],
)
def test_where_there_is_too_little_memory_it_says_so_before_any_library_waits(stage: str, megabytes: int) -> None:
    command = ["prlimit", f"--as={megabytes}000000", sys.executable, "-m", f"mitoflow.stages.{stage}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("mitoflow: memory: found not ")
    assert done.stderr.count("\n") == 1


NO_THREAD = """
import threading
from mitoflow import stages

start, started = threading.Thread.start, []

def refuse(thread):
    started.append(thread)
    if len(started) == 3:
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = refuse
stages.as_process(print)
"""


def test_where_no_thread_can_be_started_it_says_so_and_ends() -> None:
    done = subprocess.run([sys.executable, "-c", NO_THREAD], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("mitoflow: memory: found no room for a thread (can't start new thr")


def test_a_product_of_matrices_ends_where_no_memory_is_left() -> None:
    done = subprocess.run([sys.executable, "-c", MULTIPLY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[7. 7. 7.]\n"


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (ImportError("libtensorflow_cc.so.2: failed to map segment from shared object"), "failed to map segment"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "cannot allocate memory"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (RuntimeError("OOM when allocating tensor with shape[8,512,512,64]\n and type float"), "oom when allocating"),
        (MemoryError(), "none left"),
        (MemoryError("Unable to allocate 8 GiB"), "Unable to allocate 8 GiB"),
    ],
)
def test_memory_that_a_library_does_not_get_is_one_line(error: Exception, found: str) -> None:
    line = f"memory: found {found}, expected enough for this step; use a machine that has more"
    assert str(errors.mendable(error)) == line


def test_a_library_that_cannot_be_mapped_is_one_line() -> None:
    code = MULTIPLY.replace("print(", "import scipy.sparse; print(")
    assert code != MULTIPLY
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("mitoflow: memory: found ")

"""Faults of a machine: a full or read-only disk, too little memory, a clock that jumps, and two users at once."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import STAGES, Project
from tests.services import lacks_program

from .injection import LONG, fault
from .namespace import MOUNTS, disk
from .pipeline import IMPORTS, duration, forget, go_on, recorded
from .test_preemption import check_history

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


def check_one_line(done: subprocess.CompletedProcess[str], *reasons: str) -> None:
    """Check that a stage failed with one line, which has the reason."""
    assert done.returncode == 2, done.stderr
    print(done.stderr)
    line = said_in_one_line(done)
    assert any(reason in line for reason in reasons), line


def said_in_one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the line that a stage printed, or DVC for it."""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("mitoflow: ")]
    (line,) = (line for line in lines if not line.startswith("mitoflow: tracking: "))  # what it keeps for later
    return line


@MOUNTS
@pytest.mark.parametrize("stage", STAGES if LONG else ["tune"])
@fault("disk full in {stage}", long=2)
def test_full_disk(finished: Project, chance: random.Random, stage: str, attempt: int) -> None:
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, stage)
    with disk(finished.folder, "1g") as small:
        for left in (chance.randrange(0, 200) * 4096, 0):
            small.fill(left)
            done = finished.run(*small.enter, "python", "-m", "mitoflow.stages", stage, check=False)
            small.empty()
            if done.returncode:  # or what was left was enough
                break
        check_one_line(done, "no space left")
        finished.run(*small.enter, "dvc", "repro")
        assert recorded(small.run("cat", "dvc.lock")) == undisturbed


@MOUNTS
@pytest.mark.parametrize("stage", STAGES if LONG else ["patch"])
@fault("read-only project in {stage}", long=1)
def test_read_only(finished: Project, stage: str, attempt: int) -> None:
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, stage)
    with disk(finished.folder, "1g") as small:
        small.read_only(True)
        done = finished.run(*small.enter, "python", "-m", "mitoflow.stages", stage, check=False)
        check_one_line(done, "no permission")
        small.read_only(False)
        finished.run(*small.enter, "dvc", "repro")
        assert recorded(small.run("cat", "dvc.lock")) == undisturbed


@pytest.mark.parametrize("stage", STAGES if LONG else ["patch"])
@fault("too little memory in {stage}", long=2)
def test_too_little_memory(finished: Project, chance: random.Random, stage: str, attempt: int) -> None:
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, stage)
    most = 5e9 if stage in ("tune", "train", "evaluate") else 1.2e9
    limit = f"--as={int(chance.uniform(0.1, 1) * most)}"
    done = finished.run("prlimit", limit, "python", "-m", "mitoflow.stages", stage, check=False)
    print(limit, done.returncode, done.stderr[-300:])
    # What is written in C++ ends by a signal where it gets no memory, as if it was killed.
    if done.returncode not in (0, -signal.SIGABRT, -signal.SIGSEGV):
        check_one_line(done, "memory")
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    check_history(finished)


#: Limits of a stage as options of `prlimit`, with what a stage needs at most, and what it says where it gets less.
LIMITS = {"open files": ("nofile", 200, "too many open files"), "size of files": ("fsize", 2**20, "becomes too large")}


@pytest.mark.parametrize("limited", LIMITS)
@pytest.mark.parametrize("stage", STAGES if LONG else ["patch"])
@fault("a limit of {limited} in {stage}", long=2)
def test_limits(finished: Project, chance: random.Random, stage: str, limited: str, attempt: int) -> None:
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, stage)
    name, most, found = LIMITS[limited]
    limit = f"--{name}={int(chance.uniform(0.1, 1) * most)}"
    done = finished.run("prlimit", limit, "python", "-m", "mitoflow.stages", stage, check=False)
    print(limit, done.returncode, done.stderr[-300:])
    if done.returncode not in (0, -signal.SIGABRT):  # of libraries in C++ that cannot open what they need
        check_one_line(done, found)
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    check_history(finished)


@MOUNTS
@pytest.mark.parametrize("stage", STAGES if LONG else ["evaluate"])
@fault("temporary folder and shared memory full in {stage}", long=1)
def test_full_temporary_folders(finished: Project, stage: str, attempt: int, tmp_path: Path) -> None:
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, stage)
    (tmp_path / "temporary").mkdir()
    with disk(tmp_path / "temporary", "64k") as small:
        small.fill_elsewhere("/dev/shm")
        small.fill()
        there = [*small.enter[:-1], str(finished.folder)]
        full = {"TMPDIR": str(tmp_path / "temporary")}
        done = finished.run(*there, "python", "-m", "mitoflow.stages", stage, check=False, **full)
        if done.returncode:
            check_one_line(done, "no space left", "no usable temporary")
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    check_history(finished)


LOST = [".mitoflow", "mlruns", "mlflow.db", "models", "patches", "reports"]


@pytest.mark.parametrize("lost", LOST if LONG else [".mitoflow"])
@fault("{lost} deleted between stages", long=1)
def test_deleted_between_stages(finished: Project, lost: str, attempt: int) -> None:
    """Before `evaluate`; what DVC has is checked out or made again, and what MLflow had is lost history alone."""
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, "evaluate")
    path = finished.folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed


@pytest.mark.parametrize("year", [1970, 2040])
@pytest.mark.parametrize("stage", STAGES)
@fault("a clock of {year} in {stage}", long=1, short=0)
def test_wrong_year(finished: Project, stage: str, year: int, attempt: int) -> None:
    if FAKETIME is None:
        lacks_program("libfaketime", "faketime")
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, stage)
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME": f"@{year}-01-02 00:00:00",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    done = finished.run("dvc", "repro", "-s", stage, check=False, **faked)
    if done.returncode:  # no archive, such as a model, can be of 1970
        assert "the clock of this machine: found 1970, expected a year from 1980 on" in said_in_one_line(done)
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    check_history(finished)


@pytest.mark.parametrize("stage", ["tune", "train"] if LONG else ["patch"])
@fault("a clock that jumps back and forth in {stage}", long=2)
def test_clock(finished: Project, chance: random.Random, stage: str, attempt: int, tmp_path: Path) -> None:
    if FAKETIME is None:
        lacks_program("libfaketime", "faketime")
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, stage)
    offset = tmp_path / "offset"
    set_clock(offset, 0)
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_CACHE_DURATION": "1",  # seconds from one look at the file to the next
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with finished.started("dvc", "repro", "-s", stage, **faked) as process:
        while process.poll() is None:
            time.sleep(chance.uniform(0.5, 4))
            set_clock(offset, chance.choice([-400 * 86400, -7200, -1, 3600]))
    assert process.returncode == 0
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    check_history(finished)


def set_clock(offset: Path, seconds: int) -> None:
    """Set libfaketime's clock so many seconds beside the real one."""
    beside = offset.with_suffix(".new")
    beside.write_text(f"{seconds:+d}\n")
    beside.replace(offset)


@pytest.mark.parametrize("stage", ["patch", "train"] if LONG else ["patch"])
@fault("two `dvc repro` at once, in {stage}", long=2)
def test_two_at_once(finished: Project, chance: random.Random, stage: str, attempt: int) -> None:
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, stage)
    with finished.started("dvc", "repro", "-s", stage) as first:
        time.sleep(chance.uniform(0, 4))
        second = finished.run("dvc", "repro", "-s", stage, check=False)
        assert first.wait(300) == 0 or second.returncode == 0
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    check_history(finished)


@fault("two trainings of the same at once, one killed", long=2, short=0)
def test_two_trainings(finished: Project, chance: random.Random, attempt: int) -> None:
    """Without DVC's lock between them, as where a killed `dvc repro` left its stage behind."""
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, "train")
    train = ("python", "-m", "mitoflow.stages", "train")
    with finished.started(*train) as first, finished.started(*train) as second:
        while not list(finished.folder.glob(".mitoflow/checkpoints/*/run")):
            time.sleep(0.05)
        time.sleep(chance.uniform(0, (duration(finished, "train") - IMPORTS) / 2))
        finished.signal(first, signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        assert second.wait(300) == 0
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    check_history(finished)


CACHED = {  # by output of DVC: a file in it, what makes it and who reads it
    "patches": ("train/images.npy", "patch", "train"),
    "models/unet.keras": ("", "train", "evaluate"),
    "data": ("train/phantom/images/phantom.tif", None, None),
}


@pytest.mark.parametrize("output", CACHED)
@fault("a bit flipped in DVC's cache: {output}", long=1, short=0)
def test_bit_in_the_cache(finished: Project, chance: random.Random, output: str, attempt: int) -> None:
    """DVC trusts its cache; stages that read patches or a model do not, and `mitoflow data verify` names the object."""
    undisturbed = recorded(finished.read("dvc.lock"))
    name, maker, reader = CACHED[output]
    file = finished.folder / output / name
    digest = hashlib.md5(file.read_bytes()).hexdigest()
    cached = finished.folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    flip_unseen(cached, chance)
    if reader:
        file.unlink()
        finished.run("dvc", "checkout", output)
        assert file.read_bytes() == cached.read_bytes()
        done = finished.run("dvc", "repro", "-s", "-f", reader, check=False)
        assert done.returncode, "it worked with what is damaged"
        assert said_in_one_line(done).startswith(f"mitoflow: {output}: found ")
    verified = finished.run("mitoflow", "data", "verify", check=False)
    assert verified.returncode == 2
    assert any(str(cached) in line and name in line for line in verified.stderr.splitlines()), verified.stderr
    finished.run("mitoflow", "data", "verify", "--delete")
    finished.run("dvc", *(["repro", "-s", "-f", maker] if maker else ["add", output]))
    assert "every object matches its hash" in finished.run("mitoflow", "data", "verify").stdout
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed


def flip_unseen(file: Path, chance: random.Random) -> None:
    """Flip a bit in the inner half of a file, as a disk does: at the same time, and in the same place."""
    content, before = bytearray(file.read_bytes()), file.stat()
    content[chance.randrange(len(content) // 4, 3 * len(content) // 4)] ^= 1 << chance.randrange(8)
    file.chmod(0o644)
    file.write_bytes(content)
    file.chmod(before.st_mode)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

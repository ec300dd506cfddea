"""A machine that refuses: no space, no writing, no memory, a clock that jumps, and two people at once."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import STAGES, Project

from .injection import LONG, fault
from .namespace import PRIVATE_MOUNTS, disk
from .pipeline import duration, forget, go_on, recorded
from .test_preemption import check_history

MOUNTS = pytest.mark.skipif(not PRIVATE_MOUNTS, reason="needs mounts of its own, by `unshare`")
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


def check_one_line(done: subprocess.CompletedProcess[str], *reasons: str) -> None:
    """A stage that failed said so in one line, and why."""
    if done.returncode:
        assert done.returncode == 2, done.stderr
        print(done.stderr)
        assert "Traceback" not in done.stderr
        told = [line for line in done.stderr.splitlines() if line.startswith("mitoflow: ")]
        (line,) = (line for line in told if not line.startswith("mitoflow: tracking: "))  # what it keeps for later
        assert any(reason in line for reason in reasons), line


@MOUNTS
@pytest.mark.parametrize("stage", STAGES if LONG else ["tune"])
@fault("disk full in {stage}", long=2)
def test_full_disk(finished: Project, chance: random.Random, stage: str, attempt: int) -> None:
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, stage)
    with disk(finished.folder, "1g") as small:
        small.fill(chance.randrange(0, 200) * 4096)
        check_one_line(
            finished.run(*small.enter, "python", "-m", f"mitoflow.stages.{stage}", check=False), "no space left"
        )
        small.empty()
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
        done = finished.run(*small.enter, "python", "-m", f"mitoflow.stages.{stage}", check=False)
        assert done.returncode == 2
        check_one_line(done, "no permission")
        small.read_only(False)
        finished.run(*small.enter, "dvc", "repro")
        assert recorded(small.run("cat", "dvc.lock")) == undisturbed


@pytest.mark.parametrize("stage", ["validate", "patch", "train", "evaluate"] if LONG else ["patch"])
@fault("too little memory in {stage}", long=2)
def test_too_little_memory(finished: Project, chance: random.Random, stage: str, attempt: int) -> None:
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, stage)
    most = 8e9 if stage in ("train", "evaluate") else 2e9
    limit = f"--as={int(chance.uniform(0.1, 1) * most)}"
    done = finished.run("prlimit", limit, "python", "-m", f"mitoflow.stages.{stage}", check=False)
    print(limit, done.returncode, done.stderr[-300:])
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    check_history(finished)


@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime")
@pytest.mark.parametrize("stage", ["tune", "train"] if LONG else ["patch"])
@fault("a clock that jumps back and forth in {stage}", long=2)
def test_clock(finished: Project, chance: random.Random, stage: str, attempt: int, tmp_path: Path) -> None:
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
    train = ("python", "-m", "mitoflow.stages.train")
    with finished.started(*train) as first, finished.started(*train) as second:
        time.sleep(chance.uniform(1, duration(finished, "train")))
        finished.signal(first, signal.SIGKILL)
        assert second.wait(300) == 0
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    check_history(finished)


@fault("a bit flipped in DVC's cache", long=2, short=0)
def test_bit_in_the_cache(finished: Project, chance: random.Random, attempt: int) -> None:
    """DVC trusts its cache; the patch store looks at what it reads."""
    undisturbed = recorded(finished.read("dvc.lock"))
    images = finished.folder / "patches/train/images.npy"
    cached = next(
        file
        for file in finished.folder.glob(".dvc/cache/files/md5/*/*")
        if file.stat().st_size == images.stat().st_size and file.read_bytes() == images.read_bytes()
    )
    content, mode = bytearray(cached.read_bytes()), cached.stat().st_mode
    content[chance.randrange(128, len(content))] ^= 1 << chance.randrange(8)
    cached.chmod(0o644)
    cached.write_bytes(content)
    cached.chmod(mode)
    shutil.rmtree(finished.folder / "patches")
    finished.run("dvc", "checkout", check=False)
    done = finished.run("dvc", "repro", "-s", "-f", "train", check=False)
    if done.returncode:
        assert "Traceback" not in done.stderr
        assert "changed since it was written" in done.stderr or "corrupt" in done.stderr + done.stdout, done.stderr
    finished.run("dvc", "repro", "-s", "-f", "patch")
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed

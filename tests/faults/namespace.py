"""A small disk for some processes: a tmpfs in a mount namespace of Linux, which only they see."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.services import find_program

ROOT = os.geteuid() == 0
UNSHARE = ["unshare", "--mount", *([] if ROOT else ["--map-root-user"])]
FILLER = ".filler"


#: Of tests that mount a disk.
MOUNTS = pytest.mark.usefixtures("private_mounts")


@pytest.fixture(scope="session")
def private_mounts() -> None:
    """Skip the test where no disk can be mounted: a container without the right to make namespaces cannot."""
    find_program("unshare", "util-linux")
    tried = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("needs mounts of its own, by `unshare`, and this machine does not permit them")


class Disk:
    """A small disk that lies over ``folder``, with what the folder held, for processes that `enter`."""

    def __init__(self, folder: Path, size: str, process: subprocess.Popen[str]) -> None:
        self.folder, self.size = folder, size
        user = [] if ROOT else ["--user", "--preserve-credentials"]
        there = ["sh", "-c", 'cd "$0" && exec "$@"', str(folder)]
        self.enter = ["nsenter", f"--target={process.pid}", "--mount", *user, *there]

    def run(self, *command: str) -> str:
        """Run a command there, and return what it printed."""
        return subprocess.run([*self.enter, *command], capture_output=True, text=True, check=True).stdout

    def fill(self, left: int = 0) -> None:
        """Fill the disk, but for so many bytes."""
        write = f"cat /dev/zero > {FILLER} 2> /dev/null; truncate -s -{left} {FILLER}"
        self.run("sh", "-c", write)

    def limit_inodes(self, left: int) -> None:
        """Let the disk have so many more files and folders than there are."""
        used = int(self.run("df", "--output=iused", ".").split()[-1])
        self.run("mount", "-o", f"remount,nr_inodes={used + left}", str(self.folder))

    def fill_elsewhere(self, folder: str) -> None:
        """Lay a full disk over another folder, such as that of shared memory."""
        self.run("mount", "-t", "tmpfs", "-o", "size=4k", "none", folder)
        self.run("sh", "-c", f"cat /dev/zero > {folder}/{FILLER} 2> /dev/null || true")

    def empty(self) -> None:
        """Remove what `fill` wrote."""
        self.run("rm", "-f", FILLER)

    def read_only(self, yes: bool) -> None:
        """Make the disk read-only, or writable again."""
        self.run("mount", "-o", "remount,ro" if yes else "remount,rw", str(self.folder))


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Disk]:
    """Lay a disk of that size, such as ``16m``, over a folder that exists."""
    beside = folder.with_name(f"{folder.name}.disk")
    beside.mkdir()
    # It is filled in beside, because the mount hides what is below it.
    script = f"""
        mount -t tmpfs -o size={size} none '{beside}' && cp -a '{folder}/.' '{beside}' &&
        mount --bind '{beside}' '{folder}' && echo ready && exec cat"""
    holder = [*UNSHARE, "sh", "-c", script]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield Disk(folder, size, process)
        finally:
            process.kill()

"""Image files from elsewhere: damage ends in one line or the right picture, in bounded time and memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .damaged_images import KINDS
from .injection import ROOT, examples, fault


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@fault("fuzzing: {kind} files, in 1 GiB", long=1)
def test_damaged_images(
    tmp_path: Path, attempt: int, kind: str, chance: random.Random, record_property: Callable[[str, object], None]
) -> None:
    """A process of its own reads them, which the limits of memory and time end."""
    count, seed = examples(long=1500, short=50), str(chance.random())
    command = [sys.executable, "-m", "tests.faults.damaged_images", kind, str(tmp_path), seed, str(count)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    numbers = ran.stdout.split()
    assert (ran.returncode, ran.stderr) == (0, ""), f"{kind}, seed {seed}, number {numbers[-1:]}: {ran.stderr}"
    assert len(numbers) == count
    record_property("tried", count)

"""Files from elsewhere: damage ends in one line or the right picture, in bounded time and memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mitoflow.errors import InputError
from mitoflow.io.volumes import open_volume
from tests.io.test_volumes import STACK, write_zarr
from tests.services import HTTPFolder

from .damaged_images import KINDS, harmed
from .injection import ROOT, examples, fault


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@fault("fuzzing: {kind} files, in 1 GiB", long=1)
def test_damaged_images(
    tmp_path: Path, attempt: int, kind: str, chance: random.Random, record_property: Callable[[str, object], None]
) -> None:
    """A process of its own reads them, which the limits of memory and time end."""
    count = examples(long=1500, short=50)
    assert read_damaged("damaged_images", [kind, str(tmp_path), str(chance.random()), str(count)]) == (count, "")
    record_property("tried", count)


@pytest.mark.slow
@fault("fuzzing: models with their settings, in 1 GiB", long=1)
def test_damaged_models(
    tmp_path: Path, attempt: int, chance: random.Random, record_property: Callable[[str, object], None]
) -> None:
    count = examples(long=1500, short=40)
    tried, _ = read_damaged("damaged_models", [str(tmp_path), str(chance.random()), str(count)])  # TensorFlow prints
    assert tried == count
    record_property("tried", count)


def read_damaged(module: str, arguments: list[str]) -> tuple[int, str]:
    """Have a module here read damaged files in a process; return how many it read, and what it wrote to stderr."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", f"tests.faults.{module}", *arguments]
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    numbers = ran.stdout.split()
    assert ran.returncode == 0, f"{module} {arguments}, number {numbers[-1:]}: {ran.stderr}"
    return len(numbers), ran.stderr


@pytest.mark.parametrize("version", [2, 3])
@fault("fuzzing: a server that answers wrongly, Zarr of version {version}", long=1)
def test_wrong_answers_of_a_server(
    tmp_path: Path, attempt: int, version: int, chance: random.Random, record_property: Callable[[str, object], None]
) -> None:
    """Each file in turn is refused, lost, cut, empty, foreign or damaged: one line, or the picture."""
    path = write_zarr(tmp_path / "s.zarr", STACK, version=version)
    names = sorted(each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file())
    count = examples(long=600, short=40)
    with HTTPFolder(tmp_path) as served:
        for _ in range(count):
            name = chance.choice(names)
            content = (path / name).read_bytes()
            bodies = [b"", content[: len(content) // 2], b"<html>", harmed(content, chance)]
            status = chance.choice([200, 200, 200, 301, 401, 403, 404, 410, 429, 500, 503])
            served.answers = {f"/{name}": (status, chance.choice(bodies))}
            try:
                volume = open_volume(f"{served.url}/s.zarr")
                box = (0, min(volume.shape[1], 999), 0, min(volume.shape[2], 999))
                read = volume.read(0, box)
            except InputError as error:
                assert "\n" not in str(error)
            else:
                assert status == 200 or np.array_equal(read, STACK[0])
    record_property("tried", count)

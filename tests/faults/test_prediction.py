"""Faults during `predict`: no mask of something else appears, and what was predicted before them is continued."""

from __future__ import annotations

import io
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile

from mitoflow.errors import as_user_error
from mitoflow.inference import prediction
from mitoflow.inference.request import Request
from mitoflow.inference.settings import Settings
from mitoflow.io import ome
from mitoflow.tracking import model_lookup
from tests.parts import ENVIRONMENT
from tests.tiny_model import write_model

from .injection import LONG, fault
from .namespace import MOUNTS, disk

SETTINGS = Settings(bit_depth=8, divisor=2, tile=48, overlap=16, threshold=0.5, context=1, median=3)
STACK = np.random.default_rng(0).integers(0, 256, (26, 80, 100), np.uint8)
INPUTS = {"a file": "cell.tif", "a compressed file": "packed.tif", "slices": "slices", "an OME-Zarr": "cell.ome.zarr"}
MODEL = "model/unet.keras"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and the same stack in all kinds of files."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "model").mkdir()
    write_model(folder / "model", SETTINGS, STACK[:3])
    tifffile.imwrite(folder / "cell.tif", STACK)
    tifffile.imwrite(folder / "packed.tif", STACK, compression="zlib", photometric="minisblack")
    (folder / "slices").mkdir()
    for z, image in enumerate(STACK):
        tifffile.imwrite(folder / f"slices/s{z}.tif", image)
    volume = ome.create_multiscale(folder / "cell.ome.zarr", STACK.shape, STACK.dtype, 4)
    volume[:] = STACK
    ome.finish_multiscale(folder / "cell.ome.zarr", ome.Description("zyx"))
    return folder


@pytest.fixture(scope="module")
def expected(made: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The mask that is predicted undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shutil.copytree(made, tmp_path_factory.mktemp("undisturbed"), dirs_exist_ok=True))
        assert predict("cell.tif") == ""
        return tifffile.imread("mask.tif")


@pytest.fixture(autouse=True)
def folder(made: Path, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which is the current one."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(source: str, advance: Callable[[int], object] | None = None) -> str:
    """Write ``mask.tif`` and its probabilities; return the line that a user gets, empty where it worked."""
    request = Request(source, Path("mask.tif"), probability=True)
    try:
        prediction.predict(request, model_lookup.find(MODEL), lambda _: None, advance)
    except Exception as error:
        line = as_user_error(error)
        if line is None:
            raise
        assert not Path("mask.tif").exists()
        return str(line)
    return ""


def once_after(voxels: int, do: Callable[[], object]) -> Callable[[int], None]:
    """Return what calls `do` as soon as so many voxels are predicted."""
    predicted = 0

    def advance(more: int) -> None:
        nonlocal predicted
        before, predicted = predicted, predicted + more
        if before < voxels <= predicted:
            do()

    return advance


def one_of(source: Path, chance: random.Random) -> Path:
    """Return a file that holds pixels of an input."""
    if source.is_file():
        return source
    return chance.choice(sorted(source.glob("s*.tif")) or sorted((source / "0").glob("*/*/*")))


def remove(file: Path, _: random.Random) -> None:
    file.unlink()


def truncate(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def rewrite(file: Path, _: random.Random) -> None:
    """Write other pixels, or those of another chunk, in the same place."""
    if file.suffix == ".tif":
        tifffile.imwrite(file, 255 - tifffile.imread(file))
    else:
        others = [each for each in file.parents[2].glob("*/*/*") if each != file]
        file.write_bytes(others[0].read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("how", [remove, truncate, rewrite], ids=lambda how: how.__name__)
@fault("an input that {how.__name__} changes during predict", long=12)
def test_changed_input(
    made: Path, folder: Path, expected: np.ndarray, chance: random.Random, how: Callable, attempt: int
) -> None:
    source = folder / chance.choice([*INPUTS.values()])
    harm = once_after(chance.randrange(1, STACK.size), lambda: how(one_of(source, chance), chance))
    line = predict(str(source), harm)
    assert "changed while it was read" in line or "no such file" in line or "intact" in line or "whole TIFF" in line
    shutil.rmtree(source) if source.is_dir() else source.unlink(missing_ok=True)
    (shutil.copytree if (made / source.name).is_dir() else shutil.copy2)(made / source.name, source)
    assert predict(str(source)) == ""
    assert np.array_equal(tifffile.imread("mask.tif"), expected)


@contextmanager
def limits_restored(limit: int) -> Iterator[Callable[[int], None]]:
    """Yield what sets a limit of this process, which is as before afterwards."""
    soft, hard = resource.getrlimit(limit)
    try:
        yield lambda most: resource.setrlimit(limit, (most, hard))
    finally:
        resource.setrlimit(limit, (soft, hard))


def next_descriptor() -> int:
    with Path(os.devnull).open() as stream:
        return stream.fileno()


@pytest.mark.slow
@fault("no file descriptor left during predict", long=12)
def test_no_descriptor(expected: np.ndarray, chance: random.Random, attempt: int) -> None:
    source = chance.choice([*INPUTS.values()])
    with limits_restored(resource.RLIMIT_NOFILE) as limit:
        exhaust = once_after(
            chance.randrange(1, STACK.size // 2), lambda: limit(next_descriptor() + chance.randrange(2))
        )
        line = predict(source, exhaust)
    assert "found too many open files, expected fewer than the limit; raise it with `ulimit -n`" in line
    assert predict(source) == ""
    assert np.array_equal(tifffile.imread("mask.tif"), expected)


@pytest.mark.slow
@fault("a limit of the size of files during predict", long=12)
def test_limit_of_files(expected: np.ndarray, chance: random.Random, attempt: int) -> None:
    source = chance.choice([*INPUTS.values()])
    with limits_restored(resource.RLIMIT_FSIZE) as limit:
        limit(chance.randrange(4096, 16384))  # bytes; a chunk of probabilities has 28 KB
        line = predict(source)
    assert "found a file that becomes too large, expected a file system and a limit that allow it" in line
    assert predict(source) == ""
    assert np.array_equal(tifffile.imread("mask.tif"), expected)


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "mitoflow.cli", "predict", "cell.tif", "mask.tif", "--model", MODEL, *options]


@pytest.mark.slow
@fault("two predictions to one output", long=6)
def test_two_at_once(expected: np.ndarray, chance: random.Random, attempt: int) -> None:
    """Of different parts of the stack, so that an output of both is noticed."""
    started = []
    for options in ([], ["--roi", "0:26,0:80,0:60"]):
        process = subprocess.Popen(command(*options), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        started.append(process)
        time.sleep(chance.uniform(0, 4))
    said = [process.communicate()[1] for process in started]
    codes = [process.returncode for process in started]
    assert sorted(codes) == [0, 2], said
    refused = said[codes.index(2)].splitlines()[-1]
    assert refused.startswith("mitoflow: mask.tif: found ")
    assert "another process that is writing it" in refused or "an output that exists" in refused
    assert np.array_equal(tifffile.imread("mask.tif"), (expected, expected[:, :, :60])[codes.index(0)])
    assert not Path(".mask.tif.partial").exists()


@pytest.mark.slow
@MOUNTS
@pytest.mark.parametrize("lacking", ["space", "inodes"] if LONG else ["inodes"])
@fault("no {lacking} left during predict", long=3)
def test_full(folder: Path, expected: np.ndarray, chance: random.Random, lacking: str, attempt: int) -> None:
    with disk(folder, "64m") as small:
        if lacking == "space":
            small.fill(left=chance.randrange(2, 20) * 4096)
        else:
            small.limit_inodes(left=chance.randrange(1, 20))
        done = subprocess.run([*small.enter, *command()], env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        (line,) = (line for line in done.stderr.splitlines() if line.startswith("mitoflow: "))
        assert "found no space left on the disk" in line
        small.empty()
        small.limit_inodes(left=10000)
        subprocess.run([*small.enter, *command()], env=ENVIRONMENT, check=True)
        mask = subprocess.run([*small.enter, "cat", "mask.tif"], capture_output=True, check=True).stdout
    assert np.array_equal(tifffile.imread(io.BytesIO(mask)), expected)

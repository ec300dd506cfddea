"""The blocks of an output, predicted by a real Dask scheduler with real worker processes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from mitoflow.core import cluster
from mitoflow.errors import InputError
from mitoflow.inference import jobs, prediction
from mitoflow.inference.parts import Part
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.request import Request
from mitoflow.inference.settings import Settings
from mitoflow.io import ome
from mitoflow.tracking import model_lookup
from tests.parts import ENVIRONMENT, scheduling, started, until
from tests.tiny_model import write_model

SETTINGS = Settings(bit_depth=8, divisor=2, tile=48, overlap=16, threshold=0.5, context=1, median=3)
STACK = np.random.default_rng(0).integers(0, 256, (100, 64, 72), np.uint8)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stack, a network and its settings."""
    folder = tmp_path_factory.mktemp("project")
    write_model(folder, SETTINGS, STACK)
    tifffile.imwrite(folder / "cell.tif", STACK)
    return folder


@pytest.fixture
def here(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_blocks_cover_an_output_once_in_whole_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ome, "CHUNK", 16)
    for shape in [(1, 1, 1), (8, 80, 81), (17, 100, 250), (3, 16, 2000)]:
        owners = np.zeros(shape, np.uint8)
        names = set()
        for column in jobs.columns(shape, 95):
            for block in column:
                owners[block.place] += 1
                names.add(block.name)
                assert max(block.shape[1:]) <= 80
                assert not any(start % 16 for start in (block.box[0], block.box[2]))
        assert (owners == 1).all()
        assert len(names) == sum(map(len, jobs.columns(shape, 95)))


def test_runs_are_the_missing_blocks_that_follow_each_other() -> None:
    (column,) = jobs.columns((60, 9, 9), 1)
    done = {"0-0-0", "24-0-0", "32-0-0"}
    runs = [[block.slices.start for block in run] for run in jobs.missing_runs(column, done.__contains__)]
    assert runs == [[8, 16], [40, 48, 56]]


def test_progress_in_parts_of_voxels_adds_up_to_the_voxels() -> None:
    reported: list[int] = []
    further = jobs.in_whole_voxels(reported.append)
    for _ in range(30):
        further(0.7)
    assert sum(reported) == 21
    assert set(reported) == {0, 1}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_stack(project: Path) -> None:
    """Only the slices that a map needs are held: a stack of any depth, of which each slice is read twice at most."""
    reads: list[int] = []

    class Endless:
        axes, shape, dtype, spacing = "zyx", (10**6, 64, 72), np.dtype(np.uint8), {}

        def read(self, z: int, box: tuple[int, int, int, int]) -> np.ndarray:
            reads.append(z)
            return STACK[z % 100, box[0] : box[1], box[2] : box[3]]

        def state(self) -> list[object]:
            return []

    predictor = Predictor.load(project / "unet.keras", project / "inference.yaml")
    maps = jobs.Prediction(Endless(), (64, 72), predictor).maps(Part(range(10**6), (0, 64, 0, 72)))
    for _ in range(5):
        next(maps)
    assert reads == list(range(7)), "one slice of context and one of the median ahead"


def test_a_worker_loads_a_network_once_for_all_jobs(here: Path) -> None:
    (here / "output").mkdir()

    def job(threshold: float, weights: str) -> jobs.Job:
        part = Part(range(100), (0, 64, 0, 72))
        settings = replace(SETTINGS, threshold=threshold)
        return jobs.Job("cell.tif", {}, None, None, here / "unet.keras", weights, settings, part, (), here / "output")

    first, second, other = (job(*asked).open().prediction.predictor for asked in ((0.4, "a"), (0.6, "a"), (0.6, "b")))
    assert (first.settings.threshold, second.settings.threshold) == (0.4, 0.6)
    assert first.model is second.model
    assert second.model is not other.model, "weights of another digest"


def masks(**asked: object) -> np.ndarray:
    request = Request("cell.tif", Path("mask.ome.zarr"), **asked)  # type: ignore[arg-type]
    prediction.predict(request, model_lookup.find("unet.keras"), print)
    return np.asarray(ome.open_multiscale(Path("mask.ome.zarr")).array[:])


@pytest.fixture
def scheduler(here: Path) -> Iterator[str]:
    with scheduling() as (_, address):
        yield address


def worker(address: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Start a worker that reads slowly, so that there is time to kill it."""
    Path("slow.py").write_text(
        "import time\n"
        "from mitoflow.io import volumes\n"
        "def slowly(*arguments, read=volumes.StackVolume.read):\n"
        "    time.sleep(0.02)\n"
        "    return read(*arguments)\n"
        "volumes.StackVolume.read = slowly\n"
    )
    where = ("--host", "127.0.0.1", "--preload", str(Path("slow.py").absolute()))
    return started("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", *where)


@pytest.mark.e2e
def test_a_worker_that_is_killed_costs_its_block(here: Path, scheduler: str) -> None:
    expected = masks()
    shutil.rmtree("mask.ome.zarr")

    def done() -> int:
        return len(list(Path(".mask.ome.zarr.partial").glob("*/done/*")))

    with worker(scheduler) as first, worker(scheduler):
        arguments = ["cell.tif", "mask.ome.zarr", "--model", "unet.keras", "--dask", scheduler]
        command = [sys.executable, "-m", "mitoflow.cli", "predict", *arguments]
        predicting = subprocess.Popen(command, env=ENVIRONMENT)
        until(lambda: done() >= 2)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert done() < 13, "there is work left for the other one"
        assert predicting.wait(timeout=240) == 0
    np.testing.assert_array_equal(ome.open_multiscale(Path("mask.ome.zarr")).array[:], expected)
    assert not list(Path().rglob("*.partial"))


@pytest.mark.e2e
def test_a_scheduler_that_goes_away_is_one_line_and_the_rest_is_continued(here: Path) -> None:
    with scheduling() as (process, address), worker(address):
        arguments = ["cell.tif", "mask.ome.zarr", "--model", "unet.keras", "--dask", address]
        command = [sys.executable, "-m", "mitoflow.cli", "predict", *arguments]
        predicting = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        until(lambda: list(Path(".mask.ome.zarr.partial").glob("*/done/*")))
        process.kill()
        _, error = predicting.communicate(timeout=240)
    assert predicting.returncode == 2, error
    assert "mitoflow: --dask: found a scheduler that went away" in error
    assert list(Path(".mask.ome.zarr.partial").glob("*/done/*"))


def test_a_worker_does_not_take_one_job_for_another(here: Path) -> None:
    """Jobs of different requests live in different folders, so a worker does not confuse what it has loaded."""
    folders = []
    for threshold in (0.3, 0.6):
        with pytest.MonkeyPatch.context() as seen, pytest.raises(KeyboardInterrupt):
            seen.setattr(jobs, "here", lambda work, _: (folders.append(work.output.folder), interrupt()))
            masks(threshold=threshold, overwrite=True)
    assert len(set(folders)) == 2


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.e2e
def test_workers_of_this_machine_predict_the_same(here: Path) -> None:
    alone = masks()
    np.testing.assert_array_equal(masks(workers=2, overwrite=True), alone)


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    with pytest.raises(InputError, match="--dask: found tcp://127.0.0.1:9, where no scheduler with a worker answers"):
        masks(dask="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match="--dask: found nonsense://x, where no scheduler"):
        masks(dask="nonsense://x")
    with pytest.raises(InputError, match="--workers: found --dask too"):
        masks(dask="tcp://127.0.0.1:9", workers=2)
    assert not Path(".mask.ome.zarr.partial").exists()


@pytest.mark.slow
def test_a_scheduler_without_workers_is_one_line(here: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 2)
    with pytest.raises(InputError, match="where no scheduler with a worker answers"):
        masks(dask=scheduler)


def test_a_worker_that_does_not_see_the_files_says_so(here: Path) -> None:
    part = Part(range(2), (0, 64, 0, 72))
    job = jobs.Job("cell.tif", {}, None, None, Path("unet.keras"), "", SETTINGS, part, ("mask",), here / "absent")
    with pytest.raises(InputError, match="absent: found no such file on .*, expected what all workers see"):
        job.open()

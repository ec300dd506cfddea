"""Errors of the Dask cluster: a scheduler that is gone, and failures that are not its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dask import delayed
from distributed import Event

from mitoflow.core import cluster
from mitoflow.errors import InputError
from tests.parts import scheduling, started, until


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "PATIENCE", 10)
    with scheduling() as (process, address), started("worker", address, "--no-nanny", "--no-dashboard"):
        yield process, address


@pytest.mark.slow
def test_a_lost_scheduler_is_one_line(scheduler: tuple[subprocess.Popen[bytes], str]) -> None:
    process, address = scheduler
    with pytest.raises(InputError, match="--dask: found a scheduler that went away"), cluster.connected(address) as it:
        process.kill()
        until(lambda: it.status != "running")
        Event("anything", it).set()  # which tries to connect again until its timeout


@pytest.mark.slow
def test_other_system_errors_are_not_reported_as_the_schedulers(scheduler: tuple[subprocess.Popen[bytes], str]) -> None:
    with pytest.raises(FileNotFoundError), cluster.connected(scheduler[1]):
        Path("absent").read_bytes()


def visible() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.e2e
def test_each_process_of_this_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with cluster.connected(None, workers=2) as client:
        assert sorted(client.run(visible).values()) == ["3", "5"]
        for process in client.run(os.getpid).values():
            os.kill(process, signal.SIGKILL)
        until(lambda: sorted(client.run(visible, on_error="ignore").values()) == ["3", "5"])


@pytest.mark.slow
def test_other_uses_of_dask_do_not_run_on_the_cluster(scheduler: tuple[subprocess.Popen[bytes], str]) -> None:
    with cluster.connected(scheduler[1]) as client:
        computed_here = delayed(os.getpid)().compute()
        assert client.submit(os.getpid).result() != computed_here == os.getpid()

"""The recipe for SLURM: job scripts by dask-jobqueue, run here by the shell that SLURM would run them with."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mitoflow import tuning
from tests.parts import ENVIRONMENT, ROOT, until
from tests.studies import opened, score, search

RECIPE = ROOT / "deploy" / "slurm.py"


def test_the_script_of_a_job_asks_for_what_was_wanted() -> None:
    wanted = ["--cores", "6", "--gpus", "1", "--hours", "3", "--partition", "gpu", "--interface", "lo"]
    command = [sys.executable, str(RECIPE), *wanted, "--script"]
    script = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout
    lines = script.splitlines()
    for line in ("-p gpu", "--cpus-per-task=6", "--gres=gpu:1", "-t 03:00:00"):
        assert f"#SBATCH {line}" in lines, script
    (worker,) = (line for line in lines if "dask_worker tcp://" in line)
    assert worker.startswith(sys.executable), "the jobs run in the same environment"
    assert "--lifetime 175m" in worker


def test_a_worker_of_a_job_script_fits_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cluster = runpy.run_path(str(RECIPE))["cluster"]
    study = opened(tmp_path / "s.db")
    with cluster(cores=1, gpus=0, memory="1 GB", hours=1, partition=None, interface="lo") as workers:
        Path("job.sh").write_text(workers.job_script())
        with subprocess.Popen(["bash", "job.sh"], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as job:
            until(lambda: workers.scheduler.workers or job.poll() is not None)
            assert job.poll() is None, job.stderr.read()
            search(study).on_cluster(score, address=workers.scheduler_address)
            workers.sync(workers.scheduler.close)
            job.terminate()
    assert len(tuning.finished_trials(study)) == 6

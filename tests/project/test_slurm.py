"""The recipe for SLURM: job scripts by dask-jobqueue, run here by the shell that SLURM would run them with."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile

from mitoflow.inference.settings import Settings
from mitoflow.tuning import optuna_study
from tests.parts import ENVIRONMENT, ROOT, until
from tests.studies import opened, score, search
from tests.tiny_model import write_model

pytestmark = pytest.mark.e2e

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
    assert len(optuna_study.finished_trials(study)) == 6


# SLURM on one machine: the first job waits in the queue for 15 seconds, and ends after one.
SBATCH = """#!/bin/sh
number=$(ls jobs | wc -l)
cp "$1" "jobs/$number"
[ "$number" -gt 0 ] || sed -i 's/--lifetime 55m/--lifetime 1s/; 1a sleep 15' "jobs/$number"
setsid bash "jobs/$number" <&- >>log 2>&1 &
echo $! >>pids
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
kill -- "-$1"
"""


def test_mitoflow_runs_on_jobs_that_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "jobs").mkdir()
    for name, script in {"sbatch": SBATCH, "scancel": SCANCEL}.items():
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    stack = np.random.default_rng(0).integers(0, 256, (8, 64, 64), np.uint8)
    write_model(tmp_path, Settings(bit_depth=8, divisor=2, tile=48, overlap=16, threshold=0.5), stack)
    tifffile.imwrite("cell.tif", stack)
    found = {
        "PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]),
        "DASK_DEPLOY__LOST_WORKER_TIMEOUT": "1s",
    }

    def run(source: str) -> subprocess.CompletedProcess[str]:
        options = ["--cores", "1", "--hours", "1", "--memory", "1 GB", "--interface", "lo"]
        command = ["predict", source, "mask.tif", "--model", "unet.keras"]
        return subprocess.run(
            [sys.executable, RECIPE, *options, *command],
            env=ENVIRONMENT | found,
            text=True,
            capture_output=True,
            check=False,
        )

    refused = run("absent.tif")
    assert refused.returncode == 2
    assert "mitoflow: absent.tif: found" in refused.stderr
    assert "Registered to" in Path("log").read_text(), "mitoflow waits for a minute, but a queue may be longer"
    for job in Path("jobs").iterdir():
        job.unlink()

    done = run("cell.tif")
    assert done.returncode == 0, done.stderr
    assert tifffile.imread("mask.tif").shape == stack.shape
    assert len(list(Path("jobs").iterdir())) > 1
    until(lambda: not [pid for pid in Path("pids").read_text().split() if psutil.pid_exists(int(pid))])

"""Faults in a finished pipeline, and the state of the pipeline after them."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from tests.e2e.conftest import Project, runs

IMPORTS = 6  # seconds in which DVC and then a stage load their libraries


def recorded(lock: str) -> dict[str, Any]:
    """Return all that ``dvc.lock`` says, hashes of dependencies and outputs, but the report, which has the verdict."""
    stages = YAML(typ="safe").load(lock)["stages"]
    for stage in stages.values():
        stage["outs"] = [out for out in stage["outs"] if out["path"] != "reports/evaluate/report.html"]
    return dict(stages)


def forget(project: Project, stage: str) -> None:
    """Make DVC and the project forget that a stage was run."""
    yaml, path = YAML(), project.folder / "dvc.lock"
    lock = yaml.load(path)
    lock["stages"].pop(stage, None)  # a stage that was run by itself is not there
    yaml.dump(lock, path)
    shutil.rmtree(project.folder / ".dvc/cache/runs", ignore_errors=True)
    shutil.rmtree(project.folder / ".mitoflow/checkpoints", ignore_errors=True)
    (project.folder / ".mitoflow/optuna.db").unlink(missing_ok=True)


def duration(project: Project, stage: str) -> float:
    """Return how many seconds a stage took, with what it and DVC load."""
    first = [run for run in runs(project) if run.data.tags["mitoflow.stage"] == stage]
    ids = {run.info.run_id for run in first}
    whole = [run for run in first if run.data.tags.get("mlflow.parentRunId") not in ids]  # and no trials of a study
    return IMPORTS + max((run.info.end_time - run.info.start_time) / 1000 for run in whole)


@contextmanager
def struck(
    project: Project, chance: random.Random, stage: str, number: signal.Signals
) -> Iterator[subprocess.Popen[str]]:
    """Yield `dvc repro -s STAGE` right after it, and all that it started, got a signal while the stage ran.

    Where the stage was faster than chance, all is done again, and sooner.
    """
    longest = duration(project, stage)
    for _ in range(6):
        forget(project, stage)
        with project.started("dvc", "repro", "-s", stage) as process:
            running = _stage(process, stage)
            time.sleep(chance.uniform(0, longest))
            if running.is_running() and running.status() != psutil.STATUS_ZOMBIE:
                project.signal(process, number)
                yield process
                return
            assert process.wait(300) == 0
        longest /= 2
    pytest.fail(f"{stage} was never hit")


def _stage(process: subprocess.Popen[str], stage: str) -> psutil.Process:
    """Return the process of a stage, as soon as DVC has started it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "DVC ended before the stage began"
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if child.cmdline()[-2:] == ["mitoflow.stages", stage]:
                    return child
        time.sleep(0.02)
    raise TimeoutError(stage)


def has_progress(project: Project, stage: str) -> bool:
    """Return whether a study or a training that runs has stored a first trial or epoch."""
    state = project.folder / ".mitoflow"
    if stage == "train":
        return bool(list(state.glob("checkpoints/*/epoch-[1-9].npz")))
    try:
        with sqlite3.connect(f"file:{state}/optuna.db?mode=ro", uri=True) as study:
            return study.execute("select count(*) from trial_intermediate_values").fetchone()[0] >= 1
    except sqlite3.Error:
        return False


def go_on(project: Project) -> None:
    """Run the pipeline to its end, as a user does after a fault, and send what waits for MLflow."""
    project.run("dvc", "repro")
    project.run("mitoflow", "sync")

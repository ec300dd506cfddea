"""`kill -9` and SIGTERM, as schedulers send them: neither costs more than the current epoch, trial or stage."""

from __future__ import annotations

import csv
import random
import signal
import subprocess
import time

import pytest

from tests.e2e.conftest import STAGES, Project, runs, store

from .injection import LONG, fault
from .pipeline import forget, go_on, has_progress, recorded, struck

NOTICE = 30  # seconds between SIGTERM and SIGKILL, as SLURM and Kubernetes have it


@pytest.mark.parametrize("stage", STAGES if LONG else ["patch"])
@fault("`kill -9` of `dvc repro` in {stage}", long=2)
def test_killed(finished: Project, chance: random.Random, stage: str, attempt: int) -> None:
    undisturbed = recorded(finished.read("dvc.lock"))
    with struck(finished, chance, stage, signal.SIGKILL) as process:
        assert process.wait() == -signal.SIGKILL
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    check_history(finished)


@pytest.mark.parametrize("stage", STAGES if LONG else ["train"])
@fault("SIGTERM to `dvc repro` and all it started, in {stage}", long=2)
def test_pre_empted(finished: Project, chance: random.Random, stage: str, attempt: int) -> None:
    undisturbed = recorded(finished.read("dvc.lock"))
    with struck(finished, chance, stage, signal.SIGTERM) as process:
        noticed = time.monotonic()
        finished.wait_for_all(process, NOTICE)
        assert time.monotonic() - noticed < NOTICE
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    check_history(finished)


@pytest.mark.parametrize("stage", ["tune", "train"] if LONG else ["train"])
@fault("`kill -9` after results, before DVC records them, in {stage}", long=1)
def test_killed_before_dvc_records_it(finished: Project, stage: str, attempt: int) -> None:
    """The stage runs alone, as if DVC was killed before it recorded the results; `dvc repro` then computes nothing."""
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, stage)
    before = len(runs(finished))
    finished.run("python", "-m", "mitoflow.stages", stage)
    once = len(runs(finished))
    assert once > before
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    assert len(runs(finished)) == once
    # What DVC has on record is computed again when it is forced.
    finished.run("dvc", "repro", "-s", "-f", stage)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    assert len(runs(finished)) == once + (once - before)


@pytest.mark.parametrize("stage", ["tune", "train"])
@fault("`kill -9` after the first trials or epochs, in {stage}", long=1)
def test_it_goes_on_where_it_was(finished: Project, stage: str, attempt: int) -> None:
    undisturbed = recorded(finished.read("dvc.lock"))
    forget(finished, stage)
    before = {run.info.run_id for run in runs(finished)}
    with finished.started("dvc", "repro", "-s", stage) as process:
        deadline = time.monotonic() + 300
        while not has_progress(finished, stage):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        finished.signal(process, signal.SIGKILL)
    go_on(finished)
    assert recorded(finished.read("dvc.lock")) == undisturbed
    found = [run for run in runs(finished) if run.info.run_id not in before]
    whole = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.status for run in whole] == ["FINISHED"]
    if stage == "tune":
        assert {run.info.status for run in found} == {"FINISHED"}
        assert sum(run.info.status == "FINISHED" for run in found) == 1 + 4
    check_history(finished)


@fault("SIGTERM to the stage alone, in train", long=2)
def test_it_says_how_it_ended(finished: Project, chance: random.Random, attempt: int) -> None:
    for longest in (8, 4, 1, 0):  # seconds; a training that ended before the notice says nothing
        forget(finished, "train")
        (finished.folder / "reports/train/metrics.json").unlink()
        with finished.started("python", "-m", "mitoflow.stages", "train", stderr=subprocess.PIPE) as process:
            key = started_run(finished, process)
            time.sleep(chance.uniform(0, longest))
            process.terminate()
            said = process.communicate(timeout=NOTICE)[1]
        # While Python itself shuts down, after all is done, it has no handlers of signals any more.
        is_done = (finished.folder / "reports/train/metrics.json").exists()
        if process.returncode and not (is_done and process.returncode == -signal.SIGTERM):
            break
    assert process.returncode == 143, said
    assert "stopped by SIGTERM" in said
    assert "Traceback" not in said
    finished.run("mitoflow", "sync")  # where MLflow was slow, the end of the run is still on disk
    (run,) = [run for run in runs(finished) if run.data.tags["mitoflow.key"] == key]
    # The notice may also come when all is done but for the delivery to MLflow.
    done = (finished.folder / "reports/train/metrics.json").exists()
    assert run.info.status == "KILLED" or (run.info.status == "FINISHED" and done)
    assert not list(finished.folder.glob("models/.*.new"))


def started_run(project: Project, process: subprocess.Popen[str]) -> str:
    """Return the key of the training run of `process`, once its start is recorded on disk; before, there is no run."""
    deadline = time.monotonic() + 300
    while True:
        for journal in project.folder.glob(".mitoflow/journal/[0-9]*.train-*"):
            if (journal / "events.jsonl").stat().st_size:
                return journal.name.partition(".")[2]
        assert process.poll() is None, "it ended before its run started"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_history(project: Project) -> None:
    """Every finished training has each point of its curve once, and no other has one twice; nothing waits on disk."""
    assert "0 events sent" in project.run("mitoflow", "sync").stdout
    with (project.folder / "reports/train/curves.csv").open() as stream:
        curve = [(int(row["epoch"]) - 1, float(row["val_dice"])) for row in csv.DictReader(stream)]
    trainings = [run for run in runs(project) if run.data.tags["mitoflow.stage"] == "train"]
    assert any(run.info.status == "FINISHED" for run in trainings)
    for run in trainings:
        points = store(project).get_metric_history(run.info.run_id, "val_dice")
        found = sorted((point.step, point.value) for point in points)
        assert found == (curve if run.info.status == "FINISHED" else curve[: len(found)])

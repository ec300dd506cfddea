"""What the fault tests do to a finished pipeline, and how they look at it."""

from __future__ import annotations

import shutil
from typing import Any

from ruamel.yaml import YAML

from tests.e2e.conftest import Project, runs

IMPORTS = 6  # seconds in which DVC and then a stage load their libraries


def recorded(lock: str) -> dict[str, Any]:
    """Return all that ``dvc.lock`` says, hashes of dependencies and outputs, but the report that tells the verdict."""
    stages = YAML(typ="safe").load(lock)["stages"]
    for stage in stages.values():
        stage["outs"] = [out for out in stage["outs"] if out["path"] != "reports/evaluate/report.html"]
    return dict(stages)


def forget(project: Project, stage: str) -> None:
    """Make DVC and the project forget that a stage was run."""
    yaml, path = YAML(), project.folder / "dvc.lock"
    lock = yaml.load(path)
    del lock["stages"][stage]
    yaml.dump(lock, path)
    shutil.rmtree(project.folder / ".dvc/cache/runs")
    shutil.rmtree(project.folder / ".mitoflow/checkpoints", ignore_errors=True)
    (project.folder / ".mitoflow/optuna.db").unlink(missing_ok=True)


def duration(project: Project, stage: str) -> float:
    """Return how many seconds a stage took, with what it and DVC load."""
    first = [run for run in runs(project) if run.data.tags["mitoflow.stage"] == stage]
    if not first:  # evaluate reports to the run of the training
        return 2 * IMPORTS
    whole = [run for run in first if "mlflow.parentRunId" not in run.data.tags]
    return IMPORTS + max((run.info.end_time - run.info.start_time) / 1000 for run in whole)


def go_on(project: Project) -> None:
    """Run the pipeline to its end, as a person would after a fault; what was not to be sent is sent."""
    project.run("dvc", "repro")
    project.run("mitoflow", "sync")

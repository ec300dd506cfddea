"""What `kill -9` costs: nothing."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from .conftest import STAGES, Project, outputs, runs, stages_run, store


@pytest.mark.parametrize(
    ("stage", "progress"), [("tune", "trial_values"), ("train", "history.json")], ids=["tune", "train"]
)
def test_killed_in_the_middle_it_goes_on_where_it_was(
    fresh: Project, finished_project: Path, stage: str, progress: str
) -> None:
    state = fresh.folder / ".mitoflow"

    def reached() -> bool:
        if progress == "history.json":
            return any(len(json.loads(file.read_text())) >= 2 for file in state.glob("checkpoints/*/history.json"))
        try:
            with sqlite3.connect(f"file:{state}/optuna.db?mode=ro", uri=True) as study:
                return study.execute("select count(*) from trial_values").fetchone()[0] >= 1
        except sqlite3.Error:
            return False

    fresh.kill_during(reached, "dvc", "repro")
    printed = fresh.run("dvc", "repro").stdout
    assert stages_run(printed) == STAGES[STAGES.index(stage) :]
    assert outputs(fresh) == outputs(Project(finished_project))
    found = [run for run in runs(fresh) if run.data.tags["mitoflow.stage"] == stage]
    whole = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.status for run in whole] == ["FINISHED"]
    if stage == "train":
        curve = store(fresh).get_metric_history(whole[0].info.run_id, "val_dice")
        assert [point.step for point in curve] == [0, 1, 2, 3]
    else:
        assert {run.info.status for run in found} <= {"FINISHED", "KILLED"}
        assert sum(run.info.status == "FINISHED" for run in found) == 1 + 3

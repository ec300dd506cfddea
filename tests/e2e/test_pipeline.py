"""The pipeline as a user runs it: real dvc, git and MLflow on a small phantom."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from dvc.repo import Repo
from mlflow import MlflowClient

from .conftest import Project

STAGES = ["validate", "patch", "tune", "train", "evaluate"]


def lock(project: Project) -> str:
    return project.read("dvc.lock")


def store(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.folder}/mlflow.db")


def runs(project: Project) -> list:
    client = store(project)
    return list(client.search_runs([client.get_experiment_by_name("mitoflow").experiment_id]))


def stages_run(printed: str) -> list[str]:
    return [line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")]


def scores(project: Project) -> dict:
    return json.loads(project.read("reports/evaluate/metrics.json"))


def test_everything_is_there_and_up_to_date(finished: Project) -> None:
    assert "up to date" in finished.run("dvc", "status").stdout
    again = finished.run("dvc", "repro").stdout
    assert stages_run(again) == []
    assert "up to date" in again
    assert scores(finished)["whole_slice"]["dice"] > 0.3
    top = [run for run in runs(finished) if "mlflow.parentRunId" not in run.data.tags]
    by_stage = {run.data.tags["mitoflow.stage"]: run for run in top}
    assert sorted(by_stage) == ["patch", "train", "tune", "validate"]
    trials = [run for run in runs(finished) if run.data.tags.get("mlflow.parentRunId") == by_stage["tune"].info.run_id]
    assert len(trials) == 3
    trained = by_stage["train"]
    for key in ("git_commit", "git_dirty", "data_md5", "patches_md5", "requirements_sha256"):
        assert trained.data.tags[f"mitoflow.lineage.{key}"], key
    assert {used.dataset.name for used in trained.inputs.dataset_inputs} == {"phantom"}
    assert trained.data.metrics["test_whole_slice_dice"] == pytest.approx(scores(finished)["whole_slice"]["dice"])
    curve = store(finished).get_metric_history(trained.info.run_id, "val_dice")
    assert [point.step for point in curve] == [0, 1, 2, 3]
    champion = store(finished).get_model_version_by_alias("mitoflow", "champion")
    assert champion.run_id == trained.info.run_id


def test_forced_again_it_gives_the_same_metrics_and_weights(finished: Project) -> None:
    before, metrics = json.dumps(_outputs(finished)), scores(finished)
    printed = finished.run("dvc", "repro", "-f").stdout
    assert stages_run(printed) == STAGES
    assert json.dumps(_outputs(finished)) == before
    assert scores(finished) == metrics
    # The same model is no better than itself: the champion stays, and the version says why.
    versions = sorted(store(finished).search_model_versions("name = 'mitoflow'"), key=lambda v: int(v.version))
    assert len(versions) == 2
    assert "not above zero" in versions[1].description
    assert store(finished).get_model_version_by_alias("mitoflow", "champion").version == versions[0].version


def _outputs(project: Project) -> dict[str, str]:
    """Return DVC's hash of every output but the report, which tells the verdict."""
    with Repo(project.folder) as repo:
        outs = {str(out): out.hash_info.value for stage in repo.index.stages for out in stage.outs}
    return {name: digest for name, digest in outs.items() if not name.endswith("evaluate/report.html")}


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
    assert _outputs(fresh) == _outputs(Project(finished_project))
    found = [run for run in runs(fresh) if run.data.tags["mitoflow.stage"] == stage]
    whole = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.status for run in whole] == ["FINISHED"]
    if stage == "train":
        curve = store(fresh).get_metric_history(whole[0].info.run_id, "val_dice")
        assert [point.step for point in curve] == [0, 1, 2, 3]
    else:
        assert {run.info.status for run in found} <= {"FINISHED", "KILLED"}
        assert sum(run.info.status == "FINISHED" for run in found) == 1 + 3


# Changing a key makes these stages run by themselves; those after them run where what they read has changed.
KEYS = {
    "data.name": [],
    "data.mask_rule": ["validate"],
    "validate.near_duplicate": ["validate"],
    "patch.size": ["patch"],
    "patch.step": ["patch"],
    "patch.validation_fraction": ["patch"],
    "patch.gap": ["patch"],
    "tune.trials": ["tune"],
    "tune.epochs": ["tune"],
    "tune.patches_per_epoch": ["tune"],
    "tune.seed": ["tune"],
    "tune.learning_rate.low": ["tune"],
    "tune.learning_rate.high": ["tune"],
    "tune.depth.low": ["tune"],
    "tune.depth.high": ["tune"],
    "tune.augment_strength.low": ["tune"],
    "tune.augment_strength.high": ["tune"],
    "train.learning_rate": ["train"],
    "train.depth": ["train"],
    "train.augment_strength": ["train"],
    "train.base_width": ["tune", "train"],
    "train.loss": ["tune", "train"],
    "train.precision": ["tune", "train"],
    "train.batch_size": ["tune", "train"],
    "train.epochs": ["train"],
    "train.patches_per_epoch": ["train"],
    "train.patience": ["train"],
    "train.seed": ["train"],
    "evaluate.tile": ["evaluate"],
    "evaluate.overlap": ["evaluate"],
    "evaluate.resamples": ["evaluate"],
    "evaluate.block": ["evaluate"],
    "evaluate.seed": ["evaluate"],
}


def test_a_key_reruns_what_depends_on_it_and_nothing_else(finished: Project) -> None:
    from ruamel.yaml import YAML

    committed = finished.read("params.yaml")
    seen = {}
    for key in _leaves(YAML(typ="safe", pure=True).load(committed)):
        values = YAML(typ="safe", pure=True).load(committed)
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[last] = "changed"
        with (finished.folder / "params.yaml").open("w") as stream:
            YAML().dump(values, stream)
        with Repo(finished.folder) as repo:
            seen[key] = [name for name in STAGES if name in repo.status()]
    assert seen == KEYS


def _leaves(section: dict, prefix: str = "") -> list[str]:
    return [
        leaf
        for key, value in section.items()
        for leaf in (_leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"])
    ]


def test_changing_evaluation_runs_evaluation_alone(finished: Project) -> None:
    finished.set(evaluate__resamples="300")
    assert stages_run(finished.run("dvc", "repro").stdout) == ["evaluate"]


def test_experiments_in_a_copy_land_in_the_same_store(finished: Project) -> None:
    before = {run.info.run_id for run in runs(finished)}
    finished.run("dvc", "exp", "run", "--queue", "--name", "slower", "-S", "train.learning_rate=0.0005")
    finished.run("dvc", "exp", "run", "--run-all")
    new = [run for run in runs(finished) if run.info.run_id not in before]
    assert [run.data.params["recipe.learning_rate"] for run in new] == ["0.0005"]
    assert new[0].data.tags["mitoflow.lineage.dvc_experiment"] == "slower"
    assert new[0].info.artifact_uri.startswith(str(finished.folder / "mlruns"))
    assert len(store(finished).search_model_versions("name = 'mitoflow'")) == 2
    shown = json.loads(finished.run("dvc", "exp", "show", "--json").stdout)
    assert "slower" in json.dumps(shown)


def test_metrics_and_plots_work_as_a_dvc_user_expects(finished: Project) -> None:
    finished.set(train__learning_rate="0.0005")
    finished.run("dvc", "repro")
    changes = json.loads(finished.run("dvc", "metrics", "diff", "--json").stdout)
    changed = {name for by_file in changes["diff"].values() for name in by_file} if "diff" in changes else set()
    assert any("dice" in name for name in changed) or "reports/train/metrics.json" in json.dumps(changes)
    page = finished.run("dvc", "plots", "show", "--json").stdout
    for name in ("Dice by epoch", "loss by epoch", "precision-recall", "calibration", "Dice along z"):
        assert name in page, name


def test_mlflow_run_gives_the_same_as_dvc(finished: Project) -> None:
    finished.run("mlflow", "run", ".", "-e", "train", "-P", "learning_rate=0.0005", "--env-manager", "local")
    projects = _outputs(finished)["models/unet.keras"]
    finished.run("git", "checkout", "-q", ".")
    finished.run("dvc", "checkout", "-q")
    finished.set(train__learning_rate="0.0005")
    finished.run("dvc", "repro", "-f", "-s", "train")
    assert _outputs(finished)["models/unet.keras"] == projects


def test_a_clone_that_pulled_registers_without_running(finished: Project, tmp_path: Path) -> None:
    finished.run("dvc", "remote", "add", "-d", "shared", str(tmp_path / "remote"))
    finished.run("dvc", "push")
    finished.commit("Add a remote")
    clone = Project(tmp_path / "clone")
    finished.run("git", "clone", "-q", str(finished.folder), str(clone.folder))
    clone.run("dvc", "pull")
    assert stages_run(clone.run("dvc", "repro").stdout) == []
    assert "version 1" in clone.run("mitoflow", "register").stdout
    champion = store(clone).get_model_version_by_alias("mitoflow", "champion")
    assert champion.tags["mitoflow.lineage.data_md5"]
    table = clone.run("mitoflow", "models").stdout
    assert "champion" in table
    told = clone.run("mitoflow", "lineage", "models/unet.keras").stdout
    assert champion.tags["mitoflow.model_sha256"] in told

"""The pipeline as a user runs it: real dvc, git and MLflow on a small phantom."""

from __future__ import annotations

import csv
import json
import re

import pytest
from mlflow.entities import Run
from ruamel.yaml import YAML

from .conftest import STAGES, Project, outputs, runs, stages_run, store


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
    assert sorted(by_stage) == ["evaluate", "patch", "train", "tune", "validate"]
    trained, evaluated, trials = by_stage["train"], by_stage["evaluate"], children(finished, by_stage["tune"])
    assert len(trials) == 4
    for trial in trials:
        # The keys of a training, and so one plot of both.
        assert {key for key in trial.data.params if key.startswith("train.")} <= trained.data.params.keys()
        assert trial.data.params["train.base_width"] == "8"
        assert 0.0 < float(trial.data.params["train.learning_rate"]) < 0.1
        assert {"best_val_dice", "crops", "seconds", "val_dice", "val_loss"} <= trial.data.metrics.keys()
        assert next(iter(trial.data.metrics)) == "best_val_dice", "MLflow's comparison of runs opens on the objective"
    assert 0.0 < float(trained.data.params["train.learning_rate"]) < 0.1
    assert "best_val_dice" in trained.data.metrics
    pruned = [trial for trial in trials if "mitoflow.pruned" in trial.data.tags]
    assert [trial.data.metrics["crops"] for trial in pruned] == [24, 24]
    assert {trial.data.metrics["crops"] for trial in trials if trial not in pruned} == {24 + 48}
    longest = max(trial.data.metrics["best_val_dice"] for trial in trials if trial not in pruned)
    assert json.loads(finished.read("reports/tune/metrics.json")) == {"study_val_dice": longest, "trials": 4}
    assert evaluated.data.tags["mitoflow.training_run"] == trained.info.run_id
    for run in (trained, evaluated):
        for key in ("git_commit", "git_dirty", "data_md5", "patches_md5", "requirements_sha256"):
            assert run.data.tags[f"mitoflow.lineage.{key}"], key
    for run in (trained, by_stage["tune"], *trials):
        assert datasets(run).keys() == {"training", "validation"}
        assert datasets(run) == datasets(trained)
    assert datasets(evaluated).keys() == {"test"}
    assert evaluated.data.metrics["test/whole_slice/dice"] == pytest.approx(scores(finished)["whole_slice"]["dice"])
    curve = store(finished).get_metric_history(trained.info.run_id, "val_dice")
    assert [point.step for point in curve] == [0, 1, 2, 3]
    champion = store(finished).get_model_version_by_alias("mitoflow", "champion")
    assert champion.run_id == evaluated.info.run_id


def children(project: Project, parent: Run) -> list[Run]:
    return [run for run in runs(project) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


def datasets(run: Run) -> dict[str, str]:
    """Return name and digest of what a run read, by what for."""
    return {
        tag.value: f"{used.dataset.name} {used.dataset.digest}"
        for used in run.inputs.dataset_inputs
        for tag in used.tags
    }


def test_forced_again_it_gives_the_same_metrics_and_weights(finished: Project) -> None:
    before, metrics = json.dumps(outputs(finished)), scores(finished)
    printed = finished.run("dvc", "repro", "-f").stdout
    assert stages_run(printed) == STAGES
    assert json.dumps(outputs(finished)) == before
    assert scores(finished) == metrics
    # The same model is no better than itself: the champion stays, and the version says why.
    versions = sorted(store(finished).search_model_versions("name = 'mitoflow'"), key=lambda v: int(v.version))
    assert len(versions) == 2
    assert "not above zero" in versions[1].description
    assert store(finished).get_model_version_by_alias("mitoflow", "champion").version == versions[0].version


def test_a_training_starts_from_the_champion_and_says_so(finished: Project) -> None:
    facts = YAML(typ="safe", pure=True).load(finished.read("models/unet.yaml"))
    assert facts["initial"] == {}
    before = json.loads(finished.read("reports/train/metrics.json"))["best_val_dice"]
    champion = store(finished).get_model_version_by_alias("mitoflow", "champion")
    depth = str(facts["recipe"]["depth"])
    finished.set(train__init_from="champion", train__depth=depth, train__epochs="1", train__learning_rate="0.00001")
    finished.set(tune__trials="2", tune__budget="16")
    assert stages_run(finished.run("dvc", "repro", "train").stdout) == ["tune", "train"]
    tuned = YAML(typ="safe", pure=True).load(finished.read("models/unet.yaml"))
    assert tuned["initial"] == {
        "name": "mitoflow",
        "version": str(champion.version),
        "sha256": champion.tags["mitoflow.model_sha256"],
    }
    assert "initial.sha256" in finished.run("mitoflow", "lineage", "models/unet.keras").stdout
    # The steps are too small to forget what the champion knew.
    assert json.loads(finished.read("reports/train/metrics.json"))["best_val_dice"] > before - 0.1


def trials(project: Project) -> int:
    return sum(run.info.run_name.startswith("trial") for run in runs(project))


def test_a_study_is_searched_again_where_it_is_forced_and_for_a_value_that_is_given(finished: Project) -> None:
    table, before = finished.read("reports/tune/trials.csv"), trials(finished)
    assert stages_run(finished.run("dvc", "repro", "--single-item", "--force", "tune").stdout) == ["tune"]
    assert finished.read("reports/tune/trials.csv") == table
    assert trials(finished) == 2 * before
    finished.set(train__depth="1")
    assert stages_run(finished.run("dvc", "repro", "tune").stdout) == ["tune"]
    rows = list(csv.DictReader(finished.read("reports/tune/trials.csv").splitlines()))
    assert {row["depth"] for row in rows} == {"1"}, "the trials have it, too"
    assert sorted(YAML(typ="safe").load(finished.read("reports/tune/best_params.yaml"))) == [
        "augment_strength",
        "learning_rate",
    ]


def test_a_training_that_ended_serves_another_name_of_the_data(finished: Project) -> None:
    before = [run.info.run_id for run in runs(finished)]
    model = finished.run("md5sum", "models/unet.keras").stdout
    finished.set(data__name="cortex")
    assert stages_run(finished.run("dvc", "repro", "train").stdout) == ["train"]
    assert finished.run("md5sum", "models/unet.keras").stdout == model
    assert [run.info.run_id for run in runs(finished)] == before
    (trained,) = (run for run in runs(finished) if run.data.tags["mitoflow.stage"] == "train")
    assert "cortex" in {used.dataset.name for used in trained.inputs.dataset_inputs}


def test_changing_evaluation_runs_evaluation_alone(finished: Project) -> None:
    finished.set(evaluate__bootstrap_resamples="300")
    assert stages_run(finished.run("dvc", "repro").stdout) == ["evaluate"]
    assert len(store(finished).search_model_versions("name = 'mitoflow'")) == 2
    for version, resamples in (("1", "200"), ("2", "300")):
        shown = dict(
            line.split(maxsplit=1) for line in finished.run("mitoflow", "lineage", version).stdout.splitlines()
        )
        assert shown["params.evaluate.bootstrap_resamples"] == resamples
    compared = finished.run("mitoflow", "compare", "1", "2").stdout
    assert re.search(r"^evaluate.bootstrap_resamples +200 +300$", compared, re.MULTILINE)

"""The pipeline as a user runs it: real dvc, git and MLflow on a small phantom."""

from __future__ import annotations

import json

import pytest
from dvc.repo import Repo
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
    "train.init_from": ["train"],
    "train.learning_rate": ["train"],
    "train.depth": ["train"],
    "train.augment_strength": ["train"],
    "train.affine_fraction": ["tune", "train"],
    "train.intensity_strength": ["tune", "train"],
    "train.foreground_fraction": ["tune", "train"],
    "train.orthoplanes": ["validate", "tune", "train"],
    "train.context": ["tune", "train"],
    "train.context_step": ["tune", "train"],
    "train.context_dropout": ["tune", "train"],
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
    "evaluate.tta": ["evaluate"],
    "evaluate.orthoplanes": ["evaluate"],
    "evaluate.medians": ["evaluate"],
    "evaluate.bootstrap_resamples": ["evaluate"],
    "evaluate.bootstrap_block": ["evaluate"],
    "evaluate.seed": ["evaluate"],
    "machine.workers": [],
    "machine.strategy": [],
}


def test_a_key_reruns_what_depends_on_it_and_nothing_else(finished: Project) -> None:
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
            changed = {address.rpartition(":")[2] for address in repo.status()}
        seen[key] = [name for name in STAGES if name in changed]
    assert seen == KEYS


def _leaves(section: dict, prefix: str = "") -> list[str]:
    return [
        leaf
        for key, value in section.items()
        for leaf in (_leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"])
    ]


def test_a_training_starts_from_the_champion_and_says_so(finished: Project) -> None:
    facts = YAML(typ="safe", pure=True).load(finished.read("models/unet.yaml"))
    assert facts["initial"] == {}
    before = json.loads(finished.read("reports/train/metrics.json"))["best_val_dice"]
    champion = store(finished).get_model_version_by_alias("mitoflow", "champion")
    depth = str(facts["recipe"]["depth"])
    finished.set(train__init_from="champion", train__depth=depth, train__epochs="1", train__learning_rate="0.00001")
    assert stages_run(finished.run("dvc", "repro", "train").stdout) == ["train"]
    tuned = YAML(typ="safe", pure=True).load(finished.read("models/unet.yaml"))
    assert tuned["initial"] == {
        "name": "mitoflow",
        "version": str(champion.version),
        "sha256": champion.tags["mitoflow.model_sha256"],
    }
    assert "initial.sha256" in finished.run("mitoflow", "lineage", "models/unet.keras").stdout
    # The steps are too small to forget what the champion knew.
    assert json.loads(finished.read("reports/train/metrics.json"))["best_val_dice"] > before - 0.1


def test_changing_evaluation_runs_evaluation_alone(finished: Project) -> None:
    finished.set(evaluate__bootstrap_resamples="300")
    assert stages_run(finished.run("dvc", "repro").stdout) == ["evaluate"]

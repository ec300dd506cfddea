"""An evaluation is a run of its own: what it found, and by which parameters and code, stays with its version."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.entities import LoggedModel, Run
from PIL import Image

from mitoflow.core import provenance
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference.settings import Settings
from mitoflow.models import unet
from mitoflow.tracking import lineage, model_comparison, registration, registry, runs, store

pytestmark = pytest.mark.slow

PICTURE = io.BytesIO()
Image.fromarray(np.zeros((8, 12, 3), np.uint8), "RGB").save(PICTURE, "PNG")
MODEL, SETTINGS = Path("unet.keras"), Path("inference.yaml")
TRAINED, LATER = ({"git_commit": commit * 40, "git_dirty": "false", "data_md5": "data"} for commit in "ab")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A training that was evaluated three times: with other parameters and code, and then as in the beginning."""
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_folder(folder, monkeypatch)
        unet.save_model(unet.build_unet(depth=1, base_width=1), MODEL)
        Settings(bit_depth=8, divisor=2, tile=64, overlap=16, threshold=0.5).write(SETTINGS)
        with runs.start("train", "train cortex: depth 1", made_from=TRAINED) as run:
            run.params({"train": {"seed": 1}, "evaluate": {"tta": 1}})
            run.dataset("phantom", "patches", "t" * 32, "training", {})
            run.metrics({"best_val_dice": 0.9})
            run.produced(MODEL)
        evaluate(9, 1, TRAINED)
        evaluate(8, 8, LATER)
        evaluate(9, 1, LATER)
        yield folder


def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_ROOT", *(name for name in os.environ if name.startswith("MLFLOW_"))):
        if name not in store.DEFAULTS:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)


@pytest.fixture
def here(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_folder(evaluated, monkeypatch)
    return evaluated


def evaluate(right: int, tta: int, made_from: Mapping[str, str]) -> None:
    counts = [[right, 1, 10 - right, 9]] * 4
    found = Evaluation(provenance.file_sha256(MODEL), "f" * 64, ["stack"] * 4, counts, block=2, resamples=20, seed=1)
    name = f"evaluate cortex: tta {tta}"
    with runs.start("evaluate", name, training=runs.producer(MODEL), made_from=made_from) as run:
        recipe = {"network": "unet_strided", "depth": 1}
        run.params({"train": recipe, "evaluate": {"tta": tta}, "data": {"name": "cortex/2+vnc"}})
        run.metrics({"test/dice": found.interval("dice").value, "best_val_dice": 0.9})
        run.dataset("phantom", "data/test", "e" * 32, "test", {})
        run.image("epfl+vnc: worst slice", PICTURE.getvalue())
        run.describe(found.headline)
        assert registration.register(run, found, MODEL, SETTINGS)


def all_runs(stage: str) -> list[Run]:
    client = store.client(store.uri())
    (experiment,) = client.search_experiments(filter_string="name = 'mitoflow'")
    return list(client.search_runs([experiment.experiment_id], f"tags.`mitoflow.stage` = '{stage}'"))


def test_each_version_has_the_facts_of_the_evaluation_that_made_it(here: Path) -> None:
    first, second = lineage.origin("1"), lineage.origin("2")
    assert (first["params.evaluate.tta"], second["params.evaluate.tta"]) == ("1", "8")
    assert (first["git_commit"], second["git_commit"]) == (TRAINED["git_commit"], LATER["git_commit"])
    assert first["run"] != second["run"]
    assert first["training_run"] == second["training_run"] == all_runs("train")[0].info.run_id
    assert "training_git_commit" not in first
    assert second["training_git_commit"] == TRAINED["git_commit"]
    for facts in (first, second):
        assert facts["dataset.training"] == "phantom " + "t" * 32
        assert facts["dataset.test"] == "phantom " + "e" * 32
    assert model_comparison.compare("1", "2", Path("none"), Path("none"), pictures=False).params == {
        "evaluate.tta": ("1", "8")
    }


def test_a_run_has_the_figures_of_its_own_evaluation(here: Path) -> None:
    (training,) = all_runs("train")
    assert training.data.metrics == {"best_val_dice": 0.9}
    client = store.client(store.uri())
    for row in registry.models():
        run = client.get_run(row.run_id)
        assert row.dice is not None
        assert run.data.metrics == {"test/dice": row.dice.value, "best_val_dice": 0.9}
        assert len(client.get_metric_history(row.run_id, "test/dice")) == 1
        assert run.data.tags["mitoflow.training_run"] == training.info.run_id
        # MLflow's table of runs hides those below another one, and with them their scores.
        assert "mlflow.parentRunId" not in run.data.tags
        assert (run.info.status, training.info.status) == ("FINISHED", "FINISHED")


def test_an_evaluation_that_finds_the_same_again_makes_no_version(here: Path) -> None:
    assert [row.version for row in registry.models()] == [1, 2]
    assert len(all_runs("evaluate")) == 3
    assert lineage.origin("1")["git_commit"] == TRAINED["git_commit"]


@pytest.mark.slow
def test_what_was_evaluated_before_its_changes_were_committed_becomes_a_version_again_after(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_folder(tmp_path, monkeypatch)
    for file in (MODEL, SETTINGS):
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(evaluated / file, file)
    with runs.start("train", "train cortex", made_from=TRAINED) as run:
        run.produced(MODEL)
    for dirty in ("true", "true", "false", "true", "false"):
        evaluate(9, 1, {**LATER, "git_dirty": dirty})
    assert [lineage.origin(str(row.version))["git_dirty"] for row in registry.models()] == ["true", "false"]


def test_the_runs_of_training_and_evaluation_name_its_versions(here: Path) -> None:
    assert registry.find_version(lineage.origin("1")["run"]) == 1
    assert registry.find_version(lineage.origin("1")["training_run"]) == 2


def test_the_logged_model_has_parameters_scores_and_data_of_its_own(here: Path) -> None:
    for row, tta in zip(registry.models(), ("1", "8"), strict=True):
        logged = logged_model(row.run_id)
        assert row.dice is not None
        assert logged.name == "unet_strided-cortex_2+vnc"
        assert logged.params["evaluate.tta"] == tta
        (score,) = logged.metrics
        assert (score.key, score.value) == ("test/dice", row.dice.value)
        assert (score.dataset_name, score.dataset_digest) == ("phantom", "e" * 32)
        assert f'"version": "{row.version}"' in logged.tags["mlflow.modelVersions"]


def test_evaluations_are_named_by_their_training_their_values_and_their_version(here: Path) -> None:
    names = sorted(run.info.run_name for run in all_runs("evaluate"))
    versions = ["tta 1, version 1", "tta 1, version 1", "tta 8, version 2"]  # the third found what the first had found
    assert names == [f"evaluate cortex: depth 1, {version}" for version in versions]


def test_a_version_and_its_logged_model_say_what_they_are(here: Path) -> None:
    client = store.client(store.uri())
    for row in registry.models():
        assert row.verdict
        version = client.get_model_version("mitoflow", str(row.version))
        verdict, scores, what, predict, python, load = version.description.split("\n\n")
        assert verdict == f"{'Promoted' if row.verdict.promoted else 'Not promoted'}: {row.verdict.reason}."
        assert scores == f"Dice {row.dice}, IoU {row.iou}"
        assert "`unet_strided` of depth 1, trained on cortex/2 and vnc from random weights." in what
        assert predict == f"    mitoflow predict STACK MASKS --model models:/mitoflow/{row.version}"
        assert "in Python" in python
        slices = np.zeros((2, 64, 64), np.uint8)
        known = {"mlflow": mlflow, "slices": slices}
        exec(load.strip(), known)
        assert known["masks"].shape == slices.shape
        assert logged_model(row.run_id).tags["mlflow.note.content"] == version.description


def test_a_later_verdict_changes_the_description(here: Path) -> None:
    registry.promote(2, force=True, reason="a trial")
    client = store.client(store.uri())
    described = client.get_model_version("mitoflow", "2").description
    assert described.startswith("Promoted: promoted by hand with --force; a trial; the gate said:")
    row = next(row for row in registry.models() if row.version == 2)
    assert logged_model(row.run_id).tags["mlflow.note.content"] == described


def test_the_tags_of_a_version_begin_with_its_scores(here: Path) -> None:
    for row in registry.models():
        tags = store.client(store.uri()).get_model_version("mitoflow", str(row.version)).tags
        assert row.dice is not None
        assert next(iter(tags.items())) == ("mitoflow.dice", str(row.dice.value))
        assert "mitoflow.lineage.git_commit" in tags


def logged_model(run_id: str) -> LoggedModel:
    client = store.client(store.uri())
    (output,) = client.get_run(run_id).outputs.model_outputs
    return client.get_logged_model(output.model_id)


def test_pictures_have_the_names_by_which_mlflow_compares_them(here: Path) -> None:
    client = store.client(store.uri())
    for row in registry.models():
        files = [file.path for file in client.list_artifacts(row.run_id, "images")]
        assert [file.partition("+step+0+")[0] for file in files] == ["images/epfl_vnc_ worst slice"] * 2
        run = client.get_run(row.run_id)
        assert run.data.tags["mlflow.loggedImages"] == "True"
        described, link = run.data.tags["mlflow.note.content"].split("\n\n")
        assert described.startswith(f"Dice {row.dice}")
        (training,) = all_runs("train")
        page = f"#/experiments/{training.info.experiment_id}/runs/{training.info.run_id}?workflowType=machine_learning"
        assert link == f"Training: [{training.info.run_name}]({page})"


def test_the_experiment_says_that_it_is_one_of_model_training(here: Path) -> None:
    (experiment,) = store.client(store.uri()).search_experiments(filter_string="name = 'mitoflow'")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "best_val_dice"
    assert "Mitochondria" in experiment.tags["mlflow.note.content"]


def test_an_experiment_that_was_made_by_hand_gets_what_it_lacks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = store.client(store.uri())
    client.create_experiment("by hand", tags={"mlflow.note.content": "Mine"})
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by hand")
    with runs.start("train", "unet"):
        pass
    tags = client.get_experiment_by_name("by hand").tags
    assert (tags["mlflow.experimentKind"], tags["mlflow.note.content"]) == ("custom_model_development", "Mine")

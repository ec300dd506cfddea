"""Commands on a finished pipeline: experiments, comparisons, MLflow projects, clones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from mlflow.entities import Run
from ruamel.yaml import YAML

from mitoflow.config import presets
from tests.parts import scheduling, started

from .conftest import Project, outputs, runs, stages_run, store

#: For tests in which a study has to run, whatever it finds.
SHORT_STUDY = ("tune.trials=2", "tune.budget=16")


def stages_in(project: Project) -> list[Run]:
    """Return the runs of stages, without those of trials."""
    return [run for run in runs(project) if not run.info.run_name.startswith("trial ")]


def test_experiments_in_a_copy_land_in_the_same_store(finished: Project) -> None:
    before = {run.info.run_id for run in runs(finished)}
    changes = [each for value in ("train.learning_rate=0.0005", *SHORT_STUDY) for each in ("-S", value)]
    finished.run("dvc", "exp", "run", "--queue", "--name", "slower", *changes)
    finished.run("dvc", "exp", "run", "--run-all")
    new = [run for run in stages_in(finished) if run.info.run_id not in before]
    stages = {run.data.tags["mitoflow.stage"]: run for run in new}
    assert stages.keys() == {"tune", "train", "evaluate"}  # the study searches the other values with this one
    assert stages["train"].data.params["train.learning_rate"] == "0.0005"
    for run in new:
        assert run.data.tags["mitoflow.lineage.dvc_experiment"] == "slower"
        assert run.info.artifact_uri.startswith((finished.folder / "mlruns").as_uri())
    assert len(store(finished).search_model_versions("name = 'mitoflow'")) == 2
    shown = json.loads(finished.run("dvc", "exp", "show", "--json").stdout)
    assert "slower" in json.dumps(shown)
    compared = finished.run("mitoflow", "compare", "main", "slower", "--html", "compared.html").stdout
    assert re.search(r"^train.learning_rate +0\.\d+ +0.0005$", compared, re.MULTILINE)
    assert re.search(r"^tuned +learning_rate, depth, .* +depth, augment_strength$", compared, re.MULTILINE)
    assert re.search(r"^dice .* [+-]0\.\d{4} \[", compared, re.MULTILINE)
    assert "data:image/png;base64" in finished.read("compared.html")


def test_a_version_of_an_uncommitted_experiment_is_made_again(fresh: Project, tmp_path: Path) -> None:
    stage = fresh.folder / "src/mitoflow/stages/train.py"
    recipe = "settings.train.recipe(BEST_PARAMS)"
    stage.write_text(stage.read_text().replace(recipe, f"{recipe}.model_copy(update={{'patches_per_epoch': 32}})"))
    values = ("learning_rate=0.002", "depth=1", "augment_strength=0.5", "epochs=2")
    changes = [argument for value in values for argument in ("-S", f"train.{value}")]
    fresh.run("dvc", "exp", "run", *changes, PYTHONPATH="src")
    made = outputs(fresh)["models/unet.keras"]
    fresh.run("git", "checkout", "-q", ".")
    before = fresh.run("git", "status", "--porcelain").stdout

    of_runs = [file for file in (fresh.folder / "mlruns").rglob("*.patch") if "models" not in file.parts]
    assert of_runs
    for kept in of_runs:  # those of the model remain, when `mlflow gc` removes the runs
        kept.unlink()
    again = Project(tmp_path / "again")
    printed = fresh.run("mitoflow", "checkout", "1", str(again.folder)).stdout
    assert "version 1" in printed
    assert "with the changes that were not committed" in printed
    assert fresh.run("git", "status", "--porcelain").stdout == before
    again.run("dvc", "repro", "train", PYTHONPATH="src")
    assert outputs(again)["models/unet.keras"] == made  # from the cache of runs: code, data and parameters are the same
    assert stages_run(again.run("dvc", "repro", "-f", "-s", "train", PYTHONPATH="src").stdout) == ["train"]
    assert outputs(again)["models/unet.keras"] == made

    refused = fresh.run("mitoflow", "checkout", "1", str(again.folder), check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "again: found a file or folder of that name, expected a new folder" in refused.stderr
    for kept in (fresh.folder / "mlruns").rglob("*.patch"):
        kept.unlink()
    refused = fresh.run("mitoflow", "checkout", "1", str(tmp_path / "third"), check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "expected the changes with which it was made; restore the artifacts of the model" in refused.stderr
    assert not (tmp_path / "third").exists()


def test_a_version_that_started_from_the_champion_is_made_again(finished: Project, tmp_path: Path) -> None:
    recipe = YAML(typ="safe", pure=True).load(finished.read("models/unet.yaml"))["recipe"]
    finished.set(train__init_from="champion", train__depth=str(recipe["depth"]), train__epochs="1")
    finished.set(train__patches_per_epoch="32", train__learning_rate="0.002", train__augment_strength="0.5")
    finished.run("dvc", "repro")
    made = outputs(finished)["models/unet.keras"]
    finished.run("mitoflow", "promote", "2", "--force", "--reason", "so that another one is champion")

    again = Project(tmp_path / "again")
    assert "initial/version-1/unet.keras" in finished.run("mitoflow", "checkout", "2", str(again.folder)).stdout
    shared = f"sqlite:///{finished.folder}/mlflow.db"  # whose champion is version 2
    again.run("dvc", "repro", "--no-run-cache", "train", MLFLOW_TRACKING_URI=shared)
    assert outputs(again)["models/unet.keras"] == made
    first = store(finished).get_model_version("mitoflow", "1")
    initial = YAML(typ="safe", pure=True).load(again.read("models/unet.yaml"))["initial"]
    assert initial == {"name": "initial/version-1/unet.keras", "sha256": first.tags["mitoflow.model_sha256"]}

    store(finished).delete_model_version("mitoflow", "1")
    refused = finished.run("mitoflow", "checkout", "2", str(tmp_path / "third"), check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "version 2, trained from version 1: found no such version" in refused.stderr
    assert not (tmp_path / "third").exists()


def test_metrics_and_plots_work_as_a_dvc_user_expects(finished: Project) -> None:
    finished.set(train__learning_rate="0.0005", train__depth="1", train__augment_strength="0.5")
    finished.run("dvc", "repro")
    changes = json.loads(finished.run("dvc", "metrics", "diff", "--json").stdout)
    changed = {name for by_file in changes["diff"].values() for name in by_file} if "diff" in changes else set()
    assert any("dice" in name for name in changed) or "reports/train/metrics.json" in json.dumps(changes)
    page = finished.run("dvc", "plots", "show", "--json").stdout
    for name in ("Dice by epoch", "loss by epoch", "precision-recall", "calibration", "Dice along z"):
        assert name in page, name


def test_mlflow_run_gives_the_same_as_dvc(finished: Project) -> None:
    presets.change(finished.folder / "params.yaml", dict(value.split("=") for value in SHORT_STUDY))
    finished.commit("A shorter study")
    before = {run.info.run_id for run in runs(finished)}
    finished.run("mlflow", "run", ".", "-e", "train", "-P", "learning_rate=0.0005", "--env-manager", "local")
    tuned, new = sorted(
        (run for run in stages_in(finished) if run.info.run_id not in before), key=lambda run: run.info.start_time
    )
    assert tuned.data.tags["mitoflow.stage"] == "tune"  # of the other values, with this one
    assert new.info.run_name == "train phantom: learning_rate 0.0005"
    projects = outputs(finished)["models/unet.keras"]
    finished.run("git", "checkout", "-q", ".")
    finished.run("dvc", "checkout", "-q")
    finished.set(train__learning_rate="0.0005")
    finished.run("dvc", "repro", "-f", "train")
    assert outputs(finished)["models/unet.keras"] == projects


def test_mlflow_run_of_a_git_address_takes_the_data_from_the_remote(fresh: Project, tmp_path: Path) -> None:
    fresh.run("dvc", "remote", "add", "-d", "shared", str(tmp_path / "remote"))
    fresh.run("dvc", "push")
    stage = fresh.folder / "src/mitoflow/stages/train.py"  # the code of the address counts, not the installed one
    stage.write_text(f"{stage.read_text()}\nprint('the code of the clone')\n")
    fresh.commit("Add a remote")
    elsewhere = Project(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    address = "https://git.example/mitoflow"
    rewritten = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{fresh.folder}.insteadOf"}
    values = ("learning_rate=0.002", "depth=1", "augment_strength=0.5", "epochs=1")
    given = [argument for value in values for argument in ("-P", value)]
    command = ("mlflow", "run", address, "-e", "train", *given, "--env-manager", "local")
    ran = elsewhere.run(*command, GIT_CONFIG_VALUE_0=address, **rewritten)
    assert "the code of the clone" in ran.stdout
    client, trained = store(elsewhere), "tags.`mitoflow.stage` = 'train'"
    (run,) = client.search_runs([client.get_experiment_by_name("mitoflow").experiment_id], trained)
    assert (run.info.status, run.data.params["train.epochs"]) == ("FINISHED", "1")
    assert run.info.artifact_uri.startswith((elsewhere.folder / "mlruns").as_uri())


def test_a_clone_that_pulled_registers_without_running(finished: Project, tmp_path: Path) -> None:
    finished.run("dvc", "remote", "add", "-d", "shared", str(tmp_path / "remote"))
    finished.run("dvc", "push")
    finished.commit("Add a remote")
    clone = Project(tmp_path / "clone")
    finished.run("git", "clone", "-q", str(finished.folder), str(clone.folder))
    clone.run("dvc", "pull")
    assert stages_run(clone.run("dvc", "repro").stdout) == []
    before = clone.read("params.yaml")
    clone.set(evaluate__overlap="32")
    refused = clone.run("mitoflow", "register", check=False)
    assert refused.returncode == 2
    assert "params.yaml: evaluate.overlap: found 32, expected " in refused.stderr
    (clone.folder / "params.yaml").write_text(before)
    assert "version 1" in clone.run("mitoflow", "register").stdout
    champion = store(clone).get_model_version_by_alias("mitoflow", "champion")
    assert champion.tags["mitoflow.lineage.data_md5"]
    assert "mitoflow.lineage.threads" not in champion.tags  # of the machine that trained it, which is not known here
    table = clone.run("mitoflow", "models").stdout
    assert "champion" in table
    lineage = clone.run("mitoflow", "lineage", "models/unet.keras").stdout
    assert champion.tags["mitoflow.model_sha256"] in lineage


def test_a_study_is_fitted_by_other_processes_and_machines(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = finished.run("mitoflow", "tune", "--dask", "nonsense://x", check=False)
    assert refused.returncode == 2
    assert "--dask: found nonsense://x, where no scheduler with a worker answers" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1

    before = {run.info.run_id for run in runs(finished)}
    finished.set(machine__workers="2", tune__trials="5", tune__budget="40")
    assert stages_run(finished.run("dvc", "repro", "tune").stdout) == ["tune"]
    finished.set(machine__workers="1", tune__trials="2")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    worker = ("--nthreads", "4", "--no-dashboard", "--host", "127.0.0.1")
    with scheduling() as (_, address), started("worker", address, *worker):
        assert stages_run(finished.run("mitoflow", "tune", "--dask", address).stdout) == ["tune"]
    assert json.loads(finished.read("reports/tune/metrics.json"))["trials"] == 2
    assert "up to date" in finished.run("dvc", "status", "tune").stdout
    new = [run for run in runs(finished) if run.info.run_id not in before]
    assert {run.info.status for run in new} == {"FINISHED"}
    of_studies = [run.data.tags.get("mlflow.parentRunId") for run in new]
    assert sorted(of_studies.count(study) for study in set(of_studies) - {None}) == [2, 5]


def test_whether_the_study_pays_is_measured_once(fresh: Project) -> None:
    fresh.set(tune__trials="2", train__epochs="1", train__patches_per_epoch="16")
    command = ["python", "-m", "benchmarks", "tuning", ".", "--seeds", "1", "--configurations", "2", "--budget", "32"]
    tables = fresh.run(*command, "--into", "found.jsonl").stdout
    for part in ("| phantom | defaults | 0 |", "| phantom | tuned | 32 |", "| phantom | random | 32 |"):
        assert part in tables
    lines = fresh.read("found.jsonl").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["kind"] for row in rows] == ["defaults", "tuned", "random", "configuration", "configuration"]
    assert rows[0]["values"] == {"learning_rate": 0.002, "depth": 2, "augment_strength": 0.7}
    assert all(0 <= row["dice_low"] <= row["dice"] <= row["dice_high"] <= 1 for row in rows[:3])
    head = "| set | values |"
    assert fresh.run(*command, "--into", "found.jsonl").stdout.partition(head)[2] == tables.partition(head)[2] != ""
    assert fresh.read("found.jsonl").splitlines() == lines

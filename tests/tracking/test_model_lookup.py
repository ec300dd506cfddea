"""Names of models, in a real registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from fastapi.testclient import TestClient
from mlflow import pyfunc

from mitoflow.apps import serving
from mitoflow.core import files, provenance
from mitoflow.data import fingerprint
from mitoflow.errors import InputError
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference.settings import Settings
from mitoflow.models import unet
from mitoflow.tracking import model_lookup, pretrained, registration, registry, runs, store

SLICES = np.random.default_rng(0).integers(0, 256, (1, 64, 64), np.uint8)
MODEL = Path("models/unet.keras")
REPORTS = Path("reports/evaluate")
SHIPPED = pretrained.PLACES


def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_ROOT", *(name for name in os.environ if name.startswith("MLFLOW_"))):
        if name not in store.DEFAULTS:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)


@pytest.fixture(autouse=True)
def no_shipped_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the models that ship with mitoflow."""
    monkeypatch.setattr(pretrained, "PLACES", (pretrained.HERE,))


def register_champion(sets: str) -> None:
    """Write what the pipeline writes: a model with settings and fingerprint, and a version of it, the champion."""
    unet.save_model(unet.build_unet(depth=1, base_width=2), MODEL)
    Settings(bit_depth=8, divisor=2, tile=64, overlap=16, threshold=0.4).write(REPORTS / "inference.yaml")
    fingerprint.measure([SLICES[0] / 255], {"x": 5.0}).write(REPORTS / "domain.yaml")
    evaluation = Evaluation(
        provenance.file_sha256(MODEL), "a" * 64, ["stack"] * 9, [[9, 1, 1, 9]] * 9, block=3, resamples=20, seed=1
    )
    evaluation.write(REPORTS / "evaluation.json")
    with runs.start("train", "unet") as run:
        run.params({"data": {"name": sets}})
        run.produced(MODEL)
        verdict = registration.register(run, evaluation, MODEL, REPORTS / "inference.yaml")
    assert verdict is not None
    assert verdict.promoted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a champion."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_folder(folder, monkeypatch)
        register_champion("cortex")
        yield folder
    mlflow.set_tracking_uri(None)


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_folder(made, monkeypatch)
    return made


@pytest.mark.slow
def test_every_name_of_a_version_finds_it(here: Path) -> None:
    run = registry.models()[0].run_id
    names = [None, "1", "models:/mitoflow/1", "models:/mitoflow@champion", run, f"runs:/{run}", f"runs:/{run}/model"]
    wanted = model_lookup.find(str(MODEL)).predictor.probabilities(SLICES)
    for name in names:
        model = model_lookup.find(name)
        assert model.name == "mitoflow version 1"
        assert model.predictor.settings.threshold == 0.4
        assert model.domain == fingerprint.Fingerprint.read(REPORTS / "domain.yaml")
        assert (model.lineage["model"], model.lineage["version"], model.lineage["run"]) == ("mitoflow", "1", run)
        assert model.lineage["model_sha256"] == provenance.file_sha256(MODEL)
        assert "platform" not in model.lineage
        np.testing.assert_array_equal(model.predictor.probabilities(SLICES), wanted)


@pytest.mark.slow
def test_a_version_is_found_from_a_project_with_another_model(here: Path) -> None:
    settings = Path("params.yaml")
    settings.write_text("registry: {model: mitoflow-liver}\n")
    try:
        for name in ("models:/mitoflow/1", "models:/mitoflow@champion"):
            model = model_lookup.find(name)
            assert model.name == "mitoflow version 1"
            assert (model.lineage["model"], model.lineage["version"]) == ("mitoflow", "1")
        with pytest.raises(InputError, match="a version of model mitoflow-liver"):
            model_lookup.find("1")
    finally:
        settings.unlink()


@pytest.mark.slow
def test_the_default_is_the_first_of_the_names(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("epfl", "general", "another"):
        (tmp_path / name).mkdir()
        shutil.copy(MODEL, tmp_path / name)
    monkeypatch.setattr(pretrained, "PLACES", (tmp_path,))
    shipped = ["pretrained:general", "pretrained:epfl", "pretrained:another"]
    assert model_lookup.names() == ["models:/mitoflow@champion", "models:/mitoflow/1", *shipped]


@pytest.mark.slow
@pytest.mark.parametrize(("sets", "default"), [("phantom+phantoms", "general"), ("phantom+cortex", "champion")])
def test_a_champion_of_drawn_images_alone_is_not_the_default(
    sets: str, default: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_folder(tmp_path, monkeypatch)
    register_champion(sets)
    monkeypatch.setattr(pretrained, "PLACES", SHIPPED)
    found, first = model_lookup.find().name, model_lookup.names()[0]
    champion = "mitoflow version 1"
    assert model_lookup.find("champion").name == champion
    if default == "champion":
        assert (found, first) == (champion, "models:/mitoflow@champion")
        assert not caplog.messages
    else:
        assert found == first == "pretrained:general"
        assert f"{champion}, the champion, was trained on drawn images alone" in caplog.messages[0]


@pytest.mark.slow
def test_a_version_is_served_as_mlflow_loads_it(here: Path) -> None:
    model = model_lookup.find("1")
    mlflow.set_tracking_uri(store.uri())
    with TestClient(serving.build(model, 2**20)) as client:
        served = client.post("/invocations", json={"inputs": SLICES.tolist()}).json()
    assert served["model"] == "mitoflow version 1"
    np.testing.assert_array_equal(served["predictions"], pyfunc.load_model("models:/mitoflow/1").predict(SLICES))
    np.testing.assert_array_equal(served["predictions"], model.predictor.masks(SLICES))


def test_a_file_of_the_pipeline_finds_its_settings_and_its_run(here: Path) -> None:
    model = model_lookup.find("models/unet.keras")
    assert model.predictor.settings.threshold == 0.4
    assert model.lineage["model"] == "models/unet.keras"
    assert model.lineage["run"] == registry.models()[0].run_id


@pytest.mark.slow
def test_a_model_in_a_file_is_found_without_mlflow(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / MODEL, tmp_path)
    shutil.copy(made / REPORTS / "inference.yaml", tmp_path)
    code = (
        "import sys; from mitoflow.tracking import model_lookup; model_lookup.find('unet.keras'); print(*sys.modules)"
    )
    without = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    imported = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=without, capture_output=True, check=True)
    assert b"mitoflow.tracking.model_lookup" in imported.stdout.split()
    assert b"mlflow" not in imported.stdout.split()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("7", "version 7: found no such version"),
        ("models:/mitoflow@best", "--model: found models:/mitoflow@best, which names no version"),
        ("models:/other/1", "version 1: found no such version, expected a version of model other"),
        ("models:/other@champion", "--model: found models:/other@champion, which names no version"),
        ("0" * 32, "run 0+: found no version"),
        ("pretrained:none", "pretrained model: found none"),
        (
            "best",
            "--model: found best, which names no version, expected models:/NAME@champion, a version, a run",
        ),
        ("mlflow.db", "--model: found mlflow.db, expected models:/NAME@champion, a version, a run, a .keras file"),
    ],
)
def test_unknown_names_are_one_line(here: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_lookup.find(name)


def test_a_version_that_others_registered_is_refused(here: Path) -> None:
    client = store.client(store.uri())
    with runs.start("other", "other") as run:
        run.metrics({"dice": 1.0})
    (other,) = client.search_runs(
        [client.get_experiment_by_name("mitoflow").experiment_id], "attributes.run_name = 'other'"
    )
    client.create_model_version("mitoflow", f"{other.info.artifact_uri}/model", other.info.run_id)
    with pytest.raises(InputError, match="version 2: found no model of mitoflow"):
        model_lookup.find("2")


def test_without_a_champion_the_pretrained_model_is_taken(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pretrained/phantom"
    shutil.copytree(made / REPORTS, folder)
    shutil.copy(made / MODEL, folder / "unet.keras")
    facts = {
        "data": {},
        "run": {"run": "abc"},
        "code": {"git_commit": "def", "python": "3"},
        "dataset": {},
        "params": {},
    }
    files.write_yaml(folder / "lineage.yaml", facts)
    in_folder(tmp_path, monkeypatch)
    for name in (None, "pretrained", "pretrained:phantom"):
        model = model_lookup.find(name)
        assert model.name == "pretrained:phantom"
        assert model.domain is not None
        assert (model.lineage["released_run"], model.lineage["git_commit"]) == ("abc", "def")
        assert "python" not in model.lineage
    assert model_lookup.names() == ["pretrained:phantom"]
    assert not Path("mlflow.db").exists(), "no registry is made to ask it"

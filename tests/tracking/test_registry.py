import importlib.metadata
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import grimp
import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models.utils import _validate_serving_input

import mitoflow
from mitoflow import cli
from mitoflow.core import provenance
from mitoflow.errors import InputError
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.evaluation.verdict import Verdict
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.models import unet
from mitoflow.tracking import lineage, packing, registration, registry, runs, store

MODEL, SETTINGS = Path("unet.keras"), Path("unet.yaml")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained U-Net, and an empty MLflow database, whose tables take seconds to create."""
    folder = tmp_path_factory.mktemp("template")
    store.client(f"sqlite:///{folder / 'mlflow.db'}")
    unet.save_model(unet.build_unet(depth=2, base_width=2), folder / MODEL)
    Settings(bit_depth=8, divisor=4, tile=64, overlap=16, threshold=0.5).write(folder / SETTINGS)
    return folder


@pytest.fixture
def checkout(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("DVC_ROOT", *(name for name in os.environ if name.startswith("MLFLOW_"))):
        if name not in store.DEFAULTS:
            monkeypatch.delenv(name, raising=False)
    for file in template.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(store.uri())
    yield tmp_path
    mlflow.set_tracking_uri(None)


def evaluation(right: int, test_hash: str = "a" * 64, luck: int = 0) -> Evaluation:
    """Forty slices of 1000 foreground pixels, of which about `right` are found."""
    found = right + np.random.default_rng(luck).integers(-50, 50, 40)
    counts = [[int(tp), 50, int(1000 - tp), 9000] for tp in found]
    return Evaluation(provenance.file_sha256(MODEL), test_hash, ["stack"] * 40, counts, block=5, resamples=200, seed=1)


def register(evaluated: Evaluation, key: str | None = None) -> Verdict:
    with runs.start("train", "unet", key=key) as run:
        run.params({"train": {"learning_rate": 0.001}})
        run.dataset("phantom", "data", "abc.dir", "training", {})
        run.produced(MODEL)
        verdict = registration.register(run, evaluated, MODEL, SETTINGS)
    assert verdict is not None
    return verdict


def aliases() -> dict[str, int]:
    return {alias: row.version for row in registry.models() for alias in row.aliases}


def tags(version: int) -> dict[str, str]:
    return dict(store.client(store.uri()).get_model_version("mitoflow", str(version)).tags)


@pytest.mark.slow
def test_the_gate(checkout: Path) -> None:
    first = register(evaluation(800))
    assert first == Verdict(1, True, "there was no champion")
    assert aliases() == {"champion": 1}

    same = register(evaluation(800))
    assert (same.promoted, same.champion) == (False, 1)
    assert "+0.0000 [+0.0000, +0.0000] from champion 1 on the same slices: the 95 % interval is not" in same.reason
    assert aliases() == {"champion": 1, "challenger": 2}

    worse = register(evaluation(700))
    assert not worse.promoted
    assert worse.difference.high < 0
    assert aliases() == {"champion": 1, "challenger": 3}

    better = register(evaluation(900))
    assert better.promoted
    assert 0 < better.difference.low < better.difference.value < better.difference.high
    assert aliases() == {"champion": 4}
    assert tags(4)["mitoflow.promoted.over"] == "1"

    lucky = register(evaluation(905, luck=1))
    assert not lucky.promoted
    assert lucky.difference.low < 0 < lucky.difference.value
    assert aliases() == {"champion": 4, "challenger": 5}

    elsewhere = register(evaluation(950, "b" * 64))
    assert (elsewhere.promoted, elsewhere.champion, elsewhere.difference) == (False, 4, None)
    assert "other test data (bbbbbbbbbbbb) than champion 4 (aaaaaaaaaaaa)" in elsewhere.reason
    assert "`mitoflow promote 6 --force --reason TEXT`" in elsewhere.reason
    assert aliases() == {"champion": 4, "challenger": 6}

    rows = registry.models()
    assert [row.version for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.verdict for row in rows] == [first, same, worse, better, lucky, elsewhere]
    assert rows[3].dice == evaluation(900).interval("dice")
    assert rows[3].iou == evaluation(900).interval("iou")
    described = store.client(store.uri()).get_model_version("mitoflow", "4").description
    assert described.startswith(f"Promoted: {better.reason}.\n\nDice {rows[3].dice}, IoU {rows[3].iou}\n\n")


@pytest.mark.slow
def test_promotion_by_hand_and_back(checkout: Path) -> None:
    for right in (800, 900, 850):
        register(evaluation(right))
    assert aliases() == {"champion": 2, "challenger": 3}

    refused = registry.promote(3)
    assert (refused.promoted, refused.champion) == (False, 2)
    assert aliases() == {"champion": 2, "challenger": 3}

    forced = registry.promote(3, force=True)
    assert forced.promoted
    assert forced.reason == f"promoted by hand with --force; the gate said: {refused.reason}"
    assert aliases() == {"champion": 3}
    assert registry.promote(3) == Verdict(3, True, "it is the champion already")

    assert registry.promote(2).promoted  # it is better than version 3
    assert registry.rollback() == (2, 3)
    assert registry.rollback() == (3, 2)
    assert registry.rollback() == (2, 1)
    assert aliases() == {"champion": 1}
    with pytest.raises(InputError, match=r"found version 1 as the only champion so far, expected a previous champion"):
        registry.rollback()
    assert {"mitoflow.promoted.at", "mitoflow.rolled_back.at"} <= tags(3).keys()
    assert tags(3)["mitoflow.promoted.over"] == "2"


@pytest.mark.slow
def test_a_champion_whose_files_are_lost_blocks_no_promotion(checkout: Path) -> None:
    register(evaluation(800))
    for lost in checkout.glob("mlruns/**/evaluation.json"):
        lost.unlink()
    verdict = register(evaluation(900))
    assert not verdict.promoted
    assert "other test data (aaaaaaaaaaaa) than champion 1 (unknown)" in verdict.reason
    assert not registry.promote(2).promoted
    assert registry.promote(2, force=True, reason="the disk died").promoted
    assert aliases() == {"champion": 2}


@pytest.mark.slow
def test_a_new_verdict_leaves_nothing_of_the_old_one(checkout: Path) -> None:
    register(evaluation(800))
    Path("promotion.yaml").write_text("required: {dice: 0.99}\n", encoding="utf-8")
    assert register(evaluation(900)).checks
    Path("promotion.yaml").unlink()
    client = store.client(store.uri())
    client.delete_registered_model_alias("mitoflow", "champion")
    client.delete_model_version("mitoflow", "1")
    verdict = registry.promote(2)
    assert verdict == Verdict(2, True, "there was no champion")
    assert Verdict.from_tags(2, tags(2)) == verdict


@pytest.mark.slow
def test_rollback_skips_a_version_that_was_deleted(checkout: Path) -> None:
    for right in (700, 800, 900):
        register(evaluation(right))
    store.client(store.uri()).delete_model_version("mitoflow", "2")
    assert registry.rollback() == (3, 1)


@pytest.mark.slow
def test_the_same_evaluation_in_the_same_run_makes_one_version(checkout: Path) -> None:
    first, again = register(evaluation(800), key="k"), register(evaluation(800), key="k")
    assert first == again
    other = register(replace(evaluation(800), seed=2), key="k")
    assert [row.version for row in registry.models()] == [first.version, other.version] == [1, 2]


@pytest.mark.slow
def test_a_registration_that_was_cut_off_is_finished(checkout: Path) -> None:
    register(evaluation(800), key="k")
    client = store.client(store.uri())
    (run,) = client.search_runs([client.get_experiment_by_name("mitoflow").experiment_id])
    written = tags(1)
    asked = {key: value for key, value in written.items() if "verdict" not in key and "promoted" not in key}
    packing.pack(Path("packed"), evaluation(800), MODEL, SETTINGS)

    def cut_off_and_finish(version: int) -> None:
        client.delete_model_version_tag("mitoflow", str(version), "mitoflow.verdict")  # the last thing that is written
        registry.admit(client, run.info.run_id, Path("packed"), asked)
        assert aliases() == {"champion": 1}
        assert tags(1) == written

    cut_off_and_finish(1)
    client.delete_registered_model_alias("mitoflow", "champion")
    cut_off_and_finish(1)
    assert [(entry.over, entry.version) for entry in registry.history()] == [(None, 1)]

    client.delete_registered_model("mitoflow")
    registry.admit(client, run.info.run_id, Path("packed"), asked)
    assert aliases() == {"champion": 1}
    assert len(client.search_logged_models([run.info.experiment_id])) == 1


@pytest.mark.slow
def test_a_promotion_that_was_cut_off_keeps_its_reason(checkout: Path) -> None:
    for right in (800, 900):
        register(evaluation(right), key="k")
    client = store.client(store.uri())
    (run,) = client.search_runs([client.get_experiment_by_name("mitoflow").experiment_id])
    written, challenged = tags(2), evaluation(900)
    packing.pack(Path("packed"), challenged, MODEL, SETTINGS)
    asked = {key: value for key, value in written.items() if "verdict" not in key and "promot" not in key}
    # All that followed the entry in the log is undone, as if the process had died there.
    for key in written.keys() - asked.keys():
        client.delete_model_version_tag("mitoflow", "2", key)
    client.set_registered_model_alias("mitoflow", "champion", "1")
    client.set_registered_model_alias("mitoflow", "challenger", "2")
    assert registry.champion() == 2
    registry.admit(client, run.info.run_id, Path("packed"), asked)
    assert tags(2) == written
    assert "from champion 1 on the same slices" in tags(2)["mitoflow.verdict.reason"]
    assert client.get_model_version_by_alias("mitoflow", "champion").version == 2
    assert aliases() == {"champion": 2}
    assert len(registry.history()) == 2


@pytest.mark.slow
def test_a_version_that_mitoflow_did_not_make_is_not_compared(checkout: Path) -> None:
    client = store.client(store.uri())
    client.create_registered_model("mitoflow")
    client.create_model_version("mitoflow", str(checkout))
    assert (registry.models()[0].dice, registry.models()[0].verdict) == (None, None)
    assert registry.promote(1).reason == "it was never evaluated by mitoflow, or its evaluation is lost"
    assert registry.promote(1, force=True).promoted
    with pytest.raises(InputError, match="version 1: found no run"):
        lineage.origin("1")
    assert "than champion 1 (unknown)" in register(evaluation(800)).reason


def test_an_empty_registry(checkout: Path) -> None:
    assert registry.models() == []
    with pytest.raises(InputError, match="found no such version, expected a version of model mitoflow"):
        registry.promote(1)
    with pytest.raises(InputError, match="found no champion"):
        registry.rollback()


def test_a_model_and_an_evaluation_that_do_not_belong_together(checkout: Path) -> None:
    evaluated = evaluation(800)
    with runs.start("register", "register") as run:
        with pytest.raises(InputError, match=r"unet\.keras.*which was evaluated"):
            registration.register(run, replace(evaluated, model_sha256="0" * 64), MODEL, SETTINGS)
        MODEL.unlink()
        with pytest.raises(InputError, match=r"unet\.keras: found no such file"):
            registration.register(run, evaluated, MODEL, SETTINGS)
    for content in ("{", "[]", '{"model_sha256": "a"}'):
        Path("evaluation.json").write_text(content)
        with pytest.raises(InputError, match=r"evaluation\.json.*`dvc repro evaluate` or `dvc pull`"):
            Evaluation.read(Path("evaluation.json"))


def test_origin(checkout: Path) -> None:
    register(evaluation(800))
    of_version, of_file = lineage.origin("1"), lineage.origin("unet.keras")
    assert of_version == of_file
    expected = {
        "version": "1",
        "run_name": "unet, version 1",
        "model_sha256": provenance.file_sha256(MODEL),
        "mitoflow": mitoflow.__version__,
        "dataset.training": "phantom abc.dir",
        "params.train.learning_rate": "0.001",
    }
    assert expected.items() <= of_file.items()
    store.client(store.uri()).delete_model_version("mitoflow", "1")
    assert lineage.origin("unet.keras") == {key: value for key, value in of_file.items() if key != "version"}
    Path("other.keras").write_bytes(b"other")
    with pytest.raises(InputError, match=r"other\.keras: found SHA-256 .* which is unknown"):
        lineage.origin("other.keras")
    with pytest.raises(InputError, match=r"absent\.keras: found no such file"):
        lineage.origin("absent.keras")


@pytest.mark.slow
def test_each_of_several_sets_has_its_score_and_its_data(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {"vnc": evaluation(600, "b" * 64), "epfl": evaluation(900)}
    with runs.start("train", "unet") as run:
        for name, each in sets.items():
            run.dataset(name, f"data/test/{name}", each.test_hash[:16], "test", {})
        assert registration.register(run, Evaluation.of_sets(sets), MODEL, SETTINGS)
    (row,) = registry.models()
    assert row.dice is not None
    assert row.dice.value == np.mean([each.interval("dice").value for each in sets.values()])
    assert row.sets == {name: sets[name].interval("dice") for name in ("epfl", "vnc")}
    assert tags(1)["mitoflow.set.vnc.test_hash"] == "b" * 64
    described = store.client(store.uri()).get_model_version("mitoflow", "1").description
    assert f"\n\n- epfl: Dice {row.sets['epfl']}\n- vnc: Dice {row.sets['vnc']}" in described
    assert lineage.origin("1")["dataset.test"] == f"epfl {'a' * 16}, vnc {'b' * 16}"
    Path("params.yaml").write_text("{}\n")
    monkeypatch.setattr(sys, "argv", ["mitoflow", "models"])
    cli.main()
    listed = ", ".join(f"{name} {interval.value:.4f}" for name, interval in row.sets.items())
    header, line = capsys.readouterr().out.splitlines()
    assert "Dice by set" in header
    assert listed in line
    register(evaluation(950))
    assert registry.models()[1].sets == {}


def test_a_registry_that_cannot_be_reached(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hunter2@127.0.0.1:9")
    for ask in (registry.models, lambda: registry.promote(1), registry.rollback, lambda: lineage.origin("unet.keras")):
        with pytest.raises(InputError) as refused:
            ask()
        assert str(refused.value) == (
            "http://127.0.0.1:9: found [Errno 111] Connection refused, expected an MLflow registry that answers; "
            "start its server, or check MLFLOW_TRACKING_URI and its credentials"
        )


@pytest.mark.slow
def test_a_database_that_another_process_holds(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no server to be started."""
    place = f"sqlite:///{checkout}/held.db"
    store.client(place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    with closing(sqlite3.connect(checkout / "held.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(
            InputError, match="held.db: found a database that another process keeps locked, .*; close the program"
        ):
            registry.models()


@pytest.mark.slow
def test_the_registered_model_segments_raw_images(checkout: Path) -> None:
    register(evaluation(800))
    model = mlflow.pyfunc.load_model("models:/mitoflow@champion")
    predictor = Predictor.load(MODEL, SETTINGS)
    for shape in ((1, 1, 1), (2, 64, 64), (3, 37, 151)):
        images = np.random.default_rng(1).integers(256, size=shape, dtype=np.uint8)
        masks = model.predict(images)
        assert (masks.shape, masks.dtype) == (shape, np.uint8)
        np.testing.assert_array_equal(masks, predictor.masks(images))
    with pytest.raises(MlflowException, match="uint16 does not match expected dtype uint8"):
        model.predict(np.zeros((1, 64, 64), np.uint16))
    with pytest.raises(MlflowException, match="Shape of input"):
        model.predict(np.zeros((64, 64), np.uint8))


def test_a_model_of_twelve_bits_takes_uint16(checkout: Path) -> None:
    Settings(bit_depth=12, divisor=4, tile=64, overlap=16, threshold=0.5).write(SETTINGS)
    packing.pack(Path("packed"), evaluation(800), MODEL, SETTINGS)
    model = mlflow.pyfunc.load_model("packed")
    assert model.predict(np.full((1, 70, 70), 4095, np.uint16)).shape == (1, 70, 70)
    with pytest.raises(MlflowException, match="grey value 4096, expected 12-bit"):
        model.predict(np.full((1, 70, 70), 4096, np.uint16))


@pytest.mark.slow
def test_the_packed_model_stands_alone(checkout: Path) -> None:
    packing.pack(Path("packed"), evaluation(800), MODEL, SETTINGS)
    names = {path.name for path in Path("packed").rglob("*")}
    assert {"unet.keras", "unet.yaml", "evaluation.json", "pyfunc.py", "predictor.py", "input_example.json"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pyc"))]
    assert Evaluation.read(Path("packed/artifacts/evaluation.json")) == evaluation(800)
    _validate_serving_input("packed", Path("packed/serving_input_example.json").read_text())

    program = """
import json, sys, mlflow, numpy
model = mlflow.pyfunc.load_model("packed")
print(json.dumps([sys.modules["mitoflow"].__file__, model.predict(numpy.zeros((1, 9, 9), numpy.uint8)).shape]))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    file, shape = json.loads(ran.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(checkout / "packed" / "code")
    assert shape == [1, 9, 9]


@pytest.mark.slow
def test_the_requirements_of_the_model_are_what_inference_imports() -> None:
    graph = grimp.build_graph("mitoflow", include_external_packages=True, exclude_type_checking_imports=True)
    imported = graph.find_upstream_modules("mitoflow.tracking.pyfunc")
    packages = {name for name in imported if not name.startswith("mitoflow.")} - sys.stdlib_module_names - {"mlflow"}
    distributions = importlib.metadata.packages_distributions()
    needed = [set(distributions[package]) & set(packing.REQUIREMENTS) for package in packages]
    assert all(needed)
    assert set().union(*needed) == set(packing.REQUIREMENTS)

"""The command line."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from mitoflow import __version__, cli
from mitoflow.config import params
from mitoflow.data.phantom import make_phantom
from mitoflow.io import ome, tiff

COMMITTED = Path(__file__).parents[2] / "params.yaml"
REMEDY = "run this in the folder of a checkout"
Here = Callable[..., tuple[int, str, str]]
HEAVY = {"numpy", "tifffile", "ruamel", "pydantic", "keras", "tensorflow", "mlflow", "optuna", "dvc", "matplotlib"}


def run(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "mitoflow.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """Run the command in this process, which imports MLflow and Keras once; returns exit code, stdout and stderr."""

    def run_here(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mitoflow", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return code, *capfd.readouterr()

    return run_here


@pytest.mark.parametrize(
    "arguments", [["--help"], ["data", "--help"], ["data", "import", "--help"], ["promote", "--help"]]
)
def test_help_imports_nothing_that_takes_time(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "mitoflow.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & HEAVY
    assert done.stdout.startswith("Usage: mitoflow")


@pytest.mark.slow
def test_tensorflow_writes_nothing_to_stderr() -> None:
    code = "from mitoflow.core import process; process.silence_libraries(); import tensorflow as tf; print(tf.eye(2))"
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "shape=(2, 2)" in done.stdout
    assert done.stderr == ""


def test_help_lists_every_command() -> None:
    listed = re.findall(r"^  (\w+)  +\S", run("--help").stdout, re.MULTILINE)
    assert set(listed) == set(cli.mitoflow.commands)
    assert {"data", "models", "promote", "rollback", "lineage", "register", "sync"} <= set(listed)
    assert "..." not in run("--help").stdout.partition("Commands:")[2]


def test_version() -> None:
    assert run("--version").stdout == f"mitoflow, version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["data", "retina"],
            "data: found retina, expected phantom, phantoms, epfl, import, add, list or verify; see `mitoflow data",
        ),
        (["modls"], "command: found modls, expected data, "),
        (["data", "import"], "data import: Missing option '--images'; see `mitoflow data import --help`"),
        (["data", "import", "--imags", "x"], "No such option '--imags'"),
        (["data", "import", "--images", "a.tif", "b.tif", "--masks", "m"], "Got unexpected extra argument (b.tif)"),
        (
            ["data", "import", "--images", "a", "--masks", "m", "--mask-rule", "or"],
            "'or' is not one of 'auto', 'nonzero'",
        ),
        (
            ["data", "import", "--images", "a", "--masks", "m", "--test-fraction", "1"],
            "1.0 is not in the range 0<=x<1",
        ),
        (["data", "import", "--images", "a", "--masks", "m", "--gap", "-1"], "-1 is not in the range x>=0"),
        (["promote", "first"], "promote: Invalid value for 'VERSION'"),
        (["promote"], "promote: Missing argument 'VERSION'"),
        (["promote", "1", "--force"], "promote: --force needs --reason TEXT; see `mitoflow promote --help`"),
        (["compare", "1", "2", "--html", "page.txt"], "--html: found page.txt, expected a name that ends with .html"),
        (["lineage"], "lineage: Missing argument 'MODEL|FILE'"),
    ],
)
def test_a_wrong_command_is_one_line(arguments: list[str], said: str, run_here: Here) -> None:
    code, out, err = run_here(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("mitoflow: ")
    assert said in err


def test_a_broken_pipe_is_no_traceback() -> None:
    done = subprocess.run(
        f"{sys.executable} -m mitoflow.cli --help | true", shell=True, capture_output=True, text=True, check=True
    )
    assert "Traceback" not in done.stderr


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the committed parameters and an empty store, which is the current one."""
    shutil.copy(COMMITTED, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.slow
def test_an_empty_registry(folder: Path, run_here: Here) -> None:
    _, out, _ = run_here("models")
    assert out == "no versions of mitoflow yet: `dvc repro` makes one, or `mitoflow register` after `dvc pull`\n"
    assert run_here("history")[1].startswith("no promotions yet")
    assert json.loads(run_here("models", "--json")[1]) == json.loads(run_here("history", "--json")[1]) == []
    for arguments, said in (
        (["promote", "7"], "version 7: found no such version"),
        (["rollback"], "model mitoflow: found no champion"),
        (["lineage", "7"], "version 7: found no such version"),
        (["lineage", "unet.keras"], "unet.keras: found no such file"),
    ):
        code, _, err = run_here(*arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert said in err
    assert run_here("sync") == (0, "0 events sent\n", "")


def test_asking_for_a_model_makes_no_registry(folder: Path, run_here: Here) -> None:
    for arguments in (["lineage", "best"], ["lineage", "models:/mitoflow@champion"]):
        code, _, err = run_here(*arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert "which names no version" in err
    assert not (folder / "mlflow.db").exists()


def test_the_lineage_of_a_folder_is_that_of_the_folder_with_a_slash(folder: Path, run_here: Here) -> None:
    ome.create_multiscale(folder / "mask.ome.zarr", (2, 8, 8), np.dtype(np.uint8), 1)
    ome.finish_multiscale(folder / "mask.ome.zarr", ome.Description("zyx", {}, (0, 0, 0), {"model": "m"}))
    assert run_here("lineage", "mask.ome.zarr/") == (0, "model  m\n", "")


@pytest.mark.parametrize("name", ["epfl", "general"])
def test_the_lineage_of_a_released_file_is_the_one_beside_it_and_of_a_copy_the_same(
    folder: Path, run_here: Here, name: str
) -> None:
    model = COMMITTED.parent / "pretrained" / name
    code, out, err = run_here("lineage", str(model / "unet.keras"))
    assert (code, err) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    made = YAML(typ="safe", pure=True).load(model / "lineage.yaml")
    assert shown["git_commit"] == made["code"]["git_commit"]
    assert shown["model_sha256"] == made["run"]["model_sha256"]
    assert shown["released_version"] == made["run"]["version"]
    assert not {"version", "run"} & shown.keys()  # which would be those of this registry
    assert shown["params.train.seed"] == made["params"]["train.seed"]
    shutil.copy(model / "unet.keras", folder / "copy.keras")
    assert run_here("lineage", "copy.keras") == (0, out, "")
    assert not (folder / "mlflow.db").exists()

    another = folder / "another"
    shutil.copytree(model, another)
    (another / "unet.keras").write_bytes(b"trained again")
    code, _, err = run_here("lineage", str(another / "unet.keras"))
    assert (code, err.count("\n")) == (2, 1)
    assert "which is unknown" in err


@pytest.mark.slow
def test_a_version_in_the_table_and_its_lineage(folder: Path, run_here: Here) -> None:
    from mitoflow.tracking import store

    client = store.client(store.uri())
    run_id = client.create_run(client.create_experiment("mitoflow"), run_name="train").info.run_id
    client.log_param(run_id, "train.epochs", "3")
    client.create_registered_model("mitoflow")
    dice = {"mitoflow.dice": "0.91", "mitoflow.dice.low": "0.9", "mitoflow.dice.high": "0.92"}
    tags = dice | {"mitoflow.test_hash": "0123456789", "mitoflow.lineage.git_commit": "abc"}
    client.create_model_version("mitoflow", folder.as_uri(), run_id, tags)
    client.set_registered_model_alias("mitoflow", "champion", "1")

    header, row = run_here("models")[1].splitlines()
    assert header.split()[:4] == ["version", "alias", "Dice", "IoU"]
    assert re.match(r"1        champion  0\.9100 \[0\.9000, 0\.9200\]  +01234567 +\d{4}-\d\d-\d\d", row)
    (listed,) = json.loads(run_here("models", "--json")[1])
    assert (listed["version"], listed["aliases"], listed["run_id"]) == (1, ["champion"], run_id)
    assert listed["dice"] == {"value": 0.91, "low": 0.9, "high": 0.92}
    assert (listed["iou"], listed["verdict"]) == (None, None)
    assert datetime.fromisoformat(listed["created"]).tzinfo
    lineage = dict(line.split(maxsplit=1) for line in run_here("lineage", "1")[1].splitlines())
    assert (lineage["version"], lineage["run"], lineage["git_commit"]) == ("1", run_id, "abc")
    assert lineage["params.train.epochs"] == "3"
    for name in ("champion", "models:/mitoflow/1", run_id):
        assert json.loads(run_here("lineage", name, "--json")[1]) == lineage
    assert run_here("promote", "1")[1] == "version 1 is the champion: it is the champion already\n"

    client.create_model_version("mitoflow", folder.as_uri())
    code, out, err = run_here("promote", "2")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "it was never evaluated by mitoflow" in err
    assert "version 2 is the champion" in run_here("promote", "2", "--force", "--reason", "better on the liver")[1]
    assert run_here("rollback", "--reason", "worse on the heart")[1] == (
        "version 1 is the champion again, in place of 2\n"
    )
    header, forced, back = run_here("history")[1].splitlines()
    assert header.split() == ["number", "when", "who", "champion", "how", "why"]
    assert re.match(
        r"1 +\d{4}-\d\d-\d\d \d\d:\d\d +\w+ +1 -> 2 +forced +better on the liver; the gate said: it", forced
    )
    assert re.match(r"2 .* 2 -> 1 +rolled back +worse on the heart$", back)
    entries = json.loads(run_here("history", "--json")[1])
    assert [(entry["over"], entry["version"], entry["how"]) for entry in entries] == [
        (1, 2, "forced"),
        (2, 1, "rolled back"),
    ]
    forced, back = (entry["verdict"] for entry in entries)
    assert (forced["version"], forced["promoted"], back) == (2, True, None)  # nobody asked the gate to roll back


@pytest.mark.slow
def test_a_registry_that_cannot_be_reached_is_one_line(folder: Path) -> None:
    done = run("models", MLFLOW_TRACKING_URI="http://user:secret@127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "expected an MLflow registry that answers" in done.stderr
    assert "secret" not in done.stderr


def test_nothing_to_summarise_or_register_is_one_line(folder: Path, run_here: Here) -> None:
    for command in ("summary", "register"):
        code, _, err = run_here(command)
        line = err.splitlines()[-1]  # TensorFlow may say something before
        assert (code, line.startswith("mitoflow: "), "`dvc pull`" in line) == (2, True, True), err


@pytest.mark.parametrize("content", ["", "{}", "<<<<<<< HEAD", '{"patch_wise": {}}'])
def test_a_summary_of_a_file_that_git_could_not_merge_is_one_line(folder: Path, run_here: Here, content: str) -> None:
    for file, text in (("reports/evaluate/metrics.json", content), ("models/unet.keras", "")):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    code, _, err = run_here("summary")
    assert code == 2
    assert "metrics.json" in err.splitlines()[-1]


@pytest.mark.slow
def test_a_server_needs_no_other_to_show_it(folder: Path) -> None:
    done = run("ui", MLFLOW_TRACKING_URI="https://user:secret@lab.example")
    assert done.stdout == "MLflow is at https://lab.example\n"


@pytest.mark.slow
def test_summary_has_the_version_of_the_model_in_the_folder(folder: Path, run_here: Here) -> None:
    from mitoflow.evaluation import metrics
    from mitoflow.evaluation.verdict import Verdict
    from mitoflow.tracking import store

    figures = {"accuracy": 0.98, "dice": 0.9, "iou": 0.82}
    scores = {f"{n}{end}": v + d for n, v in figures.items() for end, d in (("", 0), ("_low", -0.01), ("_high", 0.01))}
    report = folder / "reports/evaluate/metrics.json"
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({"patch_wise": scores, "whole_slice": scores, "threshold": 0.5}))
    (folder / "models").mkdir()
    (folder / "models/unet.keras").write_bytes(b"weights")
    header, *rows, registered, _ = run_here("summary")[1].splitlines()
    assert header.split() == ["test", "whole-slice", "patch-wise"]
    assert len(rows) == len(metrics.SCORES)
    assert rows[0].split("  ", 1)[1].split() == ["0.9000", "[0.8900,", "0.9100]"] * 2
    assert registered == "registered model: none yet, see `mitoflow sync` and `mitoflow register`"

    client = store.client(store.uri())
    client.create_registered_model("mitoflow")
    for content in (b"weights", b"other weights"):
        digest = hashlib.sha256(content).hexdigest()
        tags = {store.MODEL_SHA256_TAG: digest} | Verdict(1, promoted=False, reason="so").tags()
        client.create_model_version("mitoflow", "nowhere", tags=tags)
    assert "registered model: version 1 (no alias): so" in run_here("summary")[1]


@pytest.mark.slow
def test_repro_changes_parameters_and_shows_the_output_of_dvc(folder: Path) -> None:
    done = run("repro", "train", "--set", "train.epochs=3", "--set", "train.depth=")
    assert done.returncode not in (0, 2)  # no DVC project here
    assert "params.yaml: train.epochs 25 -> 3" in done.stdout
    assert params.load().train.epochs == 3
    assert (folder / "params.yaml").read_text() == COMMITTED.read_text().replace("epochs: 25", "epochs: 3")

    for change, said in (
        ("train.epoch=3", "train.epoch: found no such key"),
        ("train.epochs=x", "train.epochs: found"),
    ):
        done = run("repro", "--set", change)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert said in done.stderr


def test_presets_are_listed_and_written(folder: Path, run_here: Here) -> None:
    code, listed, _ = run_here("preset")
    assert code == 0
    assert "epfl-quick" in listed
    code, out, _ = run_here("preset", "epfl-quick")
    assert code == 0
    assert "params.yaml: train.intensity_strength 0.5 -> 1.0" in out
    assert params.load(folder / "params.yaml").data.name == "phantom"
    code, out, complaint = run_here("preset", "quick")
    assert code == 2
    assert out == ""
    assert complaint.startswith("mitoflow: preset: found quick, expected one of phantom")


def test_data_verify_outside_of_dvc_is_one_line(folder: Path, run_here: Here) -> None:
    code, out, err = run_here("data", "verify")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"mitoflow: {folder}: found no cache of DVC: ")


@pytest.mark.slow
def test_predict_and_score_work_in_any_folder(tmp_path: Path) -> None:
    image, mask = make_phantom((1, 96, 128), seed=0)
    tiff.write_stack(tmp_path / "stack.tif", image)
    tiff.write_stack(tmp_path / "truth.tif", mask)

    predicted = run("predict", "stack.tif", "mask.tif", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    scored = run("score", "mask.tif", "truth.tif", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert scored.stdout.startswith("dice")
    lineage = run("lineage", "mask.tif", cwd=tmp_path)
    assert "pretrained:general" in lineage.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"stack.tif", "truth.tif", "mask.tif"}


def test_what_acts_on_a_project_says_that_there_is_none(tmp_path: Path) -> None:
    done = run("models", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"mitoflow: {tmp_path}: found no params.yaml, expected a mitoflow project; {REMEDY}\n"

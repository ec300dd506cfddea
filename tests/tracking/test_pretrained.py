"""A trained model is released, listed, registered elsewhere, and trained on from."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import tifffile

from mitoflow import cli
from mitoflow.config import presets
from mitoflow.core import files, provenance
from mitoflow.data.pairs import read_pairs
from mitoflow.data.set_descriptions import SetDescription, write_sets
from mitoflow.errors import InputError
from mitoflow.inference.judgement import Calibration
from mitoflow.inference.predictor import Predictor
from mitoflow.io import tiff
from mitoflow.models import unet
from mitoflow.stages import evaluate, patch, release, train, validate
from mitoflow.stages.paths import BEST_PARAMS
from mitoflow.tracking import lineage, model_lookup, pretrained, registration, registry, runs, store
from mitoflow.tracking import release as releases
from mitoflow.tracking.pretrained import Pretrained, initial_weights

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SMALL = {
    "patch.size": "64",
    "patch.step": "64",
    "train.learning_rate": "0.003",
    "train.depth": "2",
    "train.augment_strength": "0.0",
    "train.base_width": "8",
    "train.epochs": "1",
    "train.patches_per_epoch": "240",
    "evaluate.tile": "64",
    "evaluate.overlap": "16",
    "evaluate.bootstrap_resamples": "200",
}
FILES = {"unet.keras", "inference.yaml", "domain.yaml", "evaluation.json", "lineage.yaml", "MODEL_CARD.md", "cover.png"}


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder, with the MLflow store that is its own."""
    for name in ("DVC_ROOT", "DVC_EXP_NAME", *(name for name in os.environ if name.startswith("MLFLOW_"))):
        if name not in store.DEFAULTS:
            monkeypatch.delenv(name, raising=False)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "params.yaml", folder)
    monkeypatch.chdir(folder)
    mlflow.set_tracking_uri(store.uri())


@pytest.fixture(autouse=True)
def no_shipped_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the models that ship with mitoflow."""
    monkeypatch.setattr(pretrained, "PLACES", (pretrained.HERE,))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_dataset: Path) -> Iterator[Path]:
    """A project in which every stage but the study was run, and a release of its model; it is not changed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        shutil.copytree(small_dataset, "data")
        presets.change(Path("params.yaml"), SMALL)
        for command in (
            "init -q -b main",
            "config user.name Test",
            "config user.email test@localhost",
            "add params.yaml",
        ):
            subprocess.run(["git", *command.split()], check=True)
        subprocess.run(["git", "commit", "-qm", "A project"], check=True)
        files.write_yaml(BEST_PARAMS, {"value": 0.0})
        for stage in (validate, patch, train, evaluate):
            stage.main()
        release.main()
        yield folder
        mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def of_two_sets(tmp_path_factory: pytest.TempPathFactory, small_dataset: Path) -> Iterator[Path]:
    """A finished project on the phantom and on a smaller, brighter piece of it; it is not changed."""
    folder = tmp_path_factory.mktemp("two_sets")
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        shutil.copytree(small_dataset, "data")
        for part in ("train", "test"):
            (pair,) = read_pairs(Path("data") / part)
            images, masks = (np.stack([*stack.slices()])[:, :, :72] for stack in (pair.image, pair.mask))
            piece = Path("data") / part / "piece"
            tiff.write_stack(piece / "images/p.tif", (images // 2 + 100).astype(np.uint8))
            tiff.write_stack(piece / "masks/p.tif", masks)
        sets = {
            "phantom": SetDescription(tissue="a phantom", terms="MIT, as mitoflow"),
            "piece": SetDescription(tissue="half of a phantom", terms="as the phantom"),
        }
        write_sets(Path("data"), sets)
        presets.change(Path("params.yaml"), SMALL | {"data.name": "phantom+piece", "train.context": "1"})
        files.write_yaml(BEST_PARAMS, {"value": 0.0})
        for stage in (validate, patch, train, evaluate):
            stage.main()
        release.main()
        yield folder
        mlflow.set_tracking_uri(None)


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to change; the store is the same."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished}/mlflow.db")
    return copy


@pytest.fixture
def elsewhere(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another checkout, with a registry of its own and the released model."""
    enter(tmp_path / "elsewhere", monkeypatch)
    shutil.copytree(finished / "pretrained", "pretrained")
    return tmp_path / "elsewhere"


def released(folder: Path) -> Pretrained:
    return Pretrained(folder / "pretrained/phantom")


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mitoflow", *arguments])
    cli.main()


def test_a_release_is_complete_and_states_its_scores(finished: Path) -> None:
    model = released(finished)
    assert {file.name for file in model.folder.iterdir()} == FILES
    assert [folder.name for folder in model.folder.parent.iterdir()] == ["phantom"]
    digest = provenance.file_sha256(model.folder / "unet.keras")
    assert digest == model.evaluation.model_sha256 == provenance.file_sha256(finished / "models/unet.keras")
    assert (model.folder / "cover.png").read_bytes().startswith(b"\x89PNG")

    measured = json.loads((finished / "reports/evaluate/metrics.json").read_text())
    dice = model.evaluation.interval("dice")
    assert dice.value == measured["whole_slice"]["dice"]
    card = (model.folder / "MODEL_CARD.md").read_text()
    assert f"| Dice | {dice.value:.4f} [{dice.low:.4f}, {dice.high:.4f}] |" in card
    assert "Data: MIT, as mitoflow." in card
    assert "| test | 8 | 8 x 96 x 128 |" in card
    assert f"\n\n- median: {measured['median']}\n" in card
    assert f"- average precision: {measured['average_precision']:.4f}\n" in card
    assert all(len(line) <= 120 for line in card.splitlines() if not line.startswith("|"))

    made = model.lineage
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=finished, capture_output=True, text=True, check=True)
    assert made["code"]["git_commit"] == commit.stdout.strip()
    assert made["code"]["git_commit"] in card
    assert made["run"]["model_sha256"] == digest
    assert made["dataset"].keys() == {"training", "validation", "test"}
    assert made["params"]["train.learning_rate"] == "0.003"
    assert made["metrics"] == measured


def test_the_stated_dice_is_that_of_the_file(finished: Path) -> None:
    model = released(finished)
    predictor = Predictor.load(model.folder / "unet.keras", model.folder / "inference.yaml")
    masks = predictor.masks(tifffile.imread(finished / "data/test/phantom/images/phantom.tif"))
    truth = tifffile.imread(finished / "data/test/phantom/masks/phantom.tif") > 0
    dice = 2 * np.sum(masks * truth) / (masks.sum() + truth.sum())
    assert model.evaluation.interval("dice").value == pytest.approx(dice, abs=1e-12)


def test_the_same_model_is_released_to_the_same_bytes(project: Path, finished: Path) -> None:
    (project / "pretrained/phantom/left over").touch()
    release.main()
    for file in released(project).folder.iterdir():
        assert file.read_bytes() == (released(finished).folder / file.name).read_bytes(), file.name


def test_the_list(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    dice = released(elsewhere).evaluation.interval("dice")
    run("models", "--pretrained", monkeypatch=monkeypatch)
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "Dice", "IoU", "data", "licence", "of", "the", "data"]
    assert row.startswith(f"phantom  {dice.value:.4f} [{dice.low:.4f}, {dice.high:.4f}]  0.")
    assert row.endswith("phantom  MIT, as mitoflow")
    shutil.rmtree("pretrained")
    run("models", "--pretrained", monkeypatch=monkeypatch)
    assert capsys.readouterr().out.startswith("no pretrained models here: `mitoflow release` makes one")


def test_registering_it_elsewhere(
    elsewhere: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second time changes nothing
        run("register", "--pretrained", "phantom", monkeypatch=monkeypatch)
        assert capsys.readouterr().out == "model mitoflow version 1: there was no champion\n"
    (row,) = registry.models()
    assert (row.aliases, row.dice) == (("champion",), released(elsewhere).evaluation.interval("dice"))

    there = lineage.origin("1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished}/mlflow.db")
    here = lineage.origin(str(finished / "models/unet.keras"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    of_its_own = {"run", "run_name", "training_run"}
    assert {key for key in here if here[key] != there.get(key)} == of_its_own
    assert there.keys() == here.keys() - {"training_run"}

    images = tifffile.imread(finished / "data/test/phantom/images/phantom.tif")
    files = (elsewhere / "pretrained/phantom" / name for name in ("unet.keras", "inference.yaml"))
    masks = mlflow.pyfunc.load_model("models:/mitoflow@champion").predict(images)
    np.testing.assert_array_equal(masks, Predictor.load(*files).masks(images))


def test_the_gate_treats_it_like_any_other(elsewhere: Path) -> None:
    shipped = released(elsewhere)
    better = [[tp + fn, 0, 0, tn + fp] for tp, fp, fn, tn in shipped.evaluation.counts]
    with runs.start("train", "train") as run:
        own = dataclasses.replace(shipped.evaluation, counts=better)
        assert registration.register(
            run, own, shipped.folder / "unet.keras", shipped.folder / "inference.yaml"
        ).promoted
    verdict = registration.register_pretrained("phantom")
    assert (verdict.version, verdict.promoted, verdict.champion) == (2, False, 1)
    assert "from champion 1 on the same slices: the 95 % interval is not above zero" in verdict.reason


def test_weights_of_another_normalization_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.keras"
    path.touch()
    weights = initial_weights(str(path))
    assert weights
    weights.require_normalization("percentiles")  # nothing is known of these
    for text, known, other in (
        ("tile: 256\n", "range", "percentiles"),  # as mitoflow 0.1 wrote it
        ("normalization: percentiles\n", "percentiles", "range"),
    ):
        (tmp_path / "inference.yaml").write_text(text)
        weights.require_normalization(known)
        said = rf"train\.init_from: found .*by {known}, expected {other}, .*; set patch\.normalization to {known}"
        with pytest.raises(InputError, match=said):
            weights.require_normalization(other)


def test_weights_to_start_from(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("pretrained/phantom/unet.keras")
    digest = provenance.file_sha256(path)
    assert initial_weights("none") is None
    for wanted in ("pretrained", "pretrained:phantom"):
        found = initial_weights(wanted)
        assert (found.path, found.origin) == (path, {"name": "pretrained:phantom", "sha256": digest})
    found = initial_weights(str(path))
    assert (found.path, found.origin) == (path, {"name": str(path), "sha256": digest})

    with pytest.raises(InputError, match="model mitoflow: found no champion, expected a champion"):
        initial_weights("champion")
    registration.register_pretrained("phantom")
    for wanted in ("champion", "1"):
        found = initial_weights(wanted)
        assert found.origin == {"name": "mitoflow", "version": "1", "sha256": digest}
        assert found.path.read_bytes() == path.read_bytes()
        assert found.path.is_relative_to(elsewhere / ".mitoflow")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("0", "version 0: found no such version"),
        ("3", "version 3: found no such version, expected a version of model mitoflow"),
        (
            "pretrained:retina",
            "pretrained model: found retina, expected one of phantom; `mitoflow models --pretrained`",
        ),
        ("absent.keras", "train.init_from: found absent.keras, expected none, pretrained, pretrained:NAME, champion"),
        ("champoin", "train.init_from: found champoin, expected none"),
        ("", "train.init_from: found , expected none"),
    ],
)
def test_missing_weights_are_one_line(elsewhere: Path, wanted: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        initial_weights(wanted)
    assert str(refused.value).startswith(message)


def test_weights_of_a_registry_in_trouble(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = store.client(store.uri())
    client.create_registered_model("mitoflow")
    client.create_model_version("mitoflow", str(elsewhere))
    with pytest.raises(
        InputError, match="version 1: found no model of mitoflow, expected one that mitoflow registered"
    ):
        initial_weights("1")
    registration.register_pretrained("phantom")
    (file,) = (elsewhere / "mlruns").rglob("artifacts/unet.keras")
    file.write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"version 2: unet\.keras: found SHA-256 .* register the model again"):
        initial_weights("2")
    file.unlink()
    with pytest.raises(InputError, match=r"version 2: unet\.keras: found .*, expected a file in the artifact store"):
        initial_weights("2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for wanted in ("champion", "2"):
        with pytest.raises(InputError, match="expected an MLflow registry that answers"):
            initial_weights(wanted)
    assert not list(elsewhere.rglob(".mitoflow/weights/*"))


def test_one_of_several_needs_a_name_and_a_broken_one_is_refused(elsewhere: Path) -> None:
    shutil.copytree("pretrained/phantom", "pretrained/cortex")
    with pytest.raises(InputError, match="pretrained model: found no name, expected one of cortex, phantom"):
        initial_weights("pretrained")
    Path("pretrained/cortex/unet.keras").write_text("version https://git-lfs.github.com/spec/v1")
    for use in (registration.register_pretrained, lambda name: initial_weights(f"pretrained:{name}")):
        with pytest.raises(InputError, match=r"cortex/unet\.keras: found SHA-256 .*, which was evaluated; take the"):
            use("cortex")
    Path("pretrained/phantom/lineage.yaml").unlink()
    with pytest.raises(InputError, match=r"phantom/lineage\.yaml: found no such file"):
        registration.register_pretrained("phantom")
    shutil.rmtree("pretrained")
    with pytest.raises(InputError, match="found none, expected one that `mitoflow release` made"):
        initial_weights("pretrained")


def test_the_general_model_is_the_default_and_else_that_of_epfl(elsewhere: Path) -> None:
    assert pretrained.find().name == "phantom", "the only one"
    for name in ("epfl", "general"):
        shutil.copytree("pretrained/phantom", f"pretrained/{name}")
        assert pretrained.find().name == name
        assert initial_weights("pretrained").origin["name"] == f"pretrained:{name}"
        assert model_lookup.find("pretrained").name == model_lookup.find().name == f"pretrained:{name}"
    assert model_lookup.find("pretrained:epfl").name == "pretrained:epfl"


def unmeasured(folder: Path) -> None:
    (folder / "reports/evaluate/metrics.json").unlink()


def another_model(folder: Path) -> None:
    unet.save_model(unet.build_unet(2, 2), folder / "models/unet.keras")


def data_without_terms(folder: Path) -> None:
    presets.change(folder / "params.yaml", {"data.name": "cortex"})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (unmeasured, "reports/evaluate/metrics.json: found no such file, expected JSON"),
        (another_model, "models/unet.keras: found SHA-256"),
        (data_without_terms, "--licence: found none for cortex, expected the terms"),
    ],
)
def test_what_cannot_be_released(project: Path, harm, message: str) -> None:
    before = {file: file.read_bytes() for file in project.glob("pretrained/**/*") if file.is_file()}
    harm(project)
    with pytest.raises(InputError) as refused:
        release.main()
    assert str(refused.value).startswith(message)
    assert {file: file.read_bytes() for file in project.glob("pretrained/**/*") if file.is_file()} == before


def test_a_model_that_is_too_large_or_unknown_to_mlflow(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "LARGEST", 0.01)
    with pytest.raises(InputError, match=r"unet\.keras: found 0\.\d MB, expected at most"):
        release.main()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/empty.db")
    with pytest.raises(InputError, match="model mitoflow: found no version with the evaluation .*`mitoflow register`"):
        release.main()


def test_a_release_states_what_its_evaluation_was_made_with(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither parameters that were changed since, nor a later evaluation of the same model."""
    of_first = Path("reports/evaluate/evaluation.json").read_bytes()
    first = {path: path.read_bytes() for path in Path("reports/evaluate").iterdir() if path.is_file()}
    presets.change(Path("params.yaml"), {"evaluate.overlap": "32"})
    evaluate.main()
    assert Path("reports/evaluate/evaluation.json").read_bytes() != of_first
    for path, content in first.items():
        path.write_bytes(content)
    made = release.main().lineage
    assert made["params"]["evaluate.overlap"] == "16"
    assert made["run"]["version"] == "1"


def test_a_lab_releases_its_own_model_with_its_terms(project: Path) -> None:
    data_without_terms(project)
    model = release.main("CC BY 4.0")
    assert model.folder == Path("pretrained/cortex")
    assert "Data: CC BY 4.0." in (model.folder / "MODEL_CARD.md").read_text()
    assert [model.name for model in pretrained.models()] == ["cortex", "phantom"]


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_a_wheel_brings_every_file_and_the_models(finished: Path, tmp_path: Path) -> None:
    """Built from the sources with a model of the name that they list, and installed into an environment of its own."""
    sources, environment = tmp_path / "sources", tmp_path / "environment"
    shutil.copytree(ROOT / "src/mitoflow", sources / "src/mitoflow", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, sources)
    shutil.copytree(finished / "pretrained/phantom", sources / "pretrained/epfl")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", tmp_path, sources], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    (wheel,) = tmp_path.glob("*.whl")
    install = ["install", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, "--python", python, *install, wheel], check=True)
    (package,) = environment.glob("lib/python*/site-packages/mitoflow")
    assert files_of(sources / "src/mitoflow") == files_of(package)

    # The dependencies come from here; the package itself does not, because a path that is given so reads no .pth file.
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "params.yaml", project)
    libraries = sysconfig.get_path("purelib")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        [environment / "bin/mitoflow", "models", "--pretrained"],
        cwd=project,
        env=variables | {"PYTHONPATH": libraries},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[1].startswith("epfl  0.")


def test_of_two_sets_every_figure_is_a_mean_and_each_set_has_its_own(
    of_two_sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(of_two_sets)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{of_two_sets}/mlflow.db")
    measured = json.loads(Path("reports/evaluate/metrics.json").read_text())
    assert [*measured["sets"]] == ["phantom", "piece"]
    for protocol in ("whole_slice", "patch_wise", "single_slice"):
        mean = np.mean([each[protocol]["dice"] for each in measured["sets"].values()])
        assert measured[protocol]["dice"] == pytest.approx(mean)
    assert measured["validation_dice"] == np.mean([each["validation_dice"] for each in measured["sets"].values()])

    header, epoch = Path("reports/train/curves.csv").read_text().splitlines()
    curves = dict(zip(header.split(","), map(float, epoch.split(",")), strict=True))
    assert curves["val_dice"] == pytest.approx((curves["val_dice_phantom"] + curves["val_dice_piece"]) / 2, abs=1e-6)

    (row,) = registry.models()
    run_of_it = store.client(store.uri()).get_run(row.run_id)
    for name, each in measured["sets"].items():
        assert run_of_it.data.metrics[f"test/sets/{name}/whole_slice/dice"] == each["whole_slice"]["dice"]
        assert row.sets[name].value == pytest.approx(each["whole_slice"]["dice"])
    assert run_of_it.data.metrics["test/whole_slice/dice"] == measured["whole_slice"]["dice"]
    training = store.client(store.uri()).get_run(run_of_it.data.tags["mitoflow.training_run"])
    inputs = (*training.inputs.dataset_inputs, *run_of_it.inputs.dataset_inputs)
    used = {(each.dataset.name, tag.value): each.dataset for each in inputs for tag in each.tags}
    assert used.keys() == {(name, part) for name in ("phantom", "piece") for part in ("training", "validation", "test")}
    assert len({each.digest for each in used.values()}) == 6

    page = Path("reports/evaluate/report.html").read_text()
    assert page.count('id="worst-p') == page.count('id="median-p') == 2 * 4
    assert "Mean of the sets" in page

    model = pretrained.find("phantom+piece")
    card = (model.folder / "MODEL_CARD.md").read_text()
    dice = model.evaluation.sets["piece"].interval("dice")
    assert f"| piece | 8 | {dice.value:.4f} [{dice.low:.4f}, {dice.high:.4f}] |" in card
    assert "Data: phantom: MIT, as mitoflow; piece: as the phantom." in card
    assert model.lineage["code"]["sets"] == "phantom: MIT, as mitoflow; piece: as the phantom"
    assert all(len(line) <= 120 for line in card.splitlines() if not line.startswith("|"))
    capsys.readouterr()
    run("summary", monkeypatch=monkeypatch)
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["test", "whole-slice", "patch-wise", "single", "slices", "phantom", "piece"]
    assert f"{measured['sets']['piece']['whole_slice']['dice']:.4f}" in first


def test_a_model_of_two_sets_is_registered_elsewhere_with_both(
    of_two_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(tmp_path / "elsewhere", monkeypatch)
    shutil.copytree(of_two_sets / "pretrained", "pretrained")
    known = Calibration(slope=1.1, intercept=-0.1, error=0.08, stacks=12)
    known.write(Path("pretrained/phantom+piece/calibration.yaml"))
    assert registration.register_pretrained("phantom+piece")
    assert model_lookup.find("1").calibration == known  # so that it finds scales and judges masks as before
    (row,) = registry.models()
    there = store.client(store.uri()).get_run(row.run_id)
    evaluation = pretrained.find("phantom+piece").evaluation
    for name, each in evaluation.sets.items():
        assert there.data.metrics[f"test/sets/{name}/whole_slice/dice"] == each.interval("dice").value
    tests = {
        i.dataset.name: i.dataset.digest for i in there.inputs.dataset_inputs for tag in i.tags if tag.value == "test"
    }
    assert tests == evaluation.test_hashes
    mlflow.set_tracking_uri(None)


def test_a_release_may_have_a_name_of_its_own_and_a_calibration(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = Calibration(slope=1.1, intercept=-0.1, error=0.08, stacks=12)
    known.write(project / "calibration.yaml")
    run("release", "--name", "general", "--calibration", "calibration.yaml", monkeypatch=monkeypatch)
    assert capsys.readouterr().out.startswith("pretrained/general: Dice")
    assert model_lookup.find("pretrained:general").calibration == known
    with pytest.raises(SystemExit, match="2"):
        run("release", "--name", "../elsewhere", monkeypatch=monkeypatch)
    assert capsys.readouterr().err.startswith("mitoflow: --name: found '../elsewhere', expected letters")
    assert not (project.parent / "elsewhere").exists()

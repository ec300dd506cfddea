"""Comparison of two real models of a real project with git, DVC and a registry."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest

from mitoflow import cli
from mitoflow.core import provenance
from mitoflow.data.conventions import Conventions, write_conventions
from mitoflow.data.pairs import read_pairs
from mitoflow.errors import InputError
from mitoflow.evaluation import metrics, protocols, report
from mitoflow.evaluation.evaluation_record import Evaluation, hash_sets
from mitoflow.inference.jobs import Prediction
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.io import tiff
from mitoflow.models import unet
from mitoflow.tracking import model_comparison, model_lookup, registration, registry, runs, store
from mitoflow.tracking.model_comparison import compare
from tests.tiny_model import write_model

pytestmark = pytest.mark.slow

MODEL, REPORTS = Path("models/unet.keras"), Path("reports/evaluate")
PART, CONVENTIONS = Path("data/test"), Path("reports/validate/conventions.yaml")
PARAMS = Path(__file__).parents[2] / "params.yaml"
RATES = (0.001, 0.002)

Run = Callable[..., None]


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_ROOT", *(name for name in os.environ if name.startswith("MLFLOW_"))):
        if name not in store.DEFAULTS:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_dataset: Path) -> Iterator[Path]:
    """Two commits, each with its model, which are version 1 and version 2; the second is also an experiment."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_folder(folder, monkeypatch)
        shutil.copytree(small_dataset / "test", PART)
        (folder / ".gitignore").write_text("/data\n/mlflow.db*\n/mlruns\n/.mitoflow\n")
        for command in ("git init -q -b main", "git config user.name T", "git config user.email t@localhost"):
            run(*command.split())
        run(sys.executable, "-m", "dvc", "init", "-q")
        write_conventions(CONVENTIONS, {"phantom": Conventions(8, "nonzero")})
        for rate in RATES:
            train(rate)
        run("git", "update-ref", "refs/exps/12/3456/slower", "HEAD")  # as DVC names an experiment
        yield folder
    mlflow.set_tracking_uri(None)


def train(rate: float) -> None:
    """Write what the pipeline writes for an untrained model."""
    text = PARAMS.read_text(encoding="utf-8").replace("learning_rate: tuned", f"learning_rate: {rate}")
    Path("params.yaml").write_text(text, encoding="utf-8")
    keras.utils.set_random_seed(round(1000 * rate))
    keras.config.set_dtype_policy("float32")
    network = unet.build_unet(depth=1, base_width=2)
    unet.save_model(network, MODEL)
    MODEL.with_suffix(".yaml").write_text(f"bit_depth: 8\ndivisor: 2\nrecipe: {{learning_rate: {rate}}}\n")
    settings = Settings(bit_depth=8, divisor=2, tile=64, overlap=16, threshold=0.5)
    pairs = read_pairs(PART)
    images = np.stack([*pairs[0].image.slices()])
    middle = float(np.quantile(Predictor(network, settings).probabilities(images), 0.9))
    settings = replace(settings, threshold=middle)
    settings.write(REPORTS / "inference.yaml")
    stacks, counts = protocols.count(
        partial(Prediction.of, Predictor(network, settings)), pairs, {"phantom": "nonzero"}
    )
    hashed = hash_sets(PART, {"phantom": "nonzero"})["phantom"]
    measured = Evaluation(
        provenance.file_sha256(MODEL), hashed, stacks, counts.tolist(), block=2, resamples=200, seed=1
    )
    measured.write(REPORTS / "evaluation.json")
    with runs.start("train", "unet") as training:
        # The first one as earlier versions did, which had what was tuned in a section of its own.
        old = {"train": {"learning_rate": "tuned"}, "recipe": {"learning_rate": rate}}
        training.params(old if rate == 0.001 else {"train": {"learning_rate": rate}})
        training.produced(MODEL)
        assert registration.register(training, measured, MODEL, REPORTS / "inference.yaml")
    run(sys.executable, "-m", "dvc", "add", "-q", str(MODEL))
    run("git", "add", "-A")
    run("git", "commit", "-qm", f"Learning rate {rate}")


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_folder(made, monkeypatch)
    return made


def test_two_versions(here: Path) -> None:
    comparison = compare("1", "2", PART, CONVENTIONS, pictures=True)
    assert comparison.names == ("mitoflow version 1", "mitoflow version 2")
    assert comparison.params == {"train.learning_rate": ("0.001", "0.002")}
    first, second = (Evaluation.read(registry.model_file(version).with_name("evaluation.json")) for version in (1, 2))
    assert list(comparison.scores) == list(metrics.scores_of("pixels"))
    for score, (ours, theirs, gain) in comparison.scores.items():
        assert (ours, theirs) == (first.interval(score), second.interval(score))
        assert gain is not None
        assert gain.value == pytest.approx(theirs.value - ours.value)
        assert gain.low <= gain.value <= gain.high
    wrong = [np.array(each.counts)[:, 1:3].sum(axis=1) for each in (first, second)]
    most = int(np.argmax(np.abs(wrong[0] - wrong[1])))
    assert comparison.wrong[0] == ("phantom", most, wrong[0][most], wrong[1][most])
    assert [(shown.stack, shown.z) for shown in comparison.slices] == [place[:2] for place in comparison.wrong]
    places = [z for _, z, _, _ in comparison.wrong]
    assert min(abs(a - b) for a in places for b in places if a != b) >= first.block
    for shown, (_, _, *expected) in zip(
        comparison.slices, comparison.wrong, strict=True
    ):  # they are what was evaluated
        assert [int((shown.truth != mask).sum()) for mask in (shown.first, shown.second)] == expected
    assert comparison.notes == []


def test_revisions_and_experiments_are_the_same_models(here: Path) -> None:
    versions = compare("1", "2", PART, CONVENTIONS, pictures=False)
    for a, b in (("main~1", "main"), ("HEAD~1", "slower")):
        revisions = compare(a, b, PART, CONVENTIONS, pictures=False)
        assert revisions.scores == versions.scores
        assert revisions.wrong == versions.wrong
        assert revisions.params == versions.params
        assert revisions.names[1].startswith(f"{b} (")
    mixed = compare("champion", "main", PART, CONVENTIONS, pictures=False)
    assert mixed.scores["dice"][1] == versions.scores["dice"][1]


def test_the_page_and_the_table(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "compared.html"
    monkeypatch.setattr(sys, "argv", ["mitoflow", "compare", "1", "2", "--html", str(page)])
    cli.main()
    out = capsys.readouterr().out
    assert re.search(
        r"^dice +0\.\d{4} \[.*\] +0\.\d{4} \[.*\] +[+-]0\.\d{4} \[[+-]0\.\d{4}, [+-]0\.\d{4}\]$", out, re.M
    )
    assert re.search(r"^train.learning_rate +0\.001 +0\.002$", out, re.M)
    assert re.search(r"^phantom +\d +\d+ +\d+$", out, re.M)
    text = page.read_text(encoding="utf-8")
    shown = len(re.findall(r"^phantom", out, re.M))
    assert text.count('href="data:image/png;base64') == 4 * shown
    assert len(re.findall(r"src=|href=\"http|<script", text)) == 0
    assert "mitoflow version 1 and mitoflow version 2" in text

    monkeypatch.setattr(sys, "argv", ["mitoflow", "compare", "1", "2", "--json"])
    cli.main()
    found = json.loads(capsys.readouterr().out)
    assert (found["a"], found["b"]) == ("mitoflow version 1", "mitoflow version 2")
    assert found["parameters"]["train.learning_rate"] == {"a": "0.001", "b": "0.002"}
    dice = found["scores"]["dice"]
    assert f"{dice['difference']['value']:+.4f}" in out
    assert dice["a"].keys() == {"value", "low", "high"}
    assert len(found["wrong_pixels"]) == shown


def test_other_test_data_cannot_be_paired_and_are_not_shown(here: Path, tmp_path: Path) -> None:
    changed = replace(Evaluation.read(REPORTS / "evaluation.json"), test_hash="b" * 16)
    with runs.start("register", "elsewhere") as again:
        assert registration.register(again, changed, MODEL, REPORTS / "inference.yaml")
    comparison = compare("1", "3", Path("nowhere"), CONVENTIONS, pictures=True)
    assert "the scores cannot be paired" in comparison.notes[0]
    assert {gain for _, _, gain in comparison.scores.values()} == {None}
    assert (comparison.slices, comparison.wrong) == ([], [])
    here_too = compare("1", "3", PART, CONVENTIONS, pictures=False)
    assert here_too.notes == ["evaluated now on data/test: mitoflow version 3"]
    assert (
        here_too.scores["dice"][1].value == compare("1", "2", PART, CONVENTIONS, pictures=False).scores["dice"][1].value
    )
    absent = compare("1", "2", Path("nowhere"), CONVENTIONS, pictures=True)
    assert absent.notes == ["no pictures: nowhere is not here; `dvc pull` brings it"]
    assert absent.wrong
    shutil.copytree(PART / "phantom", tmp_path / "phantom")
    (tmp_path / "phantom/images/phantom.tif").write_bytes(b"another image")
    other = compare("1", "2", tmp_path, CONVENTIONS, pictures=True)
    assert other.notes[0].startswith(f"no pictures: {tmp_path} is ")
    same = compare("1", "1", PART, CONVENTIONS, pictures=True)
    assert same.notes == ["they are equally right on every slice"]


def test_a_model_without_evaluation_is_evaluated_on_the_same_slices(here: Path, tmp_path: Path) -> None:
    for path in (MODEL, REPORTS / "inference.yaml"):
        shutil.copy(path, tmp_path)
    file = str(tmp_path / "unet.keras")
    versions, mixed = (compare("1", b, PART, CONVENTIONS, pictures=True) for b in ("2", file))
    assert mixed.notes == ["evaluated now on data/test: unet"]
    assert mixed.params == {}
    for score, (ours, theirs, gain) in versions.scores.items():
        assert mixed.scores[score][0] == ours
        assert (mixed.scores[score][1].value, mixed.scores[score][2]) == (theirs.value, gain)
    assert mixed.wrong == versions.wrong
    assert len(mixed.slices) == len(versions.slices) > 0
    both = compare(file, file, PART, CONVENTIONS, pictures=False)
    assert both.notes == ["evaluated now on data/test: unet and unet", "they are equally right on every slice"]
    with pytest.raises(InputError, match="unet: found no evaluation, expected a model that was evaluated"):
        compare("1", file, Path("nowhere"), CONVENTIONS, pictures=False)


def test_sets_that_both_were_evaluated_on(here: Path, tmp_path: Path) -> None:
    """The second model was evaluated on one more set; the first one is of the time before there were sets."""
    measured = Evaluation.read(REPORTS / "evaluation.json")
    more = replace(measured, test_hash="c" * 16, counts=[[90 + z, 9, 10, 900] for z in range(8)])
    sets = Evaluation.of_sets({"phantom": measured, "liver": more})
    with runs.start("register", "two sets") as again:
        assert registration.register(again, sets, MODEL, REPORTS / "inference.yaml")
    version = str(max(row.version for row in registry.models()))
    told, alone = (compare("1", b, PART, CONVENTIONS, pictures=True) for b in (version, "2"))
    assert told.notes == ["compared on the sets that both were evaluated on: phantom"]
    assert (told.scores, told.sets, told.wrong) == (alone.scores, {}, alone.wrong)
    assert len(told.slices) == len(alone.slices) > 0

    counts = [[1000 - z, z, z, 0] for z in range(8)]
    worse = Evaluation.of_sets({"liver": more, "phantom": replace(measured, counts=counts)})
    with runs.start("register", "in another order") as again:
        assert registration.register(again, worse, MODEL, REPORTS / "inference.yaml")
    both = compare(version, str(int(version) + 1), PART, CONVENTIONS, pictures=False)
    assert [*both.sets] == ["phantom", "liver"]
    gains = {name: of_set["dice"][2] for name, of_set in both.sets.items()}
    assert gains["liver"] is not None and gains["liver"].value == 0
    assert gains["phantom"] is not None and both.scores["dice"][2] is not None
    assert both.scores["dice"][2].value == pytest.approx(gains["phantom"].value / 2)
    assert {stack for stack, *_ in both.wrong} == {"phantom/phantom"}
    report.write_comparison(tmp_path / "both.html", both)
    titles = re.findall("<tr><th>(Dice.*)</th>", (tmp_path / "both.html").read_text(encoding="utf-8"))
    assert titles == ["Dice", "Dice, phantom", "Dice, liver"]


def test_what_is_not_there_is_one_line(here: Path) -> None:
    expected = "a version, an alias, a run, a git revision, a DVC experiment, pretrained or a .keras file"
    for what, message in {
        "99": "version 99: found no such version",
        "f" * 32: "found no version",
        "faster": f"faster: found no such name, expected {expected}",
        "--help": f"--help: found no such name, expected {expected}",
    }.items():
        with pytest.raises(InputError, match=message):
            model_comparison.find(what)
    run("git", "commit", "-q", "--allow-empty", "-m", "the same")
    cache = here / ".dvc/cache"
    cache.rename(here / "hidden")
    with pytest.raises(InputError, match="main: found models that cannot be had"):
        model_comparison.find("main")
    (here / "hidden").rename(cache)


@pytest.mark.parametrize("orthoplanes", [False, True])
def test_slices_are_shown_as_they_were_evaluated(tmp_path: Path, orthoplanes: bool) -> None:
    stack = np.random.default_rng(0).integers(0, 256, (6, 40, 48), np.uint8)
    write_model(
        tmp_path, Settings(bit_depth=8, divisor=2, tile=32, overlap=16, threshold=0.5, orthoplanes=orthoplanes), stack
    )
    model = model_lookup.find(str(tmp_path / "unet.keras"))
    tiff.write_stack(tmp_path / "stack.tif", stack)
    found = dict(model_comparison._predict(model, tiff.open_stack(tmp_path / "stack.tif"), {}, [1, 4]))
    wanted = model.predictor.masks(stack)
    assert found.keys() == {1, 4}
    assert all(0 < mask.mean() < 1 and np.mean(mask != wanted[z]) < 1e-3 for z, mask in found.items())

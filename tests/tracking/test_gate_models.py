"""Criteria of promotion.yaml that run models, with real ones on real slices."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest

from mitoflow.core import workspace
from mitoflow.data.pairs import read_set
from mitoflow.evaluation import protocols
from mitoflow.inference.jobs import Prediction
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.io import tiff
from mitoflow.models import unet
from mitoflow.tracking.gate import Gate, NonInferiorityDataset
from tests.tiny_model import write_model
from tests.tracking.test_gate import AFTER, BEFORE, contender

pytestmark = pytest.mark.slow

SETTINGS = Settings(bit_depth=8, divisor=2, tile=64, overlap=16, threshold=0.5)


@pytest.fixture
def folder(small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with an untrained model, and a dataset in another folder."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_dataset / "test" / "phantom", tmp_path / "liver")
    images = np.stack([*read_set(tmp_path / "liver", "liver")[0].image.slices()])
    write_model(tmp_path, SETTINGS, images)
    return tmp_path


def test_another_dataset_may_not_get_worse_than_its_margin_at_the_lower_end_of_the_interval(folder: Path) -> None:
    """The logit of grey value g is g / 32 - 4: a threshold of 0.6 leaves out what has 134, a probability of 0.55."""
    images, masks = np.full((20, 64, 64), 64, np.uint8), np.zeros((20, 64, 64), np.uint8)
    images[:, :20, :20], masks[:, :20, :20] = 192, 1  # 400 pixels
    images[:, 30:50, 30:40] = 134  # 200 pixels
    masks[10:, 30:50, 30:40] = 1
    for kind, array in (("images", images), ("masks", masks)):
        tiff.write_stack(folder / "worm" / kind / "s.tif", array)
    inputs = keras.Input((None, None, 1))
    constant = keras.initializers.Constant
    layer = keras.layers.Conv2D(1, 1, kernel_initializer=constant(255 / 32), bias_initializer=constant(-4))
    for name, threshold in (("champion", 0.5), ("challenger", 0.6)):
        unet.save_model(keras.Model(inputs, layer(inputs)), folder / name / "unet.keras")
        replace(SETTINGS, threshold=threshold).write(folder / name / "inference.yaml")
    champion = contender(1, folder / "champion/unet.keras")
    challenger = contender(2, folder / "challenger/unet.keras", 900)
    for margin, passed in ((0.03, False), (0.3, True)):
        worm = NonInferiorityDataset(name="worm", folder="worm", margin=margin)
        evaluated = [worm.evaluate(each.weights(), Gate().bootstrap).counts for each in (champion, challenger)]
        assert evaluated == [BEFORE, AFTER]
        (check,) = Gate(non_inferiority=[worm]).decide(challenger, champion).checks
        assert check.passed is passed
        assert float(check.found.split()[0]) == pytest.approx(16 / 18 - 20 / 22, abs=1e-4)


def test_size_and_speed_are_measured(folder: Path) -> None:
    first = contender(1, folder / "unet.keras")
    verdict = Gate(max_model_mb=100.0, max_seconds_per_mpx=1000.0).decide(first, None)
    assert verdict.promoted
    megabytes, seconds = verdict.checks
    assert float(megabytes.found) == pytest.approx((folder / "unet.keras").stat().st_size / 1e6, abs=0.05)
    assert 0 < float(seconds.found.split()[0]) < 1000
    small = Gate(max_model_mb=0.001).decide(first, None)
    assert "megabytes is 0." in small.reason
    assert "and not at most 0.001" in small.reason
    assert not Gate(max_seconds_per_mpx=1e-6).decide(first, None).promoted


def test_another_dataset_on_which_it_must_not_get_worse(folder: Path) -> None:
    pairs = read_set(folder / "liver", "liver")
    worse = folder / "worse"
    worse.mkdir()
    shutil.copy(folder / "unet.keras", worse)
    guessed = Settings.read(folder / "inference.yaml")
    replace(guessed, threshold=1.0).write(worse / "inference.yaml")  # finds nothing
    wanted = Gate(non_inferiority=[NonInferiorityDataset(name="liver", folder="liver")])
    champion = contender(1, folder / "unet.keras")
    verdict = wanted.decide(contender(2, worse / "unet.keras", 900), champion)
    assert not verdict.promoted
    assert verdict.difference is not None
    assert verdict.difference.low > 0
    (check,) = verdict.checks
    predictor = Predictor.load(folder / "unet.keras", folder / "inference.yaml")
    _, counts = protocols.count(partial(Prediction.of, predictor), pairs, {"liver": "nonzero"})
    tp, fp, fn, _ = counts.sum(axis=0)
    assert check.what == "gain in Dice on liver"
    assert float(check.found.split()[0]) == pytest.approx(-2 * tp / (2 * tp + fp + fn), abs=1e-4)
    assert "above zero; but gain in Dice on liver is -" in verdict.reason

    cached = {path: path.stat().st_mtime_ns for path in (workspace.state_dir() / "gate").iterdir()}
    assert len(cached) == 2
    assert wanted.decide(contender(3, folder / "unet.keras", 900), champion).promoted  # the same model: no worse
    assert {path: path.stat().st_mtime_ns for path in (workspace.state_dir() / "gate").iterdir()} == cached

    tiff.write_stack(folder / "liver/images/phantom.tif", np.full((8, 96, 128), 300, np.uint16))
    unknown = wanted.decide(contender(4, worse / "unet.keras", 900), champion)
    assert not unknown.promoted
    assert "gain in Dice on liver is unknown (images: found uint16" in unknown.reason

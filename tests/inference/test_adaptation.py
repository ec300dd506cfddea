"""A model of many tissues finds the scale of a stack and says what to expect; other models leave it as it is."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mitoflow.data.conventions import Conventions, write_conventions
from mitoflow.evaluation import metrics
from mitoflow.inference import prediction
from mitoflow.inference.agreement import HALF_OCTAVE
from mitoflow.inference.judgement import Calibration
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.request import Request
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import ome, tiff
from mitoflow.models import unet
from mitoflow.tracking import model_comparison

from .disks import RADIUS, disks

pytestmark = pytest.mark.slow

SIDE = 600


@pytest.fixture
def model(finder: Predictor, tmp_path: Path) -> TrainedModel:
    """Return the network of `finder` with its files; without a calibration."""
    folder = tmp_path / "model"
    folder.mkdir()
    unet.save_model(finder.model, folder / "unet.keras")
    finder.settings.write(folder / "inference.yaml")
    return TrainedModel("finder", folder / "unet.keras", folder, {"model": "finder", "model_sha256": "0"})


def predicted(model: TrainedModel, folder: Path, radius: float, **options: Any) -> tuple[np.ndarray, list[str], dict]:
    """Predict disks of a radius; return the mask, the notes and the lineage."""
    tifffile.imwrite(folder / "disks.tif", disks(radius, (2, SIDE, SIDE)))
    notes: list[str] = []
    output = folder / "mask.tif"
    request = Request(str(folder / "disks.tif"), output, overwrite=True, **options)
    prediction.predict(request, model, notes.append)
    return tifffile.imread(output), notes, ome.read_lineage(output)


def test_a_calibrated_model_takes_what_it_agrees_on_most(model: TrainedModel, tmp_path: Path) -> None:
    Calibration(1.0, 0.0, 0.1, 12).write(model.folder / "calibration.yaml")
    mask, notes, lineage = predicted(model, tmp_path, 2 * RADIUS)
    said = "predicted at 0.5 x its size with threshold 0.10, where the network agrees most with itself"
    assert any(said in note for note in notes)
    assert lineage["scale"] == "y x 0.5, x x 0.5"
    threshold = float(lineage["threshold"])
    assert threshold == pytest.approx(0.1, abs=1 / 256)
    expected, _, _ = predicted(model, tmp_path, 2 * RADIUS, rescale=0.5, threshold=threshold)
    np.testing.assert_array_equal(mask, expected)
    as_it_is, notes, lineage = predicted(model, tmp_path, 2 * RADIUS, rescale="none")
    assert (as_it_is != mask).any()
    assert (lineage.get("scale"), lineage["threshold"]) == (None, "0.5")


def test_a_comparison_measures_and_shows_what_a_calibrated_model_predicts(model: TrainedModel, tmp_path: Path) -> None:
    Calibration(1.0, 0.0, 0.1, 12).write(model.folder / "calibration.yaml")
    mask, _, lineage = predicted(model, tmp_path, 2 * RADIUS)
    assert lineage["scale"] == "y x 0.5, x x 0.5"
    part, conventions = tmp_path / "test", tmp_path / "conventions.yaml"
    truth = np.zeros_like(mask)
    truth[:, :300] = 255
    for kind, stack in (("images", tifffile.imread(tmp_path / "disks.tif")), ("masks", truth)):
        tiff.write_stack(part / "cells" / kind / "disks.tif", stack)
    write_conventions(conventions, {"cells": Conventions(8, "nonzero")})
    notes: list[str] = []
    side = model_comparison.Side("finder", model, {}, None)
    evaluation = model_comparison._evaluated(side, part, conventions, notes.append)
    np.testing.assert_array_equal(evaluation.counts, metrics.count(truth > 0, mask > 0))
    assert any("predicted at 0.5 x its size" in note for note in notes)
    ((_, shown),) = model_comparison._predict(model, tiff.open_stack(part / "cells/images/disks.tif"), {}, [1])
    np.testing.assert_array_equal(shown, mask[1] > 0)


def test_a_whole_number_is_a_ratio_too(model: TrainedModel, tmp_path: Path) -> None:
    Calibration(1.0, 0.0, 0.1, 12).write(model.folder / "calibration.yaml")
    _, _, lineage = predicted(model, tmp_path, RADIUS, rescale=2)
    assert lineage["scale"] == "y x 2, x x 2"


def test_a_threshold_that_is_given_is_kept(model: TrainedModel, tmp_path: Path) -> None:
    Calibration(1.0, 0.0, 0.1, 12).write(model.folder / "calibration.yaml")
    _, notes, lineage = predicted(model, tmp_path, 2 * RADIUS, threshold=0.6)
    assert lineage["threshold"] == "0.6"
    assert any("with threshold 0.60, where the network agrees most" in note for note in notes)


def test_at_the_right_size_slices_stay_as_they_are(model: TrainedModel, tmp_path: Path) -> None:
    Calibration(1.0, 0.0, 0.1, 12).write(model.folder / "calibration.yaml")
    # Masks are compared with those of larger windows, so the right size is half an octave below that of the disks.
    _, notes, lineage = predicted(model, tmp_path, RADIUS / HALF_OCTAVE, threshold=0.5)
    assert "scale" not in lineage
    assert not any("predicted at" in note for note in notes)


@pytest.mark.parametrize(("intercept", "verdict", "kind"), [(1, "usable", "note"), (-0.2, "do not use", "warning")])
def test_it_says_what_to_expect(model: TrainedModel, tmp_path: Path, intercept: float, verdict: str, kind: str) -> None:
    Calibration(0.0 if intercept == 1 else 0.5, intercept, 0.1, 12).write(model.folder / "calibration.yaml")
    _, notes, lineage = predicted(model, tmp_path, RADIUS, table=tmp_path / "table.csv")
    said = next(note for note in notes if "expected Dice" in note)
    assert said.startswith(f"{kind}: ")
    assert f": {verdict}: expected Dice about " in said
    assert lineage["judgement"].startswith(verdict)
    with (tmp_path / "table_totals.csv").open(newline="") as stream:
        assert next(csv.DictReader(stream))["judgement"] == lineage["judgement"]


def test_a_model_without_calibration_leaves_the_scale_and_says_nothing(model: TrainedModel, tmp_path: Path) -> None:
    _, notes, lineage = predicted(model, tmp_path, 4 * RADIUS)
    assert not any("expected Dice" in note or "predicted at" in note for note in notes)
    assert {"scale", "judgement"}.isdisjoint(lineage)


def test_the_search_for_the_scale_can_be_stopped(model: TrainedModel, tmp_path: Path) -> None:
    Calibration(1.0, 0.0, 0.1, 12).write(model.folder / "calibration.yaml")
    tifffile.imwrite(tmp_path / "disks.tif", disks(RADIUS, (2, SIDE, SIDE)))
    before, asked = set(tmp_path.iterdir()), []

    def stop_at_the_second_scale(voxels: int) -> None:
        asked.append(voxels)
        if len(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prediction.predict(
            Request(str(tmp_path / "disks.tif"), tmp_path / "mask.tif"), model, lambda _: None, stop_at_the_second_scale
        )
    assert asked == [0, 0]
    assert set(tmp_path.iterdir()) == before

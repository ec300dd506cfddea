"""What the page predicts of a stack, without a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from mitoflow.apps.page.results import Mask, Upload
from mitoflow.apps.page.shelf import Shelf
from mitoflow.apps.page.strokes import Stroke
from mitoflow.apps.page.worker import Worker
from mitoflow.core import provenance
from mitoflow.inference.settings import Settings
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.models import unet
from tests.parts import until
from tests.tiny_model import network_of_brightness, two_that_touch

SETTINGS = Settings(bit_depth=8, divisor=1, tile=64, overlap=16, threshold=0.5, contacts=True)


@pytest.mark.parametrize(
    ("x", "erases", "expected"), [(90, True, 2), (40, True, 3), (50, False, 1)], ids=["predicted", "divided", "joined"]
)
def test_instances_are_taken_apart_at_the_contacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x: int, erases: bool, expected: int
) -> None:
    """Of the prediction, of a mask that was divided once more by hand, and of one that was painted over a contact."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("instances: {smallest_voxels: 10}\n")
    unet.save_model(network_of_brightness(), tmp_path / "unet.keras")
    SETTINGS.write(tmp_path / "inference.yaml")
    weights = tmp_path / "unet.keras"
    model = TrainedModel("m", weights, tmp_path, {"model": "m", "model_sha256": provenance.file_sha256(weights)})
    size = 10**6
    result = Shelf(tmp_path, largest=size).add("cell.tif", [Upload("cell.tif", size)], None)
    tifffile.imwrite(result.source, two_that_touch(3), photometric="minisblack", metadata={"axes": "ZYX"})
    worker = Worker(model)
    worker.predict(result)
    until(lambda: not result.is_unfinished)
    worker.close()
    assert (result.state, result.error) == ("done", "")
    strokes = tuple(Stroke(z, 2, erases, ((x, 30), (x, 39))) for z in range(3))
    labels = tifffile.imread(result.file("instances", Mask(result.threshold, strokes)))
    assert len(np.unique(labels)) - 1 == expected

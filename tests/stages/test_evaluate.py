"""What `evaluate` decides on validation slices and measures on the test part, with values worked out by hand.

The network maps grey value g to the logit g / 32 - 4: 64 to a probability of 0.12, 160 to 0.73 and 192 to 0.88.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest

from mitoflow.config import presets
from mitoflow.config.params import Params
from mitoflow.core import files
from mitoflow.data.conventions import Conventions, write_conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.pairs import read_pairs
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference.settings import Settings
from mitoflow.io import tiff
from mitoflow.models import unet
from mitoflow.stages import evaluate, paths
from mitoflow.tracking import lineage, registry, store

pytestmark = pytest.mark.slow

MITOCHONDRION, MISSED = np.s_[16:32, 16:32], np.s_[40:56, 40:56]  # 256 pixels each
OTHER = np.s_[40:56, 16:32]  # 256 pixels that are no mitochondrion
FLASH = np.s_[0:8, 60:76]  # 128 pixels that are bright in a single slice


def network() -> keras.Model:
    inputs = keras.Input((None, None, 1))
    constant = keras.initializers.Constant
    layer = keras.layers.Conv2D(1, 1, kernel_initializer=constant(255 / 32), bias_initializer=constant(-4))
    return keras.Model(inputs, layer(inputs))


def write_train(folder: Path) -> None:
    """Twelve slices, of which the last six validate.

    There a threshold above 0.73 and a median over three slices find all; before, 0.5 and no median do.
    """
    images, masks = np.full((12, 64, 80), 64, np.uint8), np.zeros((12, 64, 80), np.uint8)
    for z in (0, 2, 4):
        images[z][MITOCHONDRION], masks[z][MITOCHONDRION] = 160, 255
    for z in range(6, 12):
        images[z][MITOCHONDRION], masks[z][MITOCHONDRION] = 192, 255
        images[z][OTHER] = 160
    images[8][FLASH] = 192
    tiff.write_stack(folder / "images/s.tif", images)
    tiff.write_stack(folder / "masks/s.tif", masks)


def write_test(folder: Path) -> None:
    images, masks = np.full((4, 64, 80), 64, np.uint8), np.zeros((4, 64, 80), np.uint8)
    for z in range(4):
        images[z][MITOCHONDRION], masks[z][MITOCHONDRION] = 192, 255
        images[z][OTHER], masks[z][MISSED] = 160, 255
    images[1][FLASH] = 192
    tiff.write_stack(folder / "images/s.tif", images)
    tiff.write_stack(folder / "masks/s.tif", masks)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project in which `evaluate` ran."""
    folder = tmp_path_factory.mktemp("evaluated")
    keras.config.set_dtype_policy("float32")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("DVC_ROOT", *(name for name in os.environ if name.startswith("MLFLOW_"))):
            if name not in store.DEFAULTS:
                monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(folder)
        write_train(Path("data/train/set"))
        write_test(Path("data/test/set"))
        cut = {"size": 64, "step": 64, "validation_fraction": 0.5, "gap": 2, "normalization": "range"}
        tiles = {"tile": 64, "overlap": 16, "medians": [1, 3], "bootstrap_resamples": 100}
        settings = Params.model_validate({"patch": cut, "evaluate": tiles})
        files.write_yaml(Path("params.yaml"), settings.model_dump(by_alias=True))
        sets = {"set": Conventions(8, "nonzero")}
        write_conventions(paths.CONVENTIONS, sets)
        write_store(paths.PATCHES, read_pairs(Path("data/train")), settings.patch, sets)
        unet.save_model(network(), paths.MODEL)
        recipe = {"context": 0, "context_step": 1}
        files.write_yaml(paths.MODEL_FACTS, {"bit_depth": 8, "divisor": 4, "recipe": recipe})
        files.write_csv(paths.CURVES, ("epoch", "loss", "dice", "val_loss", "val_dice"), [(1, 0.5, 0.5, 0.5, 0.5)])
        evaluate.main()
        yield folder
    mlflow.set_tracking_uri(None)


def test_threshold_and_median_are_those_of_the_validation_slices(evaluated: Path) -> None:
    """On them all is right from 188 / 256 on, the first threshold above 0.731; before them at 0.5 without a median."""
    settings = Settings.read(evaluated / paths.INFERENCE)
    assert (settings.threshold, settings.median) == (188 / 256, 3)
    assert files.read_json(evaluated / paths.METRICS, "")["validation_dice"] == 1


def test_the_test_part_is_measured_at_the_chosen_threshold_and_median(evaluated: Path) -> None:
    """256 pixels are found and 256 missed in each slice, so Dice is 2 x 256 / (2 x 256 + 256)."""
    assert Evaluation.read(evaluated / paths.EVALUATED).counts == [[256, 0, 256, 64 * 80 - 512]] * 4
    figures = files.read_json(evaluated / paths.METRICS, "")
    assert figures["whole_slice"]["dice"] == pytest.approx(2 / 3)


def test_patches_are_measured_at_half_and_without_what_is_reflected(evaluated: Path) -> None:
    """The other structure is found, too, and 128 pixels in one slice; the second patch owns 16 of its 64 columns."""
    found, wrong, missed = 4 * 256, 4 * 256 + 128, 4 * 256
    figures = files.read_json(evaluated / paths.METRICS, "")["patch_wise"]
    assert figures["dice"] == pytest.approx(2 * found / (2 * found + wrong + missed))
    assert figures["accuracy"] == pytest.approx(1 - (wrong + missed) / (4 * 64 * 80))


def test_mlflow_lists_the_headline_first_and_bounds_of_intervals_last(evaluated: Path) -> None:
    client = store.client(f"sqlite:///{evaluated}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("mitoflow").experiment_id])
    names = list(run.data.metrics)
    assert names[0] == "test/whole_slice/dice"
    bounds = ["/interval/" in name for name in names if name.startswith("test/")]
    assert bounds == sorted(bounds)
    assert True in bounds


def test_dvc_tables_have_the_headline_alone(evaluated: Path) -> None:
    """`dvc exp show` has a column for each figure of a file of metrics."""
    headline = files.read_json(evaluated / paths.HEADLINE, "")
    assert set(headline) == {"dice", "iou", "boundary_f1", "instance_f1_50"}
    figures = files.read_json(evaluated / paths.METRICS, "")
    assert headline["dice"] == figures["whole_slice"]["dice"]
    assert headline["boundary_f1"] == figures["boundary_f1"]


def test_the_run_of_an_evaluation_has_the_version_in_its_name(evaluated: Path) -> None:
    client = store.client(f"sqlite:///{evaluated}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("mitoflow").experiment_id])
    assert run.info.run_name == "evaluate phantom, version 1"
    (output,) = run.outputs.model_outputs
    described = client.get_logged_model(output.model_id).tags["mlflow.note.content"]
    assert "trained on phantom from random weights" in described


def test_other_instances_make_a_version_of_their_own(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(
        evaluated, tmp_path / "copy", ignore=shutil.ignore_patterns("mlflow.db*", "mlruns", ".mitoflow")
    )
    monkeypatch.chdir(copy)
    evaluate.register()
    presets.change(Path("params.yaml"), {"instances.smallest_voxels": "600"})
    evaluate.main()
    found = [lineage.origin(str(row.version)) for row in registry.models()]
    assert [each["params.instances.smallest_voxels"] for each in found] == ["500", "600"]
    assert [each["run_name"].rpartition(", ")[2] for each in found] == ["version 1", "version 2"]

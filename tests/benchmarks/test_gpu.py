"""The benchmark of a GPU, on the processor and with few crops."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import keras
import pytest
import tifffile

from benchmarks import gpu
from mitoflow.data.conventions import Conventions, write_conventions
from mitoflow.data.phantom import write_phantom
from mitoflow.inference import model_files
from mitoflow.inference.settings import Settings
from mitoflow.models import unet
from tests.services import require_module


@pytest.mark.slow
def test_it_measures_training_prediction_and_parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "find_spec", lambda _: None)  # no other backend to compare with
    write_phantom(Path("data"), train=(12, 256, 256), test=(1, 256, 256))
    write_conventions(Path(gpu.CONVENTIONS), {"phantom": Conventions(8, "nonzero")})

    gpu.main(["--presets", "general", "--crops", "160", "--slices", "2", "--loaders", "1", "--into", "found.json"])

    found = json.loads(Path("found.json").read_text())
    fitted, predicted = found["general"], found["predict"]
    assert fitted["crops"] == 160
    assert fitted["crops_per_second"] > 0 and 0 <= fitted["waiting_share"] < 1
    assert 0 <= fitted["validation_dice"] <= 1
    assert predicted["voxels"] == 2 * 256 * 256
    assert predicted["megavoxels_per_second"] > 0
    assert predicted["parity_backend"] == keras.backend.backend()
    assert predicted["parity"] == pytest.approx(1, abs=1e-3)  # the same processor, in another process


@pytest.mark.slow
def test_parity_is_measured_with_another_backend_where_there_is_one(tmp_path: Path) -> None:
    require_module("torch", "bench")
    write_phantom(tmp_path, train=(1, 256, 256), test=(1, 256, 256))
    images = tifffile.imread(tmp_path / "test" / "phantom" / "images" / "phantom.tif")[None]
    shipped = Path("pretrained/general")
    model = unet.load_model(shipped / model_files.WEIGHTS)

    found = gpu.parity(model, Settings.read(shipped / model_files.SETTINGS), images)

    assert found.get("parity_backend") == "torch", found  # with the reason, where there is none
    assert found["parity"] > 0.99


def test_every_wait_after_the_first_epoch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: clock[0])
    waiting = gpu.Waiting()
    for epoch in range(3):
        waiting.on_epoch_begin(epoch)
        for batch, seconds in enumerate((5.0, 1.0)):
            clock[0] += seconds
            waiting.on_train_batch_begin(batch)
            clock[0] += 10
            waiting.on_train_batch_end(batch)
        clock[0] += 100  # validation
        waiting.on_epoch_end(epoch, {"val_dice": 0.5})
    assert (waiting.waited, waiting.steps) == (2 * 6, 2 * 20)
    assert waiting.epochs == [26] * 3


def test_a_process_that_was_killed_without_a_word_is_a_reason() -> None:
    assert gpu.reason(subprocess.CompletedProcess([], -9, "", "\n")) == "it ended with -9"
    assert gpu.reason(subprocess.CompletedProcess([], 1, "", "Traceback\nno such layer\n")) == "no such layer"

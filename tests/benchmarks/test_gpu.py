"""The benchmark of a GPU, on the processor and with few crops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from mitoflow.data.conventions import Conventions, write_conventions
from mitoflow.data.phantom import write_phantom


@pytest.mark.slow
def test_it_measures_training_prediction_and_parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
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
    assert predicted["parity"] == pytest.approx(1, abs=1e-3)  # the same processor, in another process

"""Both sides of the split are datasets of their own in MLflow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mitoflow.config.params import Patch
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.pairs import read_pairs
from mitoflow.tracking import inputs, runs, store


@pytest.mark.slow
def test_mlflow_keeps_training_and_validation(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DVC_ROOT", *(name for name in os.environ if name.startswith("MLFLOW_"))):
        if name not in store.DEFAULTS:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    settings, pairs = Patch(size=64, step=64, validation_fraction=0.1, gap=2), read_pairs(small_dataset / "train")
    patches = write_store(Path("patches"), pairs, settings, {"phantom": Conventions(8, "nonzero")})
    with runs.start("train", "train") as run:
        for each in inputs.of_patches("cortex", Path("patches"), patches):
            run.dataset(*each)
    client = store.client(store.uri())
    (experiment,) = client.search_experiments(filter_string="name = 'mitoflow'")
    (found,) = client.search_runs([experiment.experiment_id])
    kept = {tag.value: used.dataset for used in found.inputs.dataset_inputs for tag in used.tags}
    assert {side: dataset.name for side, dataset in kept.items()} == {"training": "cortex", "validation": "cortex"}
    assert kept["training"].digest == patches.train.digest_of("phantom")[:32]
    assert kept["validation"].digest == patches.validation.digest_of("phantom")[:32]

"""JAX and PyTorch train, resume, register and predict as TensorFlow does."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import tifffile

from tests.faults.pipeline import forget, has_progress
from tests.parts import until
from tests.services import require_module

from .conftest import Project, outputs, runs, store

VALUES = {"learning_rate": "0.002", "depth": "1", "augment_strength": "0.5", "epochs": "4", "patches_per_epoch": "240"}


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_trains_resumes_registers_and_predicts(fresh: Project, backend: str) -> None:
    require_module(backend, "bench")
    fresh.set(**{f"train__{key}": value for key, value in VALUES.items()}, train__precision="float32")
    fresh.run("dvc", "repro", KERAS_BACKEND=backend)
    assert store(fresh).get_model_version_by_alias("mitoflow", "champion")
    undisturbed = outputs(fresh)["models/unet.keras"]

    forget(fresh, "train")
    with fresh.started("python", "-m", "mitoflow.stages", "train", KERAS_BACKEND=backend) as training:
        until(lambda: has_progress(fresh, "train"))
        fresh.signal(training, signal.SIGKILL)
    fresh.run("dvc", "repro", "-s", "train", KERAS_BACKEND=backend)
    assert outputs(fresh)["models/unet.keras"] == undisturbed
    trainings = [run for run in runs(fresh) if run.data.tags["mitoflow.stage"] == "train"]
    assert [run.info.status for run in trainings] == ["FINISHED", "FINISHED"], "the second one was resumed"

    masks = {}
    for name in (backend, "tensorflow"):
        command = ("mitoflow", "predict", "data/test/phantom/images/phantom.tif", f"{name}.tif", "--model", "champion")
        fresh.run(*command, KERAS_BACKEND=name)
        masks[name] = tifffile.imread(fresh.folder / f"{name}.tif")
    assert 0.01 < (masks[backend] > 0).mean() < 0.5
    assert np.mean(masks[backend] != masks["tensorflow"]) < 1e-4

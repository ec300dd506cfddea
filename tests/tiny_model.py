"""A tiny model in files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from mitoflow.core import files, provenance
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.models import unet


def write_model(folder: Path, settings: Settings, images: np.ndarray) -> None:
    """Write a tiny untrained U-Net in float32 and its settings into a folder, which becomes a project.

    Noise predicts as noise: the threshold lies where half of the images (Z, Y, X) is mitochondrion.
    """
    (folder / "params.yaml").write_text("{}\n")
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    network = unet.build_unet(depth=1, base_width=2, channels=2 * settings.context + 1)
    unet.save_model(network, folder / "unet.keras")
    middle = float(np.median(Predictor(network, settings).probabilities(images)))
    replace(settings, threshold=middle).write(folder / "inference.yaml")


def ship_model(folder: Path, sets: str) -> None:
    """Make a folder with the files of `write_model` one of the models that ship, trained on these sets."""
    files.write_yaml(folder / "lineage.yaml", {"data": {}, "code": {}, "dataset": {}, "params": {"data.name": sets}})
    digest = provenance.file_sha256(folder / "unet.keras")
    evaluation = Evaluation(digest, "a" * 64, ["cell"], [[1, 0, 0, 1]], block=1, resamples=1, seed=1)
    evaluation.write(folder / "evaluation.json")

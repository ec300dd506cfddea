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
    network = unet.with_contacts(network) if settings.contacts else network
    unet.save_model(network, folder / "unet.keras")
    middle = float(np.median(Predictor(network, settings).probabilities(images)))
    replace(settings, threshold=middle).write(folder / "inference.yaml")


def ship_model(folder: Path, sets: str) -> None:
    """Make a folder with the files of `write_model` one of the models that ship, trained on these sets."""
    files.write_yaml(folder / "lineage.yaml", {"data": {}, "code": {}, "dataset": {}, "params": {"data.name": sets}})
    digest = provenance.file_sha256(folder / "unet.keras")
    evaluation = Evaluation(digest, "a" * 64, ["cell"], [[1, 0, 0, 1]], block=1, resamples=1, seed=1)
    evaluation.write(folder / "evaluation.json")


def network_of_brightness() -> keras.Model:
    """Return a network with contacts: above 77 there are mitochondria, and above 204 two of them touch."""
    keras.config.set_dtype_policy("float32")
    inputs = keras.Input((None, None, 1))
    network = unet.with_contacts(keras.Model(inputs, keras.layers.Conv2D(1, 1, name="logits")(inputs)))
    for name, darkest in (("logits", 0.3), ("contact_logits", 0.8)):
        network.get_layer(name).set_weights([np.full((1, 1, 1, 1), 100), np.full(1, -100 * darkest)])
    return network


def two_that_touch(depth: int = 1) -> np.ndarray:
    """Return slices (Z, Y, X) uint8 for `network_of_brightness`: a bar of 10 x 40, and a line across its middle."""
    stack = np.zeros((depth, 80, 100), np.uint8)
    stack[:, 30:40, 30:70] = 150
    stack[:, 30:40, 49:51] = 255
    return stack

"""Parts that several tests use."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from mitoflow import unet
from mitoflow.inference import Predictor, Settings

PATIENCE = 120  # seconds; two workers share the machine


def write_model(folder: Path, settings: Settings, images: np.ndarray) -> None:
    """Write a tiny U-Net in float32 that learned nothing, and its settings, into a folder that is a project.

    Noise predicts as noise: the threshold lies where half of the images (Z, Y, X) is mitochondrion.
    """
    (folder / "params.yaml").touch()
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    network = unet.build_unet(depth=1, base_width=2, channels=2 * settings.context + 1)
    unet.save_model(network, folder / "unet.keras")
    middle = float(np.median(Predictor(network, settings).probabilities(images)))
    replace(settings, threshold=middle).write(folder / "inference.yaml")


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def until(true: Callable[[], object], why: Callable[[], object] = str) -> None:
    """Wait until something is true; `why` says what is the case where it does not become so."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, why()
        time.sleep(0.1)

"""The network of a trained model, and which engine runs it."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mitoflow.inference import openvino_network
from mitoflow.inference.openvino_network import OpenVinoNetwork
from mitoflow.inference.settings import Settings

NVIDIA = Path("/proc/driver/nvidia")  # is there while the driver of an NVIDIA GPU is loaded


class Network(Protocol):
    """A network that predicts: a `keras.Model`, or an `OpenVinoNetwork`."""

    def predict_on_batch(self, x: np.ndarray) -> Any:
        """Return logits (N, Y, X, outputs) for (N, Y, X, C) float32 in [0, 1]; see `Settings.outputs`."""


def read_network(path: Path, settings: Settings) -> Network:
    """Read a network that is to predict with these settings.

    OpenVINO runs it on the CPU. Keras does where there is an NVIDIA GPU or ``KERAS_BACKEND`` is set, and where OpenVINO
    is not installed or does not know a layer.

    Raises
    ------
    InputError
        The file is missing or broken, or the network is not of the kind that mitoflow trains.
    """
    if "KERAS_BACKEND" not in os.environ and not NVIDIA.exists() and find_spec("openvino"):
        with suppress(Exception):  # Keras runs any network, and says in one line what is wrong with a file
            return openvino_network.read(path, settings)
    from mitoflow.inference import keras_network  # imports Keras

    network: Network = keras_network.read(path, settings)
    return network


def prepared(network: Network) -> Network:
    """Return a network that predicts the same, faster where that can be."""
    if isinstance(network, OpenVinoNetwork):
        return network
    from mitoflow.inference import keras_network  # imports Keras

    folded: Network = keras_network.prepared(network)
    return folded


def engine(network: Network) -> str:
    """Return what runs a network, as a message names it."""
    if isinstance(network, OpenVinoNetwork):
        return "OpenVINO"
    from keras import backend

    return f"Keras on {backend.backend()}"

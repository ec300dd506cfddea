"""Bounds on `.keras` archives, checked before Keras takes memory for what they announce.

An archive has a configuration in JSON, from which Keras builds the network with all its weights, and HDF5 with the
values of these weights. A configuration of a kilobyte can ask for weights of gigabytes.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import keras

from mitoflow.errors import InputError

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
LARGEST_CONFIG = 2**20  # bytes: more than a thousand layers
EXPANSION = 10  # times the bytes of a file that it may unpack to; Keras does not compress
REMEDY = "train the model again or take another file"


def require_bounded(path: Path) -> None:
    """Refuse an archive that needs far more memory than it has bytes.

    Raises
    ------
    InputError
        It unpacks to much more than its size, or its configuration is large, or asks for more weights than there are.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        most = EXPANSION * path.stat().st_size + LARGEST_CONFIG
        if unpacked > most:
            raise InputError(path, f"an archive that unpacks to {unpacked} bytes", f"at most {most}", REMEDY)
        if (length := archive.getinfo(CONFIG).file_size) > LARGEST_CONFIG:
            raise InputError(path, f"a {CONFIG} of {length} bytes", f"at most {LARGEST_CONFIG}", REMEDY)
        config, weights = archive.read(CONFIG), archive.read(WEIGHTS)
    stored, size = _stored(weights)
    if size > EXPANSION * len(weights):
        found = f"arrays of {size} bytes in a {WEIGHTS} of {len(weights)}"
        raise InputError(path, found, "arrays that are there as a whole", REMEDY)
    with ThreadPoolExecutor(1) as thread:
        announced = thread.submit(_announced, config).result()
    if announced > stored:
        raise InputError(path, f"a network of {announced} weights", f"the {stored} of its {WEIGHTS}", REMEDY)


def _stored(weights: bytes) -> tuple[int, int]:
    """Return how many values HDF5 announces, and how many bytes these have; no array is read."""
    arrays: list[h5py.Dataset] = []
    with h5py.File(io.BytesIO(weights)) as file:
        file.visititems(lambda _, each: arrays.append(each) if isinstance(each, h5py.Dataset) else None)
        return sum(array.size for array in arrays), sum(array.nbytes for array in arrays)


def _announced(config: bytes) -> int:
    """Return how many weights a network has.

    In a stateless scope Keras builds a network whose variables have shapes and no values. Keras keeps a list of them,
    one for each thread, to give them values later; so this runs in a thread that ends with it.
    """
    described: dict[str, Any] = json.loads(config) | {"compile_config": None}
    with keras.StatelessScope(initialize_variables=False):
        network = keras.saving.deserialize_keras_object(described, safe_mode=True)
        return sum(math.prod(variable.shape) for variable in network.variables)

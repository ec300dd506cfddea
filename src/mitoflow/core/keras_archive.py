"""The contents of `.keras` archives, read within bounds and without Keras.

An archive has a configuration in JSON, which describes the network, and HDF5 with the values of its weights. Both may
announce far more than they hold.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py

from mitoflow.errors import InputError

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
LARGEST_CONFIG = 2**20  # bytes: more than a thousand layers
EXPANSION = 10  # times the bytes of a file that it may unpack to; Keras does not compress
REMEDY = "train the model again or take another file"


@dataclass(frozen=True)
class KerasArchive:
    """What is in a ``.keras`` file.

    Attributes
    ----------
    config
        JSON, from which Keras builds the network.
    weights
        HDF5 with the values of its weights.
    stored
        How many values the HDF5 announces.
    """

    config: bytes
    weights: bytes
    stored: int


def read(path: Path) -> KerasArchive:
    """Return what is in an archive; no array of its weights is read.

    Raises
    ------
    InputError
        It unpacks to much more than its size, or its configuration is large, or its arrays are not there as a whole.
    zipfile.BadZipFile, KeyError, OSError
        It is no archive of Keras, or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        most = EXPANSION * path.stat().st_size + LARGEST_CONFIG
        if unpacked > most:
            raise InputError(path, f"an archive that unpacks to {unpacked} bytes", f"at most {most}", REMEDY)
        if (length := archive.getinfo(CONFIG).file_size) > LARGEST_CONFIG:
            raise InputError(path, f"a {CONFIG} of {length} bytes", f"at most {LARGEST_CONFIG}", REMEDY)
        config, weights = archive.read(CONFIG), archive.read(WEIGHTS)
    stored, size = _announced(weights)
    if size > EXPANSION * len(weights):
        found = f"arrays of {size} bytes in a {WEIGHTS} of {len(weights)}"
        raise InputError(path, found, "arrays that are there as a whole", REMEDY)
    return KerasArchive(config, weights, stored)


def _announced(weights: bytes) -> tuple[int, int]:
    """Return how many values HDF5 announces, and how many bytes these have."""
    arrays: list[h5py.Dataset] = []
    with h5py.File(io.BytesIO(weights)) as file:
        file.visititems(lambda _, each: arrays.append(each) if isinstance(each, h5py.Dataset) else None)
        return sum(array.size for array in arrays), sum(array.nbytes for array in arrays)

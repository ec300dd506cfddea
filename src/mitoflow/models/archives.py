"""Bounds on `.keras` archives, checked before Keras takes memory for what they announce.

A configuration of a kilobyte can ask for weights of gigabytes.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras

from mitoflow.core import keras_archive
from mitoflow.core.keras_archive import REMEDY, WEIGHTS
from mitoflow.errors import InputError


def require_bounded(path: Path) -> None:
    """Refuse an archive that needs far more memory than it has bytes.

    Raises
    ------
    InputError
        As `mitoflow.core.keras_archive.read` does, or its configuration asks for more weights than there are.
    """
    archive = keras_archive.read(path)
    with ThreadPoolExecutor(1) as thread:
        announced = thread.submit(_announced, archive.config).result()
    if announced > archive.stored:
        raise InputError(path, f"a network of {announced} weights", f"the {archive.stored} of its {WEIGHTS}", REMEDY)


def _announced(config: bytes) -> int:
    """Return how many weights a network has.

    In a stateless scope Keras builds a network whose variables have shapes and no values. Keras keeps a list of them,
    one for each thread, to give them values later; so this runs in a thread that ends with it.
    """
    described: dict[str, Any] = json.loads(config) | {"compile_config": None}
    with keras.StatelessScope(initialize_variables=False):
        network = keras.saving.deserialize_keras_object(described, safe_mode=True)
        return sum(math.prod(variable.shape) for variable in network.variables)

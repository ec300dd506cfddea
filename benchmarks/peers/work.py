"""What a tool is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.parts import Parts


@dataclass(frozen=True)
class Work:
    """One training and prediction.

    Attributes
    ----------
    parts
        What trains and what tests.
    folder
        Where the tool may write; empty.
    environments
        The virtual environments of the tools.
    seconds
        The budget: wall-clock time of the command that trains, from its start to its end.
    seed
        Of the training.
    """

    parts: Parts
    folder: Path
    environments: Path
    seconds: float
    seed: int


@dataclass(frozen=True)
class Found:
    """What a tool made of it.

    Attributes
    ----------
    masks
        ``(Z, Y, X)`` bool, of the slices that test.
    version
        Of the tool.
    length
        Of the training, in words.
    training_seconds, prediction_seconds
        Wall-clock time of the command that trained, and of the one that predicted.
    peak_mib
        The largest memory of all processes of a command at one moment.
    lines
        Of configuration that a person writes.
    """

    masks: NDArray[np.bool_]
    version: str
    length: str
    training_seconds: float
    prediction_seconds: float
    peak_mib: float
    lines: int

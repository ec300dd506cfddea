"""What makes any two models comparable later: the counts of each on the same test slices."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mitoflow import metrics
from mitoflow.errors import InputError
from mitoflow.metrics import Interval


@dataclass(frozen=True)
class Evaluation:
    """Whole-slice confusion counts of one model on one test part.

    Attributes
    ----------
    model_sha256
        Of the ``.keras`` file.
    test_hash
        Of the test images and masks: only models that were evaluated on the same ones can be compared.
    stacks
        For each slice the stack that it belongs to.
    counts
        For each slice its true positives, false positives, false negatives and true negatives, in pixels.
    block, resamples, seed
        Of the block bootstrap; `mitoflow.metrics.bootstrap_interval` says what they mean.
    """

    model_sha256: str
    test_hash: str
    stacks: list[str]
    counts: list[list[int]]
    block: int
    resamples: int
    seed: int

    def write(self, path: Path) -> None:
        """Write the evaluation as JSON, the same bytes for the same evaluation."""
        path.write_text(self._json(), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Read what `write` wrote.

        Raises
        ------
        InputError
            The file is missing or no evaluation.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(path, error, "an evaluation", "run `dvc repro evaluate` or `dvc pull`") from None

    @property
    def sha256(self) -> str:
        """Digest of everything in it."""
        return hashlib.sha256(self._json().encode()).hexdigest()

    def interval(self, score: str) -> Interval:
        """Return one of `mitoflow.metrics.SCORES` with its 95 % interval."""
        return metrics.bootstrap_interval(self._array(), metrics.SCORES[score], *self._bootstrap())

    def better_by(self, other: Evaluation) -> Interval:
        """Return by how much its Dice is above that of ``other`` on the same slices, with the 95 % interval."""
        return metrics.paired_dice_difference(self._array(), other._array(), *self._bootstrap())

    def _bootstrap(self) -> tuple[int, int, int, list[str]]:
        return self.block, self.resamples, self.seed, self.stacks

    def _array(self) -> metrics.Counts:
        return np.array(self.counts, np.int64).reshape(-1, 4)

    def _json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True) + "\n"

"""The counts of a model on the test slices, by which any two models can be compared later."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mitoflow.config.params import Bootstrap
from mitoflow.errors import InputError
from mitoflow.evaluation import boundary, metrics
from mitoflow.evaluation.bootstrap import Interval, bootstrap_interval, paired_difference
from mitoflow.inference import model_files

if TYPE_CHECKING:
    from mitoflow.inference.trained_model import TrainedModel  # imports Keras

RECORDED: tuple[metrics.Counted, ...] = ("pixels", "boundaries")  # of the scores that two models are compared by


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
        Of the block bootstrap; `mitoflow.evaluation.bootstrap.bootstrap_interval` says what they mean.
    boundaries
        For each slice its counts by `mitoflow.evaluation.boundary.COLUMNS`; empty where they were not counted.
    """

    model_sha256: str
    test_hash: str
    stacks: list[str]
    counts: list[list[int]]
    block: int
    resamples: int
    seed: int
    boundaries: list[list[int]] = field(default_factory=list)

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

    @classmethod
    def of(cls, model: TrainedModel) -> Evaluation | None:
        """Return what a model did on the test part; None where that was left behind, or is of another model."""
        path = model.folder / model_files.EVALUATION
        measured = cls.read(path) if path.is_file() else None
        return measured if measured and measured.model_sha256 == model.origin["model_sha256"] else None

    @property
    def sha256(self) -> str:
        """Digest of everything in it."""
        return hashlib.sha256(self._json().encode()).hexdigest()

    @property
    def scores(self) -> list[str]:
        """The names of those `metrics.SCORES` for which it has counts."""
        return [*metrics.scores_of(*(RECORDED if self.boundaries else RECORDED[:1]))]

    def interval(self, score: str) -> Interval:
        """Return one of `scores` with its 95 % interval."""
        return bootstrap_interval(self._array(score), metrics.SCORES[score], *self._bootstrap())

    def better_by(self, other: Evaluation, bootstrap: Bootstrap, score: str = "dice") -> Interval:
        """Return by how much one of the `scores` of both is above that of ``other``, with the 95 % interval.

        Both were made on the same slices: `test_hash` is the same. The bootstrap is of neither, so that no
        model chooses its own interval.
        """
        ours, theirs = self._array(score), other._array(score)
        drawn = (bootstrap.block, bootstrap.resamples, bootstrap.seed, self.stacks)
        return paired_difference(ours, theirs, metrics.SCORES[score], *drawn)

    def _bootstrap(self) -> tuple[int, int, int, list[str]]:
        return self.block, self.resamples, self.seed, self.stacks

    def _array(self, score: str) -> metrics.Counts:
        of_boundaries = metrics.SCORES[score].counted == "boundaries"
        rows, columns = (self.boundaries, len(boundary.COLUMNS)) if of_boundaries else (self.counts, 4)
        return np.array(rows, np.int64).reshape(-1, columns)

    def _json(self) -> str:
        values = {key: value for key, value in asdict(self).items() if key != "boundaries" or value}
        return json.dumps(values, sort_keys=True) + "\n"

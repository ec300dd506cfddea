"""The counts of a model on the test slices, by which any two models can be compared later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mitoflow.config.params import Bootstrap
from mitoflow.core import files
from mitoflow.data.masks import Rule
from mitoflow.errors import InputError
from mitoflow.evaluation import boundary, metrics
from mitoflow.evaluation.bootstrap import Interval, bootstrap_interval, paired_difference
from mitoflow.inference import model_files

if TYPE_CHECKING:
    from mitoflow.inference.trained_model import TrainedModel  # imports what predicts


RECORDED: tuple[metrics.Counted, ...] = ("pixels", "boundaries")  # of the scores that two models are compared by


@dataclass(frozen=True)
class Evaluation:
    """Whole-slice confusion counts of one model on one test part.

    Attributes
    ----------
    model_sha256
        Of the ``.keras`` file.
    test_hash
        Of the test images and masks: only models that were evaluated on the same ones can be compared. Of several sets
        it is a digest of `test_hashes`.
    stacks
        For each slice the stack that it belongs to.
    counts
        For each slice its true positives, false positives, false negatives and true negatives, in pixels.
    block, resamples, seed
        Of the block bootstrap; `mitoflow.evaluation.bootstrap.bootstrap_interval` says what they mean.
    boundaries
        For each slice its counts by `mitoflow.evaluation.boundary.COLUMNS`; empty where they were not counted.
    datasets
        For each slice the name of the set that it belongs to; empty where there is one set.
    test_hashes
        Of each set, by name, the digest of its test images and masks: the `test_hash` that it has alone. Empty where
        there is one set.
    instances
        The section ``instances`` of ``params.yaml``, on which scores in ``metrics.json`` depend that have no counts
        here. Empty where it was not recorded.
    """

    model_sha256: str
    test_hash: str
    stacks: list[str]
    counts: list[list[int]]
    block: int
    resamples: int
    seed: int
    boundaries: list[list[int]] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    test_hashes: dict[str, str] = field(default_factory=dict)
    instances: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_sets(cls, sets: Mapping[str, Evaluation]) -> Evaluation:
        """Return the evaluation over all sets, from that of each by its name; of one set it is the same.

        They are of one model, and of one bootstrap.
        """
        first, *others = sets.values()
        if not others:
            return first
        hashes = {name: each.test_hash for name, each in sets.items()}
        return replace(
            first,
            test_hash=files.short_digest(hashes),
            stacks=[stack for each in sets.values() for stack in each.stacks],
            counts=[row for each in sets.values() for row in each.counts],
            boundaries=[row for each in sets.values() for row in each.boundaries],
            datasets=[name for name, each in sets.items() for _ in each.stacks],
            test_hashes=hashes,
        )

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

    @cached_property
    def sets(self) -> dict[str, Evaluation]:
        """The evaluation of each set by its name, which is empty where there is one set."""
        if not self.datasets:
            return {"": self}
        return {name: self._of_set(name, self.test_hashes[name]) for name in dict.fromkeys(self.datasets)}

    def _of_set(self, name: str, digest: str) -> Evaluation:
        rows = [row for row, dataset in enumerate(self.datasets) if dataset == name]
        return replace(
            self,
            test_hash=digest,
            stacks=[self.stacks[row] for row in rows],
            counts=[self.counts[row] for row in rows],
            boundaries=[self.boundaries[row] for row in rows] if self.boundaries else [],
            datasets=[],
            test_hashes={},
        )

    def shared_sets(self, other: Evaluation) -> dict[str, tuple[Evaluation, Evaluation]]:
        """Return the sets whose test images and masks are the same in both, by name: this evaluation and the other.

        A set that is the only one of this evaluation has the name that the other has for it.
        """
        theirs = {each.test_hash: (name, each) for name, each in other.sets.items()}
        return {
            name or theirs[ours.test_hash][0]: (ours, theirs[ours.test_hash][1])
            for name, ours in self.sets.items()
            if ours.test_hash in theirs
        }

    @property
    def headline(self) -> str:
        """Dice and IoU on the test part, in a line."""
        return f"Dice {self.interval('dice')}, IoU {self.interval('iou')} on the test part"

    @property
    def scores(self) -> list[str]:
        """The names of those `metrics.SCORES` for which it has counts."""
        return [*metrics.scores_of(*(RECORDED if self.boundaries else RECORDED[:1]))]

    def interval(self, score: str) -> Interval:
        """Return one of `scores` with its 95 % interval; of several sets, the mean of theirs."""
        return bootstrap_interval(
            self._array(score),
            metrics.SCORES[score],
            self.block,
            self.resamples,
            self.seed,
            self.stacks,
            self.datasets or None,
            self._looked_at,
        )

    def better_by(self, other: Evaluation, bootstrap: Bootstrap, score: str = "dice", comparisons: int = 1) -> Interval:
        """Return by how much one of the `scores` of both is above that of ``other``, with the 95 % interval.

        Both were made on the same slices: `test_hash` is the same; of several sets it is the mean of their differences.
        The bootstrap is of neither, so that no model chooses its own interval. Of several ``comparisons``, the interval
        is wider: see `mitoflow.evaluation.bootstrap.paired_difference`.
        """
        return paired_difference(
            self._array(score),
            other._array(score),
            metrics.SCORES[score],
            bootstrap.block,
            bootstrap.resamples,
            bootstrap.seed,
            self.stacks,
            self.datasets or None,
            comparisons,
            self._looked_at,
        )

    @property
    def _looked_at(self) -> list[bool]:
        """Whether anybody looked at a pixel of each slice."""
        return [any(row) for row in self.counts]

    def _array(self, score: str) -> metrics.Counts:
        of_boundaries = metrics.SCORES[score].counted == "boundaries"
        rows, columns = (self.boundaries, len(boundary.COLUMNS)) if of_boundaries else (self.counts, 4)
        return np.array(rows, np.int64).reshape(-1, columns)

    def _json(self) -> str:
        optional = ("boundaries", "datasets", "test_hashes", "instances")
        values = {key: value for key, value in asdict(self).items() if key not in optional or value}
        return json.dumps(values, sort_keys=True) + "\n"


def hash_sets(part: Path, rules: Mapping[str, Rule]) -> dict[str, str]:
    """Return the `Evaluation.test_hash` of each set that has a test part.

    Parameters
    ----------
    part
        ``data/test``.
    rules
        How the masks of each set are read, by its name: the same masks are other truth by another rule.
    """
    return {name: files.short_digest(rule, part / name) for name, rule in rules.items() if (part / name).is_dir()}

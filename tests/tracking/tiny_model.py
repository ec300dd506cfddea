"""A packed model of a few bytes: the registry decides by the evaluation beside it, without TensorFlow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mlflow.models import Model

from mitoflow.core import provenance
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.evaluation.verdict import Verdict
from mitoflow.inference import model_files
from mitoflow.tracking import registry, runs, version_tags

WEIGHTS = Path("packed/artifacts") / model_files.WEIGHTS


def write() -> None:
    """Write the model into ``packed/``."""
    WEIGHTS.parent.mkdir(parents=True)
    WEIGHTS.write_bytes(b"weights")
    WEIGHTS.with_name(model_files.SETTINGS).touch()
    Model().save("packed/MLmodel")


def measured(right: int, luck: int = 0, test_hash: str = "a" * 64) -> Evaluation:
    """Return counts of forty slices of 1000 foreground pixels, of which about `right` are found."""
    found = right + np.random.default_rng(luck).integers(-50, 50, 40)
    counts = [[int(tp), 50, int(1000 - tp), 9000] for tp in found]
    return Evaluation(
        provenance.file_sha256(WEIGHTS), test_hash, ["stack"] * 40, counts, block=5, resamples=200, seed=1
    )


def report(run: runs.Run, evaluation: Evaluation) -> dict[str, str]:
    """Report what a stage does, with the packed model; return the tags of the version."""
    run.params({"train": {"epochs": 3}})
    run.metrics({"loss": 0.5})
    evaluation.write(WEIGHTS.with_name(model_files.EVALUATION))
    tags = version_tags.of(run.key, run.key, evaluation)
    run.model(Path("packed"), tags)
    return tags


def register(right: int, key: str | None = None, luck: int = 0, test_hash: str = "a" * 64) -> Verdict | None:
    """Register a model that finds about `right` of 1000 pixels; None where MLflow did not take it."""
    with runs.start("train", "unet", key=key) as run:
        tags = report(run, measured(right, luck, test_hash))
        return registry.find_verdict(tags) if run.flush() else None

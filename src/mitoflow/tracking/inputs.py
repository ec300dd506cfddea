"""Dataset inputs of MLflow: the patches that a fit reads, and what a run has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from mlflow.entities import DatasetInput, Run

from mitoflow.data.patches import PatchStore


class Input(NamedTuple):
    """A dataset that a run reads; `mitoflow.tracking.runs.Run.dataset` takes these values."""

    name: str
    source: str
    digest: str
    context: str
    profile: dict[str, Any]


def of_patches(name: str, folder: Path, store: PatchStore) -> list[Input]:
    """Return what both sides of the split hold of each set.

    Each has a digest of its own, because MLflow keeps one of several inputs with the same name and digest.

    Parameters
    ----------
    name
        What a single set is called; several have their own names.
    folder, store
        The patch store, and where it is.
    """
    sides = (("training", store.train), ("validation", store.validation))
    return [
        Input(
            name if len(store.train.sets) == 1 else dataset,
            str(folder),
            patches.digest_of(dataset)[:32],
            side,
            {"patches": len(patches.rows_of(dataset)), "size": store.size, "bit_depth": store.bit_depth},
        )
        for side, patches in sides
        for dataset in patches.sets
    ]


def of_run(run: Run) -> list[DatasetInput]:
    """Return the dataset inputs of a run."""
    return run.inputs.dataset_inputs if run.inputs else []

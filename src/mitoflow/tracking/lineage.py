"""The lineage of a model: the run that it comes from, digests, code, data and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from mitoflow.core import provenance
from mitoflow.errors import InputError
from mitoflow.tracking import inputs, places, registered_model, store, version_tags
from mitoflow.tracking.registered_model import Registered


def origin(what: str, name: str = "") -> dict[str, str]:
    """Return where a version, or the model in a ``.keras`` file, comes from: run, digests, lineage, data, parameters.

    A version is one of the registered model with that name, or else of that of this project.

    Raises
    ------
    InputError
        There is no such version or file, or MLflow does not know the file.
    """
    if what.isdecimal():
        with registered_model.opened(name) as model:
            return _origin(model.client, registered_model.get_version(model, int(what)))
    if not (path := Path(what)).is_file():
        raise InputError(path, "no such file", "a version number or a .keras file", "`mitoflow models` lists versions")
    digest = provenance.file_sha256(path)
    if not places.is_missing(places.uri()):
        with registered_model.opened() as model:
            if found := _origin_of_file(model, digest):
                return found
    remedy = "look in the store where it was trained, or register it with `mitoflow register`"
    raise InputError(path, f"SHA-256 {digest}, which is unknown", "a model that MLflow knows", remedy)


def of_evaluation(digest: str) -> dict[str, str]:
    """Return where the newest version with an evaluation comes from, by the evaluation's SHA-256; see `origin`.

    Raises
    ------
    InputError
        No version of the registered model of this project has that evaluation.
    """
    with registered_model.opened() as model:
        same = f"tags.`{version_tags.EVALUATION_SHA256}` = '{digest}'"
        if versions := store.search_versions(model.client, model.name, same):
            return _origin(model.client, max(versions, key=lambda version: int(version.version)))
    remedy = "run `mitoflow register`, or `mitoflow sync` if MLflow was away"
    raise InputError(f"model {model.name}", f"no version with the evaluation {digest}", "one that has it", remedy)


def _origin_of_file(model: Registered, digest: str) -> dict[str, str]:
    """Return where the model of that digest comes from, by its newest version or else its newest run."""
    same = f"tags.`{store.MODEL_SHA256_TAG}` = '{digest}'"
    versions = store.search_versions(model.client, model.name, same)
    for version in sorted(versions, key=lambda version: -int(version.version)):
        return _origin(model.client, version)
    experiments = [experiment.experiment_id for experiment in model.client.search_experiments()]
    for run in model.client.search_runs(experiments, same, max_results=1):
        return _facts(model.client, run, run.data.tags)
    return {}


def _origin(client: MlflowClient, version: ModelVersion) -> dict[str, str]:
    if not version.run_id:
        expected = "one that mitoflow registered"
        raise InputError(f"version {version.version}", "no run", expected, "look at it in the MLflow UI")
    known = {"version": str(version.version)}
    if (run := store.find_run(client, version.run_id)) is None:
        return known | {"run": version.run_id, "run_status": "deleted from MLflow for good"} | _of_tags(version.tags)
    return known | _facts(client, run, run.data.tags | version.tags)


def _of_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {"model_sha256": tags.get(store.MODEL_SHA256_TAG, ""), **provenance.from_tags(tags)}


def _facts(client: MlflowClient, run: Run, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the facts of a run, and of an evaluation also what is different in the training that it belongs to."""
    training = _training(client, run)
    known = _of_tags(tags)
    trained = provenance.from_tags(training.data.tags) if training else {}
    used: dict[str, set[str]] = {}
    for each in (*inputs.of_run(run), *(inputs.of_run(training) if training else ())):
        for tag in each.tags:
            used.setdefault(tag.value, set()).add(f"{each.dataset.name} {each.dataset.digest}")
    facts = {
        "run": run.info.run_id,
        "run_name": run.info.run_name or "",
        "training_run": training.info.run_id if training else "",
        **known,
        **{f"training_{key}": value for key, value in trained.items() if known.get(key) != value},
        **{f"dataset.{context}": ", ".join(sorted(datasets)) for context, datasets in sorted(used.items())},
        **{f"params.{key}": value for key, value in sorted(run.data.params.items())},
    }
    return {key: value for key, value in facts.items() if value}


def _training(client: MlflowClient, run: Run) -> Run | None:
    """Return the training that an evaluation belongs to; None for a training, and where it was removed."""
    run_id = run.data.tags.get(store.TRAINING_RUN_TAG)
    return store.find_run(client, run_id) if run_id else None

"""From the journal to MLflow, in a way that may be repeated.

Delivery is at least once, and MLflow ends up with every event exactly once, because taking one twice changes nothing: a
run is found by its key before it is created, points carry the time and the step at which they were measured, parameters
and tags repeat equal values, files overwrite themselves, and a version is found by its digests before it is made.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from PIL import Image

from mitoflow.core import workspace
from mitoflow.errors import InputError
from mitoflow.tracking import local_store, naming, places, registry, store
from mitoflow.tracking.journal import Event, Journal

#: Of an experiment that has none of its own. The first one says of what kind it is; which view MLflow opens depends on
#: the address, too, see `mitoflow ui`.
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "best_val_dice",  # the objective of a study: comparisons open on it
    MLFLOW_RUN_NOTE: (  # which is the tag of an experiment's description, too
        "Mitochondria in electron-microscopy stacks. Each time a stage of `dvc.yaml` runs is a run here, and the "
        "trials of a study are below it. The scores of an evaluation begin with `test/`."
    ),
}


@dataclass
class _Remote:
    """A run as MLflow knows it.

    Attributes
    ----------
    run_id, experiment_id
        MLflow's names for it.
    name
        What it is called.
    resumed
        Whether the run was there before its journal.
    points
        What a resumed run has: of each curve the latest value at each step.
    """

    run_id: str
    experiment_id: str
    name: str
    resumed: bool
    points: dict[str, dict[int, float]] = field(default_factory=dict)


class Delivery:
    """Sends the events of a journal to MLflow, in order.

    Attributes
    ----------
    outcomes
        A line about each model that was sent: its version, and what was decided about it.
    """

    def __init__(self, journal: Journal) -> None:
        self.outcomes: list[str] = []
        self._journal = journal
        self._remotes: dict[str, _Remote] = {}

    @functools.cached_property
    def uri(self) -> str:
        """The store that the journal is for."""
        return store.uri(next((event["store"] for event in self._journal.events()), None))

    def send(self) -> None:
        """Send what is unsent, and all of it again where someone deleted a run in MLflow: that makes the run anew.

        Raises
        ------
        InputError
            MLflow has the experiment, or the registered model, in a state that only a person can change.
        MlflowException, SQLAlchemyError, OSError
            What MLflow raises at the first event that it does not take.
        """
        for event, position in self._journal.unsent():
            try:
                self._take(store.client(self.uri), event)
            except MlflowException:
                if not self._is_deleted(event["run"]):
                    raise
                self._remotes.clear()
                self.outcomes.clear()
                self._journal.mark_sent(0)
                return self.send()
            self._journal.mark_sent(position)

    def _is_deleted(self, key: str) -> bool:
        """Return whether a run that was there is deleted now."""
        if (known := self._remotes.get(key)) is None:
            return False
        try:
            run = store.client(self.uri).get_run(known.run_id)
        except MlflowException as error:
            return str(error.error_code) == "RESOURCE_DOES_NOT_EXIST"
        return bool(run.info.lifecycle_stage == LifecycleStage.DELETED)

    def _take(self, client: MlflowClient, event: Event) -> None:
        run = self._remote(client, event["run"])
        match event["event"]:
            case "start":
                if run.resumed:
                    client.update_run(run.run_id, status="RUNNING")
            case "params":
                _log_params(client, run, event["values"])
            case "metrics":
                new = _new_points(client, run, event)
                client.log_batch(run.run_id, metrics=new)
                for point in new:
                    run.points.get(point.key, {})[point.step] = point.value
            case "tags":
                client.log_batch(run.run_id, tags=[RunTag(key, value) for key, value in event["values"].items()])
            case "description":
                described = "\n\n".join([event["text"], *_links(client, run)])
                client.log_batch(run.run_id, tags=[RunTag(MLFLOW_RUN_NOTE, described)])
            case "artifact":
                client.log_artifact(run.run_id, str(self._journal.folder / event["path"]), event["folder"] or None)
            case "image":
                _log_image(client, run, self._journal.folder / event["path"], event)
            case "dataset":
                client.log_inputs(run.run_id, datasets=[_dataset(event)])
            case "model":
                folder = self._journal.folder / event["path"]
                self.outcomes.append(registry.admit(client, run.run_id, folder, event["tags"]))
            case "end":
                client.set_terminated(run.run_id, event["status"], event["time"])

    def _remote(self, client: MlflowClient, key: str) -> _Remote:
        if key not in self._remotes:
            start = self._journal.start_of(key)
            self._remotes[key] = _find(client, key) or self._create(client, start)
        return self._remotes[key]

    def _create(self, client: MlflowClient, start: Event) -> _Remote:
        tags = {**start["tags"], store.KEY_TAG: start["run"], store.STAGE_TAG: start["stage"]}
        training, study = (_find(client, start[each]) if start.get(each) else None for each in ("training", "study"))
        if training:
            tags[store.TRAINING_RUN_TAG] = training.run_id
        if study:
            tags[store.STUDY_RUN_TAG] = study.run_id
        parent_id = start.get("parent_run_id")
        if "parent" in start:
            parent = self._remote(client, start["parent"])
            experiment_id, parent_id = parent.experiment_id, parent.run_id
        elif training:
            experiment_id = training.experiment_id
        else:
            experiment_id = _experiment(client, start["experiment_id"], start["experiment"])
        if parent_id:
            tags[MLFLOW_PARENT_RUN_ID] = parent_id
        name = naming.of_training(start["name"], training.name) if training else start["name"]
        run = client.create_run(experiment_id, start["time"], tags, name)
        return _Remote(run.info.run_id, experiment_id, name, resumed=False)


def _links(client: MlflowClient, run: _Remote) -> Iterator[str]:
    """Yield links to the training and the study that a run belongs to, for its description on MLflow's page."""
    tags = client.get_run(run.run_id).data.tags
    for what, tag in (("Training", store.TRAINING_RUN_TAG), ("Study", store.STUDY_RUN_TAG)):
        if tag in tags and (other := store.find_run(client, tags[tag])):
            name = re.sub(r"([\[\]])", r"\\\1", other.info.run_name or "a run")
            page = f"#/experiments/{other.info.experiment_id}/runs/{other.info.run_id}{store.TRAINING_VIEW}"
            yield f"{what}: [{name}]({page})"


def _find(client: MlflowClient, key: str) -> _Remote | None:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, f"tags.`{store.KEY_TAG}` = '{key}'", max_results=1):
        return _Remote(run.info.run_id, run.info.experiment_id, run.info.run_name or "", resumed=True)
    return None


def _experiment(client: MlflowClient, chosen: str | None, name: str) -> str:
    """Return the id of the experiment with the chosen id, or else of that with the name, which is made where missing.

    In an SQLite file its artifacts go to ``mlruns/`` beside the file, and in another database to ``mlruns/`` of the
    main checkout; a server knows by itself where to.

    Raises
    ------
    InputError
        It was deleted, and MLflow lets no other one have its name.
    """
    found = client.get_experiment(chosen) if chosen else client.get_experiment_by_name(name)
    if found is None:
        file = places.file_of(client.tracking_uri)
        folder = file.parent if file else workspace.main_checkout()
        place = (folder / local_store.ARTIFACTS).as_uri() if store.is_database(client.tracking_uri) else None
        try:
            return client.create_experiment(name, place, EXPERIMENT_TAGS)
        except MlflowException:  # another process may have made it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == LifecycleStage.DELETED:
        remedy = f"`mlflow experiments restore -x {found.experiment_id}` brings it back; then run `mitoflow sync`"
        raise InputError(f"experiment {found.name}", "deleted in MLflow", "one that takes runs", remedy)
    for tag in EXPERIMENT_TAGS.keys() - found.tags.keys():  # of mitoflow 0.1, or of an admin who gives roles
        client.set_experiment_tag(found.experiment_id, tag, EXPERIMENT_TAGS[tag])
    return str(found.experiment_id)


def _log_params(client: MlflowClient, run: _Remote, values: Mapping[str, str]) -> None:
    """Log new parameters; one that the run has with another value, which MLflow forbids to change, becomes a tag."""
    known = client.get_run(run.run_id).data.params
    new = [Param(key, value) for key, value in values.items() if key not in known]
    changed = [RunTag(f"mitoflow.changed.{key}", v) for key, v in values.items() if known.get(key, v) != v]
    client.log_batch(run.run_id, params=new, tags=changed)


def _new_points(client: MlflowClient, run: _Remote, event: Event) -> list[Metric]:
    """Return the points of an event that are not what the run has already: a resumed stage repeats its last step."""
    points = []
    for key, value in event["values"].items():
        if run.resumed and key not in run.points:
            history = sorted(client.get_metric_history(run.run_id, key), key=lambda point: point.timestamp)
            run.points[key] = {point.step: point.value for point in history}
        if run.points.get(key, {}).get(event["step"]) != value:
            points.append(Metric(key, value, event["time"], event["step"]))
    return points


def _log_image(client: MlflowClient, run: _Remote, path: Path, event: Event) -> None:
    """Log a picture unless the run has it: MLflow gives each a name of its own, so a second time would double it."""
    key = re.sub(r"[^\w\-. ]", "_", event["name"], flags=re.ASCII)  # what MLflow allows, but for slashes
    begins = f"images/{key}+step+0+timestamp+{event['time']}+"
    if not any(file.path.startswith(begins) for file in client.list_artifacts(run.run_id, "images")):
        client.log_image(run.run_id, Image.open(path), key=key, step=0, timestamp=event["time"])


def _dataset(event: Event) -> DatasetInput:
    dataset = Dataset(
        name=event["name"],
        digest=event["digest"],
        source_type="local",
        source=json.dumps({"uri": event["source"]}),
        profile=json.dumps(event["profile"]),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, event["context"])])

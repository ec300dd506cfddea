"""Runs in MLflow, by way of the journal: nothing waits for a tracking server, and nothing is lost without one.

A `Run` writes events into its `Journal`. A thread sends them to MLflow, in order; what it could not send by the end of
the process stays on disk, and `sync` sends it later in the same way. Delivery is at least once, and MLflow ends up with
every event exactly once, because taking one twice changes nothing: a run is found by its key before it is created,
points carry the time and the step at which they were measured, parameters and tags repeat equal values, files overwrite
themselves, and a model version is found by its digests before it is made.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from tqdm import tqdm

from mitoflow import journal, lineage, workspace
from mitoflow.journal import Event, Journal

# MLflow reads some of these when it is imported. Its own retries take minutes; here the journal is what retries.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.store.db.db_types import DATABASE_ENGINES  # noqa: E402
from mlflow.tracking.context.registry import resolve_tags  # noqa: E402
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID  # noqa: E402

# It prints a traceback where the database is busy; the journal tries again, or says why not in one line.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

EXPERIMENT = "mitoflow"
KEY = "mitoflow.key"
STAGE = "mitoflow.stage"
MODEL_SHA256 = "mitoflow.model_sha256"

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between tries while MLflow does not answer
PATIENCE = 60.0  # seconds that the end of a stage waits for a server that is slow but answers
SAY_SO_AFTER = 30.0  # seconds without MLflow after which a person is told


def store_uri(recorded: str | None = None) -> str:
    """Return the URI of the MLflow store.

    ``MLFLOW_TRACKING_URI`` comes first, then what a journal ``recorded``, and then SQLite in the main checkout. A
    relative SQLite path counts from there too, because ``dvc exp run --temp`` works in a copy that is thrown away.
    """
    home = workspace.main_checkout()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or recorded or "sqlite:///mlflow.db"
    return re.sub(r"^sqlite:///(?!/)", f"sqlite:///{home}/", uri)


def client(uri: str | None = None) -> MlflowClient:
    """Return a client of the store at ``uri``, or at `store_uri`."""
    return _client(uri or store_uri())


@functools.cache
def _client(uri: str) -> MlflowClient:
    registry_uri = os.environ.get("MLFLOW_REGISTRY_URI") or uri
    if not _is_database(uri):
        return MlflowClient(uri, registry_uri)
    with only_one("store"):  # MLflow does not guard the making of its tables against a second process
        return MlflowClient(uri, registry_uri)


def _is_database(uri: str) -> bool:
    return urlsplit(uri).scheme.partition("+")[0] in DATABASE_ENGINES


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Let one process of this checkout at a time into the block."""
    with (workspace.state_dir() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def without_credentials(text: str) -> str:
    """Return ``text`` without the user names and passwords of URLs in it."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def reason(error: BaseException) -> str:
    """Say in a few words why MLflow did not do what it was asked: the first cause, without credentials."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    text = " ".join(str(error).split()) or type(error).__name__
    return without_credentials(text[:200])


def start(stage: str, name: str, *, key: str | None = None, tags: Mapping[str, str] | None = None) -> Run:
    """Start the run of a stage, or go on with the run ``key``.

    Returns at once, whether MLflow can be reached or not. With a known ``key`` the events join that run: the stage that
    began it sets it running again; another stage (evaluation of a training run) leaves its status and duration as they
    are and leaves its own status as the tag ``mitoflow.STAGE``. A new run carries the lineage of `lineage.current` as
    tags. Where ``mlflow run`` started the process, the run becomes a child of the project's run.

    Parameters
    ----------
    stage, name
        ``mitoflow.stage`` and the name of a new run.
    key
        Letters, digits, _ and -; unique among everyone who uses the store, so keep what `Run.key` gave.
    tags
        More tags for a new run.
    """
    key = key or uuid.uuid4().hex
    events = Journal.create(key)
    run = Run(_Sender(events), key)
    environment = os.environ.get
    run._record(
        "start",
        stage=stage,
        name=name,
        store=_without_userinfo(environment("MLFLOW_TRACKING_URI")),
        experiment=environment("MLFLOW_EXPERIMENT_NAME", EXPERIMENT),
        experiment_id=environment("MLFLOW_EXPERIMENT_ID"),
        parent_run_id=environment("MLFLOW_RUN_ID"),
        tags={**resolve_tags(), **lineage.tags(lineage.current()), **(tags or {})},
    )
    run._sender.start()
    return run


def _without_userinfo(uri: str | None) -> str | None:
    if not uri:
        return None
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


class Run:
    """A run in MLflow that can be reported to at any time; `start` makes one.

    As a context manager it ends as FINISHED, as FAILED when the block raises, and as KILLED when it is interrupted.

    Attributes
    ----------
    key
        Finds the run in MLflow (tag ``mitoflow.key``), now and later.
    """

    def __init__(self, sender: _Sender, key: str, parent: Run | None = None) -> None:
        self.key = key
        self._sender = sender
        self._parent = parent
        self._ended = False

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; sections become dotted keys. MLflow keeps the first value of a parameter."""
        self._record("params", values=_flat(values))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log one point of each curve, measured now. A point that a resumed run repeats is not doubled."""
        self._record("metrics", values={key: float(value) for key, value in values.items()}, step=step)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; the last value stays."""
        self._record("tags", values=dict(values))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a file or a folder as it is now, into ``folder`` of the run's artifacts."""
        self._record("artifact", path=self._sender.journal.keep(path), folder=folder)

    def dataset(self, name: str, source: str, digest: str, context: str, profile: Mapping[str, Any]) -> None:
        """Log what the run read, as MLflow's dataset input.

        Parameters
        ----------
        name, source
            As a person calls it, and where it is.
        digest
            Hash of the content, at most 36 characters; DVC's fits.
        context
            What for: ``training``, ``validation`` or ``test``.
        profile
            Facts worth seeing beside it, such as shapes and counts.
        """
        self._record("dataset", name=name, source=source, digest=digest, context=context, profile=dict(profile))

    def model(self, folder: Path, tags: Mapping[str, str]) -> None:
        """Register the packed model in ``folder``; `mitoflow.registry.register` calls this and is what you want."""
        self._record("model", path=self._sender.journal.keep(folder), tags=dict(tags))

    def produced(self, path: Path) -> None:
        """Remember that this run made the model file ``path``, so that `producer` finds the run."""
        digest = lineage.file_sha256(path)
        self.tags({MODEL_SHA256: digest})
        with workspace.replacing(_pointer(digest)) as new:
            new.write_text(self.key)

    def child(self, name: str, *, key: str | None = None, tags: Mapping[str, str] | None = None) -> Run:
        """Start a run nested under this one, or go on with the nested run ``key``."""
        child = Run(self._sender, key or uuid.uuid4().hex, self)
        stage = self._sender.journal.start_of(self.key)["stage"]
        child._record("start", stage=stage, name=name, parent=self.key, tags=dict(tags or {}))
        return child

    def flush(self) -> bool:
        """Wait until MLflow has everything; False as soon as it is clear that it will not take it now."""
        return self._sender.flush()

    def end(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED; ending it again does nothing."""
        if self._ended:
            return
        self._ended = True
        self._record("end", status=status)
        if self._parent is None:
            self._sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        self.end("KILLED" if interrupted else "FAILED" if kind else "FINISHED")

    def _record(self, event: str, **fields: Any) -> None:
        self._sender.journal.append({"event": event, "run": self.key, "time": int(time.time() * 1000), **fields})
        self._sender.wake()


def producer(path: Path) -> str | None:
    """Return the key of the run that made the model file ``path`` in this checkout, None where it was not made here."""
    try:
        return _pointer(lineage.file_sha256(path)).read_text()
    except FileNotFoundError:
        return None


def _pointer(digest: str) -> Path:
    return workspace.state_dir() / "runs" / digest


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat


@dataclass(frozen=True)
class Synced:
    """What `sync` did.

    Attributes
    ----------
    sent, left
        Events that MLflow took, and that are still on disk.
    live
        Journals of stages that are running now, which send for themselves.
    trouble
        Why something is left; empty where nothing is.
    """

    sent: int
    left: int
    live: int
    trouble: str


def sync() -> Synced:
    """Send what earlier processes could not, oldest first; runs that were cut off end as KILLED."""
    sent = left = live = 0
    troubles: dict[str, str] = {}  # by run: its later events must not overtake its earlier ones
    away: set[str] = set()
    for folder in journal.folders():
        try:
            events = Journal.adopt(folder)
        except BlockingIOError:
            live += 1
            continue
        except FileNotFoundError:
            continue
        delivery, key, before = _Delivery(events), journal.key_of(folder), journal.waiting(folder)
        if key not in troubles and delivery.uri not in away:
            try:
                delivery.send()
            except Exception as error:
                troubles[key] = f"{without_credentials(delivery.uri)}: {reason(error)}"
                if not _refused(error):
                    away.add(delivery.uri)
        after = journal.waiting(folder)
        events.close()
        sent, left = sent + before - after, left + after
    return Synced(sent, left, live, "; ".join(dict.fromkeys(troubles.values())))


def pending() -> int:
    """Return the number of events on disk that MLflow does not have yet."""
    return sum(journal.waiting(folder) for folder in journal.folders())


def _refused(error: Exception) -> bool:
    """Tell an answer that says no from no answer."""
    return isinstance(error, MlflowException) and error.get_http_status_code() < 500


class _Sender(threading.Thread):
    """Sends a journal while its process works, and tries again at growing intervals while MLflow is away."""

    def __init__(self, events: Journal) -> None:
        super().__init__(name="mitoflow tracking", daemon=True)
        self.journal = events
        self._delivery = _Delivery(events)
        self._earlier = [folder for folder in journal.folders(journal.key_of(events.folder)) if folder != events.folder]
        self._changed = threading.Condition()
        self._news = self._hurry = self._done = False
        self._tries = self._failed_try = 0
        self._trouble = "it is slow"
        self._away_since = self._told = 0.0

    def wake(self) -> None:
        """Say that the journal has grown."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def flush(self) -> bool:
        """Wait until all is sent; return False when a try that began after this call fails or `PATIENCE` is over."""
        with self._changed:
            begun = self._tries
            self._news = self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.journal.all_sent or self._failed_try > begun, PATIENCE)
            return self.journal.all_sent

    def close(self) -> None:
        """Flush, say what is left, and let the journal go."""
        if not self.flush():
            left = journal.waiting(self.journal.folder)
            self._say(f"{self._trouble}; {left} events are kept on disk, send them with `mitoflow sync`")
        with self._changed:
            self._done = True
            self._changed.notify_all()
        self.join(FIRST_PAUSE)  # no longer: a request may hang, and the process can end without it

    def run(self) -> None:
        """Send whenever there is news, until `close`."""
        pause = FIRST_PAUSE
        while self._wait_for_news():
            try:
                self._send()
            except Exception as error:
                self._failed(error)
                self._rest(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._succeeded()
                pause = FIRST_PAUSE
        self.journal.close()

    def _wait_for_news(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._news or self._done)
            self._news = False
            self._tries += 1
            return not self._done

    def _send(self) -> None:
        while self._earlier:
            try:
                earlier = Journal.adopt(self._earlier[0])
            except FileNotFoundError:
                pass  # `mitoflow sync` was faster
            else:
                with closing(earlier):
                    _Delivery(earlier).send()
            del self._earlier[0]
        self._delivery.send()

    def _failed(self, error: Exception) -> None:
        now = time.monotonic()
        with self._changed:
            self._trouble, self._failed_try, self._news = reason(error), self._tries, True
            self._changed.notify_all()
        self._away_since = self._away_since or now
        if now - self._away_since > SAY_SO_AFTER and not self._told:
            self._told = now
            self._say(f"{self._trouble}; the run goes on, its events are kept on disk meanwhile")

    def _succeeded(self) -> None:
        with self._changed:
            self._changed.notify_all()
        if self._told:
            self._say("answers again and has all events")
        self._away_since = self._told = 0.0

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._hurry or self._done, seconds)
            self._hurry = False

    def _say(self, text: str) -> None:
        tqdm.write(f"mitoflow: tracking: {without_credentials(self._delivery.uri)}: {text}", file=sys.stderr)


@dataclass
class _Remote:
    """A run as MLflow knows it.

    ``own`` tells whether the stage that reports is the one that began the run, ``resumed`` whether the run was there
    before its journal, and ``points`` the (step, value) of each curve that it had then.
    """

    run_id: str
    experiment_id: str
    own: bool
    resumed: bool
    points: dict[str, set[tuple[int, float]]] = field(default_factory=dict)


class _Delivery:
    """Sends the events of a journal to MLflow, in order, each in a way that may be repeated."""

    def __init__(self, events: Journal) -> None:
        self._journal = events
        self._remotes: dict[str, _Remote] = {}

    @functools.cached_property
    def uri(self) -> str:
        """The store that the journal is for."""
        return store_uri(next((event["store"] for event in self._journal.events()), None))

    def send(self) -> None:
        """Send what is unsent, and stop at the first event that MLflow does not take."""
        for event, position in self._journal.unsent():
            self._take(client(self.uri), event)
            self._journal.mark_sent(position)

    def _take(self, store: MlflowClient, event: Event) -> None:
        run = self._remote(store, event["run"])
        match event["event"]:
            case "start":
                if run.resumed and run.own:
                    store.update_run(run.run_id, status="RUNNING")
            case "params":
                self._params(store, run, event["values"])
            case "metrics":
                store.log_batch(run.run_id, metrics=self._points(store, run, event))
            case "tags":
                store.log_batch(run.run_id, tags=[RunTag(key, value) for key, value in event["values"].items()])
            case "artifact":
                store.log_artifact(run.run_id, str(self._journal.folder / event["path"]), event["folder"] or None)
            case "dataset":
                store.log_inputs(run.run_id, datasets=[_dataset(event)])
            case "model":
                from mitoflow import registry  # which needs this room for its client

                registry.admit(store, run.run_id, self._journal.folder / event["path"], event["tags"])
            case "end" if run.own:
                store.set_terminated(run.run_id, event["status"], event["time"])
            case "end":
                stage = self._journal.start_of(event["run"])["stage"]
                store.set_tag(run.run_id, f"mitoflow.{stage}", event["status"])

    def _remote(self, store: MlflowClient, key: str) -> _Remote:
        if key not in self._remotes:
            start = self._journal.start_of(key)
            self._remotes[key] = _find(store, key, start["stage"]) or self._create(store, start)
        return self._remotes[key]

    def _create(self, store: MlflowClient, start: Event) -> _Remote:
        tags = {**start["tags"], KEY: start["run"], STAGE: start["stage"]}
        if "parent" in start:
            parent = self._remote(store, start["parent"])
            experiment_id, parent_id = parent.experiment_id, parent.run_id
        else:
            experiment_id = start["experiment_id"] or _experiment(store, start["experiment"])
            parent_id = start["parent_run_id"]
        if parent_id:
            tags[MLFLOW_PARENT_RUN_ID] = parent_id
        run = store.create_run(experiment_id, start_time=start["time"], tags=tags, run_name=start["name"])
        return _Remote(run.info.run_id, experiment_id, own=True, resumed=False)

    def _params(self, store: MlflowClient, run: _Remote, values: Mapping[str, str]) -> None:
        """Log new parameters; one that the run has with another value, which MLflow forbids, becomes a tag."""
        known = store.get_run(run.run_id).data.params
        new = [Param(key, value) for key, value in values.items() if key not in known]
        changed = [RunTag(f"mitoflow.changed.{key}", v) for key, v in values.items() if known.get(key, v) != v]
        store.log_batch(run.run_id, params=new, tags=changed)

    def _points(self, store: MlflowClient, run: _Remote, event: Event) -> list[Metric]:
        """Return the points of an event that the run did not have before: a resumed stage repeats its last step."""
        points = []
        for key, value in event["values"].items():
            if run.resumed and key not in run.points:
                run.points[key] = {(p.step, p.value) for p in store.get_metric_history(run.run_id, key)}
            if (event["step"], value) not in run.points.get(key, ()):
                points.append(Metric(key, value, event["time"], event["step"]))
        return points


def _find(store: MlflowClient, key: str, stage: str) -> _Remote | None:
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    for run in store.search_runs(experiments, f"tags.`{KEY}` = '{key}'", max_results=1):
        return _Remote(run.info.run_id, run.info.experiment_id, own=run.data.tags.get(STAGE) == stage, resumed=True)
    return None


def _experiment(store: MlflowClient, name: str) -> str:
    """Return the id of an experiment, which is made where it is missing.

    In a database of this checkout its artifacts go to ``mlruns/`` beside it; a server knows by itself where to.
    """
    found = store.get_experiment_by_name(name)
    if found is None:
        place = (workspace.main_checkout() / "mlruns").as_uri() if _is_database(store.tracking_uri) else None
        try:
            return store.create_experiment(name, place)
        except MlflowException:  # another process made it meanwhile
            found = store.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id


def _dataset(event: Event) -> DatasetInput:
    dataset = Dataset(
        name=event["name"],
        digest=event["digest"],
        source_type="local",
        source=json.dumps({"uri": event["source"]}),
        profile=json.dumps(event["profile"]),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, event["context"])])

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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

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
            delivery = _Delivery(Journal.adopt(folder))
        except BlockingIOError:
            live += 1
            continue
        except FileNotFoundError:
            continue
        key, before = journal.key_of(folder), journal.waiting(folder)
        if key not in troubles and delivery.uri not in away:
            try:
                delivery.send()
            except Exception as error:
                troubles[key] = f"{without_credentials(delivery.uri)}: {reason(error)}"
                if not _refused(error):
                    away.add(delivery.uri)
        after = journal.waiting(folder)
        delivery.journal.close()
        sent, left = sent + before - after, left + after
    return Synced(sent, left, live, "; ".join(dict.fromkeys(troubles.values())))


def pending() -> int:
    """Return the number of events on disk that MLflow does not have yet."""
    return sum(journal.waiting(folder) for folder in journal.folders())


def _refused(error: Exception) -> bool:
    """Tell an answer that says no from no answer."""
    return isinstance(error, MlflowException) and error.get_http_status_code() < 500


class _Sender(threading.Thread):
    """Sends a journal to MLflow while its process works, and tries again at growing intervals while MLflow is away."""

    def __init__(self, events: Journal) -> None:
        super().__init__(name="mitoflow tracking", daemon=True)
        self.journal = events
        self._delivery = _Delivery(events)
        self._changed = threading.Condition()
        self._news = True
        self._hurry = False
        self._tries = 0
        self._failed_try = 0
        self._trouble: Exception | None = None
        self._done = False

    def wake(self) -> None:
        """Say that the journal has grown."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def flush(self) -> bool:
        """Wait until everything is sent, a try that began after this call failed, or `PATIENCE` is over."""
        with self._changed:
            self._hurry = self._news = True
            self._changed.notify_all()
            tries = self._tries
            self._changed.wait_for(lambda: self.journal.all_sent or self._failed_try > tries, PATIENCE)
            return self.journal.all_sent

    def close(self) -> None:
        """Flush, say what is left, and let the journal go."""
        sent = self.flush()
        with self._changed:
            self._done = True
            self._changed.notify_all()
        if not sent:
            left = journal.waiting(self.journal.folder)
            _say(f"{left} events {self._why()}; they are kept on disk, `mitoflow sync` sends them later")
        self.join(0 if sent ...)

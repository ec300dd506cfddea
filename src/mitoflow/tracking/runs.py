"""Runs that a stage reports to. They reach MLflow, but no stage waits for MLflow or fails without it.

A `Run` writes every event into its `Journal`, and a thread sends the journal to MLflow. What could not be sent by the
end of the process stays on disk, and `sync` sends it later in the same way. `mitoflow.tracking.delivery` explains why
no event is lost and none counts twice.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from mitoflow.config import sections
from mitoflow.core import files, provenance, workspace
from mitoflow.errors import InputError
from mitoflow.tracking import journal, store
from mitoflow.tracking.delivery import Delivery
from mitoflow.tracking.journal import Journal

EXPERIMENT = "mitoflow"

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between tries while MLflow does not answer
PATIENCE = 60.0  # seconds that the end of a stage waits for a server that is slow but answers
PATIENCE_WHEN_INTERRUPTED = 5.0  # the same for a stage that was interrupted, and may be killed soon
WARN_AFTER = 30.0  # seconds without MLflow before a message


def start(
    stage: str,
    name: str,
    *,
    key: str | None = None,
    tags: Mapping[str, str] | None = None,
    made_from: Mapping[str, str] | None = None,
    training: str | None = None,
    study: str | None = None,
) -> Run:
    """Start the run of a stage, or resume the run ``key``.

    Returns at once, whether MLflow can be reached or not. With a known ``key`` the events join that run, which runs
    again. A new run has its lineage as tags. If ``mlflow run`` started the process, it becomes a child of the project's
    run.

    Parameters
    ----------
    stage, name
        ``mitoflow.stage`` and the name of a new run.
    key
        Letters, digits, _ and -; unique among all who share the store, so pass what `Run.key` gave, or nothing.
    tags
        More tags for a new run.
    made_from
        The lineage of a new run; without it, that of this process: `mitoflow.core.provenance.current`.
    training
        Of an evaluation: the key of the run that trained the model. Both are in one experiment.
    study
        Of a training: the key of the study that found its values.
    """
    key = key or uuid.uuid4().hex
    run = Run(_Sender(Journal.create(key), training), key, training=training)
    given = os.environ.get
    run._record(
        "start",
        stage=stage,
        name=name,
        store=store.without_credentials(given("MLFLOW_TRACKING_URI", "")),
        experiment=given("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT,
        experiment_id=_chosen_experiment(),
        parent_run_id=given("MLFLOW_RUN_ID"),
        training=training,
        study=study,
        tags={**store.context(), **provenance.tags(made_from or provenance.current(stage)), **(tags or {})},
    )
    if not made_from:
        run._keep_changes()
    run._sender.start()
    return run


def _chosen_experiment() -> str | None:
    """Return the experiment of the environment; where none was chosen, `mlflow run` sets 0, MLflow's default."""
    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    return None if given == "0" else given


class Run:
    """A run in MLflow that can be reported to at any time; `start` makes one.

    As a context manager it ends as FINISHED, as FAILED when the block raises, and as KILLED when it is interrupted.

    Attributes
    ----------
    key
        Finds the run in MLflow (tag ``mitoflow.key``), now and later.
    training
        Of an evaluation: the key of the run that trained the model; None where this store or checkout knows none.
    has_metrics
        Whether this process has logged metrics to it.
    """

    def __init__(self, sender: _Sender, key: str, parent: Run | None = None, training: str | None = None) -> None:
        self.key = key
        self.training = training
        self.has_metrics = False
        self._sender = sender
        self._parent = parent
        self._ended = False

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; sections become dotted keys. MLflow keeps the first value of a parameter."""
        self._record("params", values=dotted(values))

    def metrics(self, values: Mapping[str, float], step: int = 0, when: float | None = None) -> None:
        """Log one point of each curve. A point that a resumed run repeats is not doubled.

        Parameters
        ----------
        values, step
            The points, by the names of the curves.
        when
            The time at which they were measured, in seconds since 1970; None for now.
        """
        numbers = {key: float(value) for key, value in values.items()}
        self._record("metrics", values=numbers, step=step, time=int(1000 * (time.time() if when is None else when)))
        self.has_metrics = True

    def describe(self, text: str) -> None:
        """Set the description, in Markdown; the last one stays. Links to training and study are added to it."""
        self._record("description", text=text)

    def image(self, name: str, png: bytes) -> None:
        """Log a picture, which MLflow's charts show beside those of the same name in other runs.

        Parameters
        ----------
        name
            Says what it shows; characters that MLflow does not allow become ``_``.
        png
            A PNG file.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            path.write_bytes(png)
            self._record("image", path=self._sender.journal.keep(path), name=name)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; the last value stays."""
        self._record("tags", values=dict(values))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a file or a folder as it is now, into ``folder`` of the run's artifacts."""
        self._record("artifact", path=self._sender.journal.keep(path), folder=folder)

    def dataset(self, name: str, source: str, digest: str, context: str, profile: Mapping[str, Any]) -> None:
        """Log what the run reads, as a dataset input of MLflow.

        Parameters
        ----------
        name, source
            Its name, and where it is.
        digest
            Hash of the content, at most 36 characters; DVC's fits.
        context
            What for: ``training``, ``validation`` or ``test``.
        profile
            Facts worth seeing beside it, such as shapes and counts.
        """
        self._record("dataset", name=name, source=source, digest=digest, context=context, profile=dict(profile))

    def model(self, folder: Path, tags: Mapping[str, str]) -> None:
        """Log the packed model in ``folder`` and make it a version; `mitoflow.tracking.registration` packs it."""
        self._record("model", path=self._sender.journal.keep(folder), tags=dict(tags))

    def produced(self, path: Path) -> None:
        """Remember that this run made the file ``path``, so that `producer` finds the run; a model becomes a tag."""
        digest = provenance.file_sha256(path)
        if path.suffix == ".keras":
            self.tags({store.MODEL_SHA256_TAG: digest})
        with files.replacing(_pointer(digest)) as new:
            new.write_text(self.key)

    def child(self, name: str, *, key: str | None = None, tags: Mapping[str, str] | None = None) -> Run:
        """Start a run nested under this one, or resume the nested run ``key``."""
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
            self._sender.close(PATIENCE_WHEN_INTERRUPTED if status == "KILLED" else PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        self.end("KILLED" if interrupted else "FAILED" if kind else "FINISHED")

    def _keep_changes(self) -> None:
        """Log how the working tree differs from its commit, so that `mitoflow checkout` can restore it."""
        if changes := provenance.changes():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / store.changes_file(hashlib.sha256(changes).hexdigest())
                file.write_bytes(changes)
                self.artifact(file, store.CHANGES)

    def _record(self, event: str, **fields: Any) -> None:
        self._sender.journal.append({"event": event, "run": self.key, "time": int(time.time() * 1000), **fields})
        self._sender.wake()


def producer(path: Path) -> str | None:
    """Return the key of the run that made the file ``path`` in this checkout, None where it was not made here."""
    try:
        return _pointer(provenance.file_sha256(path)).read_text()
    except FileNotFoundError:
        return None


def _pointer(digest: str) -> Path:
    return workspace.state_dir() / "runs" / digest


def dotted(values: Mapping[str, Any]) -> dict[str, str]:
    """Return parameters by dotted keys, as MLflow has them."""
    return {key: str(value) for key, value in sections.dotted(values).items()}


@dataclass(frozen=True)
class Synced:
    """What `sync` did.

    Attributes
    ----------
    sent, left
        Events that MLflow took, and that are still on disk.
    live
        Journals of stages that are running now, which send for themselves.
    reason
        Why MLflow did not take what is left; empty where it took all, or where `errors` say why.
    outcomes
        A line about each model that was registered: its version, and what was decided about it.
    errors
        What a person must put right first: journals that cannot be read, and deleted or renamed things in MLflow.
    """

    sent: int
    left: int
    live: int
    reason: str
    outcomes: tuple[str, ...] = ()
    errors: tuple[InputError, ...] = ()


def sync() -> Synced:
    """Send what earlier processes could not, oldest first; runs that were cut off end as KILLED."""
    sent = left = live = 0
    reasons: dict[str, str] = {}  # by run: neither its later events nor its evaluation must overtake its earlier ones
    away: set[str] = set()
    outcomes: list[str] = []
    errors: list[InputError] = []
    for folder in journal.folders():
        try:
            events = Journal.adopt(folder)
        except BlockingIOError:
            live += 1
            continue
        except FileNotFoundError:
            continue
        except InputError as error:
            errors.append(error)
            continue
        with closing(events):
            delivery, key, before = Delivery(events), journal.key_of(folder), journal.waiting(folder)
            training = next((event.get("training") for event in events.events()), None)
            if not {key, training} & reasons.keys() and delivery.uri not in away:
                try:
                    delivery.send()
                except InputError as error:
                    errors.append(error)
                    reasons[key] = ""
                except Exception as error:
                    reasons[key] = str(store.as_user_error(delivery.uri, error))
                    if not store.is_refusal(error):
                        away.add(delivery.uri)
            outcomes += delivery.outcomes
            after = journal.waiting(folder)
        sent, left = sent + before - after, left + after
    reason = "; ".join(dict.fromkeys(filter(None, reasons.values())))
    return Synced(sent, left, live, reason, tuple(outcomes), tuple(errors))


class _Sender(threading.Thread):
    """Sends a journal while its process works, and tries again at growing intervals while MLflow is away."""

    def __init__(self, events: Journal, training: str | None) -> None:
        super().__init__(name="mitoflow tracking", daemon=True)
        self.journal = events
        self._delivery = Delivery(events)
        keys = filter(None, (training, journal.key_of(events.folder)))
        self._earlier = [folder for folder in journal.folders(*keys) if folder != events.folder]
        self._changed = threading.Condition()
        self._news = self._hurry = self._done = False
        self._tries = self._failed_try = 0
        self._reason = "it is slow"
        self._away_since = 0.0
        self._warned = False

    def wake(self) -> None:
        """Note that the journal has grown."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def flush(self, patience: float = PATIENCE) -> bool:
        """Wait until all is sent; return False when a try that started after this call fails or `patience` is over."""
        with self._changed:
            started = self._tries
            self._news = self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.journal.all_sent or self._failed_try > started, patience)
            return self.journal.all_sent

    def close(self, patience: float = PATIENCE) -> None:
        """Flush, report what is left, and release the journal."""
        if not self.flush(patience):
            left = journal.waiting(self.journal.folder)
            self._report(f"{self._reason}; {left} events are kept on disk, send them with `mitoflow sync`")
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
            except InputError as error:
                self._report(str(error))
            else:
                with closing(earlier):
                    Delivery(earlier).send()
            del self._earlier[0]
        self._delivery.send()

    def _failed(self, error: Exception) -> None:
        with self._changed:
            self._reason, self._failed_try, self._news = store.reason(error), self._tries, True
            self._changed.notify_all()
        self._away_since = self._away_since or time.monotonic()
        if time.monotonic() - self._away_since > WARN_AFTER and not self._warned:
            self._warned = True
            self._report(f"{self._reason}; the run continues, and its events are kept on disk")

    def _succeeded(self) -> None:
        with self._changed:
            self._changed.notify_all()
        if self._warned:
            self._report("answers again, and has all events")
        self._away_since, self._warned = 0.0, False

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._hurry or self._done, seconds)
            self._hurry = False

    def _report(self, text: str) -> None:
        tqdm.write(f"mitoflow: tracking: {store.without_credentials(self._delivery.uri)}: {text}", file=sys.stderr)

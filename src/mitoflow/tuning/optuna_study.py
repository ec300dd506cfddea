"""The Optuna study: learning rate, depth and augmentation strength of the U-Net.

One process owns a study: it samples values, decides which trials are pruned, and stores the results. It fits the trials
itself, or lets the workers of a Dask cluster fit them. Workers need neither the study nor its storage: they receive
values, report each epoch, and wait for the answer whether to continue. So the storage may be a local file.
"""

from __future__ import annotations

import os
import queue
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from tqdm import tqdm

from mitoflow.config.params import SAMPLED, Tune
from mitoflow.core import cluster, workspace
from mitoflow.errors import InputError

if TYPE_CHECKING:
    from distributed import Future

#: Raised to end a trial that is pruned.
Pruned = optuna.TrialPruned
#: Reports the logs of an epoch, `JUDGED` among them; raises `Pruned`.
Report = Callable[[int, Mapping[str, float]], None]
#: Fits the trial of that name with the sampled learning_rate, depth and augment_strength; returns the best validation
#: Dice.
Objective = Callable[[str, dict[str, Any], Report], float]

JUDGED = "val_dice"  # among the logs of an epoch
PRUNE_AFTER = 2  # finished trials before the median prunes
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
DELIVERED = "delivered"  # set on a study whose results were written: DVC's hash of them
STORAGE = "MITOFLOW_OPTUNA_STORAGE"  # names the database of studies, where it is not a file of the checkout
PAUSE = 1.0  # seconds between two looks of the owner for new workers, and of a worker whether its trial was cancelled


class StudyCallback(Protocol):
    """Called by `Search` at the events of trials, in the process that owns the study."""

    def trial_started(self, number: int, values: dict[str, Any]) -> None:
        """Handle a trial that started."""

    def epoch_ended(self, number: int, epoch: int, logs: Mapping[str, float]) -> None:
        """Handle an epoch that ended, counted from 0."""

    def trial_pruned(self, number: int, epoch: int) -> None:
        """Handle a trial that is pruned after that epoch; `trial_ended` follows."""

    def trial_ended(self, number: int) -> None:
        """Handle a trial that ended, completely or pruned."""


@contextmanager
def owned_study(name: str, recorded: str | None = None) -> Iterator[optuna.Study]:
    """Open the study `name` as `open_study` does, and own it; other processes that open it wait.

    It lies in ``.mitoflow/optuna.db`` of the checkout, or in the PostgreSQL database whose URL is in the environment
    variable ``MITOFLOW_OPTUNA_STORAGE``: then another machine can resume it, and dashboards can show it.

    Raises
    ------
    InputError
        There is no such database, it went away, or a process of another checkout owns the study.
    """
    given = os.environ.get(STORAGE)
    with workspace.exclusive(name):
        if not given:
            yield open_study(f"sqlite:///{workspace.state_dir() / 'optuna.db'}", name, recorded)
            return
        with _owned(given, name) as lock:
            yield open_study(given, name, recorded, lock)


@contextmanager
def _owned(url: str, name: str) -> Iterator[sqlalchemy.Connection]:
    """Hold a lock of PostgreSQL, which ends with the connection, and so with the process, however it ends."""
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            lock = sqlalchemy.text("select pg_try_advisory_lock(hashtextextended(:name, 0))")
            if not connection.execute(lock, {"name": name}).scalar():
                found, expected = f"a process of another checkout that works on {name}", "one at a time"
                raise InputError(STORAGE, found, expected, "wait for it, and run it again")
            yield connection
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        found = f"a database that does not answer ({getattr(cause, 'orig', None) or type(error).__name__})"
        remedy = "repair it, then run it again: it resumes"
        raise InputError(STORAGE, found, "one that does", remedy) from None


def _engine(url: str) -> sqlalchemy.Engine:
    """Return the engine of a PostgreSQL database; errors do not show its URL, which holds a password."""
    try:
        if sqlalchemy.make_url(url).get_backend_name() == "postgresql":
            return sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
        found = "another database"
    except ImportError as error:
        found, remedy = f"no driver of PostgreSQL ({error})", "pip install -e .[postgresql]"
        raise InputError(STORAGE, found, "psycopg, which postgresql:// takes", remedy) from None
    except sqlalchemy.exc.ArgumentError as error:
        found = f"no URL of a database that is known here ({type(error).__name__})"
    form = "postgresql://USER:PASSWORD@HOST/DATABASE"
    raise InputError(STORAGE, found, form, "change it, or unset it for a file in .mitoflow/") from None


def open_study(
    url: str, name: str, recorded: str | None = None, lock: sqlalchemy.Connection | None = None
) -> optuna.Study:
    """Open the study `name` in the database at `url`, or create it.

    An interrupted study resumes with its finished trials. A study that delivered the results that DVC has `recorded`
    starts again. If a `lock` ended with its connection, another process may own the study, and it cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A connection that the database closed meanwhile is replaced.
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    if lock is not None:
        sqlalchemy.event.listen(storage.engine, "engine_connect", lambda _: lock.execute(sqlalchemy.text("select 1")))
    known = {summary.study_name: summary for summary in optuna.get_all_study_summaries(storage)}
    if recorded and name in known and known[name].user_attrs.get(DELIVERED) == recorded:
        optuna.delete_study(study_name=name, storage=storage)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=PRUNE_AFTER)
    return optuna.create_study(
        study_name=name, storage=storage, direction="maximize", pruner=pruner, load_if_exists=True
    )


def recover(study: optuna.Study) -> list[int]:
    """Mark trials that were cut off as failed, queue their values to be tried again first, and return their numbers."""
    cut_off = study.get_trials(states=(TrialState.RUNNING,))
    for trial in cut_off:
        study.tell(trial.number, state=TrialState.FAIL)
        # Values that were queued already count; of those that were being drawn the seed gives the same again.
        values = trial.system_attrs.get("fixed_params") or trial.params
        if len(values) == len(SAMPLED):
            study.enqueue_trial(values)
    return [trial.number for trial in cut_off]


@dataclass(frozen=True)
class Search:
    """A study that runs until `settings.trials` trials are finished; a pruned trial is a finished one.

    The sampler is seeded with the seed and the number of trials that are finished or running. So if one trial runs at
    a time, an interrupted and resumed study has the trials of an uninterrupted one. If several run at a time, the
    samples depend on which of them ended first.

    Attributes
    ----------
    study
        As `open_study` and `recover` leave it.
    settings
        Number of trials, seed and ranges.
    callback
        Called at the events of trials.
    """

    study: optuna.Study
    settings: Tune
    callback: StudyCallback

    def here(self, objective: Objective) -> None:
        """Fit the trials in this process, one after the other."""
        for trial in self._trials():

            def report(epoch: int, logs: Mapping[str, float], trial: optuna.Trial = trial) -> None:
                self._report(trial, epoch, logs)

            name = f"trial {len(finished_trials(self.study)) + 1} of {self.settings.trials}"
            try:
                dice = objective(name, trial.params, report)
            except Pruned:
                self._end(trial, None)
            except Exception:
                self.study.tell(trial, state=TrialState.FAIL)
                raise
            else:
                self._end(trial, dice)

    def on_cluster(self, objective: Objective, *, address: str | None = None, workers: int | None = None) -> None:
        """Fit a trial on each worker of a Dask cluster, or on each of that many processes of this machine.

        Workers may join and leave. The trial of a worker that dies is started again on another one, with the same
        number and values; epochs that were reported already do not count again.

        Parameters
        ----------
        objective
            What to fit; it is sent to the workers.
        address, workers
            See `cluster.connected`.

        Raises
        ------
        InputError
            See `cluster.connected` and `cluster.result`, or what the objective raised.
        TrialError
            The objective raised another error.
        """
        from distributed import Event

        news: queue.SimpleQueue[Any] = queue.SimpleQueue()  # epochs that workers report, and trials that are over
        topic = f"trial-{uuid.uuid4().hex}"
        running: dict[str, tuple[optuna.Trial, Future]] = {}
        judged: set[str] = set()
        trials, present, looked = self._trials(), 0, -PAUSE
        with self._progress() as bar, cluster.connected(address, workers) as client:
            client.subscribe_topic(topic, lambda event: news.put(Epoch(*event[1])))
            while True:
                if time.monotonic() - looked >= PAUSE:
                    present, looked = len(client.nthreads()), time.monotonic()
                asked = next(trials, None) if len(running) < max(1, present) else None
                if asked:
                    arguments = (objective, topic, f"trial {asked.number}", asked.params)
                    future = client.submit(_attempt, *arguments, key=f"{topic}-{asked.number}", pure=False)
                    running[future.key] = asked, future
                    future.add_done_callback(news.put)
                if not running:
                    return
                bar.set_postfix(workers=present, refresh=False)
                try:  # between two slow calls of Optuna, workers get their answers
                    message: Epoch | Future = news.get(timeout=0 if asked else PAUSE)
                except queue.Empty:
                    continue
                if message.key not in running:  # its trial was pruned
                    continue
                trial, future = running[message.key]
                try:
                    if isinstance(message, Epoch):
                        if message.name not in judged:
                            self._report(trial, message.epoch, message.logs)
                            judged.add(message.name)
                        Event(message.name, client).set()
                        continue
                    self._end(trial, cluster.result(future))
                except Pruned:
                    self._end(trial, None)
                    future.cancel()  # the worker notices it
                except TrialError:
                    self.study.tell(trial, state=TrialState.FAIL)
                    raise
                del running[message.key]
                bar.update()

    def _progress(self) -> tqdm[Any]:
        total, finished = self.settings.trials, len(finished_trials(self.study))
        return tqdm(desc="tune", total=total, initial=finished, unit="trial")

    def _trials(self) -> Iterator[optuna.Trial]:
        """Start one trial after another, until enough are finished or running."""
        rates, depths, strengths = self.settings.learning_rate, self.settings.depth, self.settings.augment_strength
        first = len(self.study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING)))
        for started in range(first, self.settings.trials):
            seed = (self.settings.seed * 100_003 + started) % 2**32
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=PRUNE_AFTER)
            trial = self.study.ask()
            trial.suggest_float("learning_rate", rates.low, rates.high, log=True)
            trial.suggest_int("depth", depths.low, depths.high)
            trial.suggest_float("augment_strength", strengths.low, strengths.high)
            self.callback.trial_started(trial.number, trial.params)
            yield trial

    def _report(self, trial: optuna.Trial, epoch: int, logs: Mapping[str, float]) -> None:
        self.callback.epoch_ended(trial.number, epoch, logs)
        trial.report(logs[JUDGED], epoch)
        if trial.should_prune():
            self.callback.trial_pruned(trial.number, epoch)
            raise Pruned

    def _end(self, trial: optuna.Trial, dice: float | None) -> None:
        """Store the best validation Dice of a trial, None for one that was pruned.

        The callback comes first: a trial that a kill keeps from being stored is tried again, and reported again.
        """
        self.callback.trial_ended(trial.number)
        self.study.tell(trial, dice, TrialState.PRUNED if dice is None else TrialState.COMPLETE)


class TrialError(Exception):
    """A trial failed on a worker; its text is the traceback there."""


class Epoch(NamedTuple):
    """The report of a worker about an epoch of a trial, which `key` identifies in Dask."""

    key: str
    epoch: int
    logs: dict[str, float]

    @property
    def name(self) -> str:
        """The name of the event that lets the trial continue."""
        return f"{self.key}-epoch-{self.epoch}"


def _attempt(objective: Objective, topic: str, name: str, values: dict[str, Any]) -> float:
    """Fit a trial on a worker, which waits after each epoch until it may continue.

    A trial that was pruned, or whose owner died, is no longer wanted: Dask cancels it, and here it ends.
    """
    from distributed import Event, get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def report(epoch: int, logs: Mapping[str, float]) -> None:
        message = Epoch(key, epoch, dict(logs))
        worker.log_event(topic, message)
        may_continue = Event(message.name)
        while not may_continue.wait(PAUSE):
            task = worker.state.tasks.get(key)
            if task is None or task.state == "cancelled":
                raise Pruned
        may_continue.clear()

    try:
        return objective(name, values, report)
    except (InputError, Pruned):
        raise
    except Exception:
        raise TrialError(traceback.format_exc()) from None


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that ended by themselves, complete or pruned, in the order in which they started."""
    return study.get_trials(states=FINISHED)


def mark_delivered(study: optuna.Study, md5: str) -> None:
    """Note that the results are written, and DVC's hash of them; see `open_study`."""
    study.set_user_attr(DELIVERED, md5)


def write_plots(study: optuna.Study, folder: Path, seed: int) -> None:
    """Write Optuna's history, importance and parallel-coordinate plots as one HTML page that needs no network.

    They show the finished trials, numbered as if none had been cut off. The importance of a parameter needs two
    complete ones.
    """
    from optuna import visualization as plots

    shown = optuna.create_study(direction="maximize")
    shown.add_trials(finished_trials(study))
    figures = {"history": plots.plot_optimization_history(shown), "parallel": plots.plot_parallel_coordinate(shown)}
    if len(shown.get_trials(states=(TrialState.COMPLETE,))) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
        figures["importance"] = plots.plot_param_importances(shown, evaluator=evaluator)
    folder.mkdir(parents=True, exist_ok=True)
    parts = (  # of one page, because each page holds all of plotly
        figure.to_html(full_html=False, include_plotlyjs=name == next(iter(figures)), div_id=name)
        for name, figure in figures.items()
    )
    (folder / "study.html").write_text("\n".join(['<!doctype html><meta charset="utf-8">', *parts]), encoding="utf-8")

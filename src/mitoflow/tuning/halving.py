"""Successive halving: all trials are fitted a little, and the best of them go on to longer budgets.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016. The
budget is shared equally among the rungs, and in each rung among the trials that are left, so only trials of the same
length are compared. Optuna's `SuccessiveHalvingPruner` decides on a trial as soon as it reaches a rung, by the trials
that happened to reach it before; here a rung ends when all its trials have, so the outcome does not depend on their
order, and a promoted trial continues from its own weights.
"""

from __future__ import annotations

import queue
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from mitoflow.config.params import Tune
from mitoflow.core import cluster
from mitoflow.core.progress import progress_bar
from mitoflow.errors import as_user_error

if TYPE_CHECKING:
    from distributed import Client, Future

#: The logs of each epoch that a trial was fitted for, ``val_dice`` among them.
History = list[dict[str, float]]
#: Fits the trial of that number with those values, for the crops of each rung until the present one, and returns the
#: history of the last; calls the last argument after each epoch, which raises `AbandonedError` if nobody waits.
Objective = Callable[[int, dict[str, Any], Sequence[int], Callable[[], None]], History]

PAUSE = 1.0  # seconds between two looks of the owner for new workers


class AbandonedError(Exception):
    """Ends a fit on a worker that nobody waits for any more."""


class TrialError(Exception):
    """A trial failed on a worker; its text is the traceback there."""


class Rung(NamedTuple):
    """How many trials a rung fits, and for how many crops each, beyond those of the rungs before."""

    trials: int
    crops: int


class Fitted(NamedTuple):
    """The history of a trial in a rung, and the seconds that it took; in a callback those of all its rungs."""

    history: History
    seconds: float

    @property
    def score(self) -> float:
        """The validation Dice of the best epoch, whose weights a promoted trial continues from."""
        return max(logs["val_dice"] for logs in self.history)


#: Fits trials, given by their values, for those crops; yields their numbers and results as they end.
FitTrials = Callable[[Mapping[int, dict[str, Any]], Sequence[int]], Iterator[tuple[int, Fitted]]]


class StudyCallback(Protocol):
    """Called by `Search` at the events of trials, in the process that owns the study."""

    def trial_started(self, number: int, values: dict[str, Any]) -> None:
        """Handle a trial that starts, or is taken up again after an interruption."""

    def rung_ended(self, number: int, crops: int, fitted: Fitted) -> None:
        """Handle a trial that ended a rung, after that many crops in all."""

    def trial_ended(self, number: int, pruned: str | None) -> None:
        """Handle a trial that ended, completely or pruned for that reason."""


def rungs(settings: Tune, crops: int) -> list[Rung]:
    """Return the rungs of a study, from the shortest to the longest, which compares at least two trials if it can.

    Parameters
    ----------
    settings
        The number of trials, and by how much a rung reduces it.
    crops
        Of all trials together.

    Examples
    --------
    >>> rungs(Tune(trials=9, reduction=3), 5400)
    [Rung(trials=9, crops=300), Rung(trials=3, crops=900)]
    """
    counts = [settings.trials]
    while counts[-1] >= 2 * settings.reduction:
        counts.append(counts[-1] // settings.reduction)
    return [Rung(count, max(1, crops // len(counts) // count)) for count in counts]


def distributions(settings: Tune) -> dict[str, BaseDistribution]:
    """Return the range of every value that a study can search."""
    rates, depths, strengths = settings.learning_rate, settings.depth, settings.augment_strength
    return {
        "learning_rate": FloatDistribution(rates.low, rates.high, log=True),
        "depth": IntDistribution(depths.low, depths.high),
        "augment_strength": FloatDistribution(strengths.low, strengths.high),
    }


def starting_points(settings: Tune, space: dict[str, BaseDistribution]) -> Iterator[dict[str, Any]]:
    """Yield the values of each trial: first those that the study starts from, then a scrambled Halton sequence.

    Such points fill the ranges more evenly than independent ones (Bousquet et al., "Critical Hyper-Parameters: No
    Random, No Cry", 2017), and do not depend on the scores.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(qmc_type="halton", scramble=True, seed=settings.seed)
    drawn = optuna.create_study(sampler=sampler)
    drawn.enqueue_trial({key: getattr(settings, key).start for key in space})
    for _ in range(settings.trials):
        trial = drawn.ask(space)
        drawn.tell(trial, 0.0)
        yield trial.params


@dataclass(frozen=True)
class Search:
    """A study by successive halving; see the module.

    The values of the trials follow from the settings, and their promotion from the scores, so a study that was
    interrupted, or fitted by several workers, ends as an undisturbed one does, up to the rounding of the scores on
    different machines.

    Attributes
    ----------
    study
        As `open_study` leaves it.
    settings
        Number of trials, reduction, seed and ranges.
    tuned
        The values that the study searches.
    crops
        Of all trials together.
    callback
        Called at the events of trials.
    """

    study: optuna.Study
    settings: Tune
    tuned: Sequence[str]
    crops: int
    callback: StudyCallback

    def here(self, objective: Objective) -> None:
        """Fit the trials in this process, one after the other."""
        self._halve(partial(_fit_here, objective))

    def on_cluster(self, objective: Objective, *, address: str | None = None, workers: int | None = None) -> None:
        """Fit a trial on each worker of a Dask cluster, or on each of that many processes of this machine.

        Workers may join and leave. The trial of a worker that dies continues on another one.

        Parameters
        ----------
        objective
            What to fit; it is sent to the workers.
        address, workers
            See `cluster.connected`.

        Raises
        ------
        InputError
            See `cluster.connected` and `cluster.result`, or what the objective raised, such as that a disk is full.
        TrialError
            The objective raised another error.
        """
        with cluster.connected(address, workers) as client:
            self._halve(partial(_fit_on_workers, client, objective))

    def _halve(self, fit: FitTrials) -> None:
        """Fit rung after rung; what an interrupted study has stored is not fitted again."""
        crops: list[int] = []
        left = self._start()
        ladder = rungs(self.settings, self.crops)
        for rung, following in zip(ladder, [*ladder[1:], None], strict=True):
            crops.append(rung.crops)
            trials = self._trials()
            waiting = {
                number: trials[number].params for number in left if sum(crops) not in trials[number].intermediate_values
            }
            for number, fitted in fit(waiting, tuple(crops)):
                self._report(number, sum(crops), fitted)
            left = self._end(left, sum(crops), following)

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _start(self) -> list[int]:
        """Store the trials that are not stored yet, and return the numbers of all."""
        space = {key: each for key, each in distributions(self.settings).items() if key in self.tuned}
        for values in list(starting_points(self.settings, space))[len(self._trials()) :]:
            trial = optuna.trial.create_trial(state=TrialState.RUNNING, params=values, distributions=space)
            self.study.add_trial(trial)
        for trial in self._trials():
            if trial.state == TrialState.RUNNING:
                self.callback.trial_started(trial.number, trial.params)
        return [trial.number for trial in self._trials()]

    def _report(self, number: int, crops: int, fitted: Fitted) -> None:
        """Store the score of a trial after that many crops.

        The callback comes first: what a kill keeps from being stored is fitted, and reported, again.
        """
        stored = self._trials()[number]
        fitted = fitted._replace(seconds=fitted.seconds + stored.user_attrs.get("seconds", 0.0))
        self.callback.rung_ended(number, crops, fitted)
        trial = optuna.Trial(self.study, stored._trial_id)
        trial.set_user_attr("seconds", fitted.seconds)
        trial.report(fitted.score, crops)

    def _end(self, left: list[int], crops: int, following: Rung | None) -> list[int]:
        """End the trials that the rung after this one does not fit, and return the numbers of the others.

        A trial that is pruned is stored with the reason; trials of the last rung are complete.
        """
        trials = self._trials()
        ranked = sorted(left, key=lambda number: (-trials[number].intermediate_values[crops], number))
        promoted = ranked[: following.trials] if following else []
        for number in sorted(set(left) - set(promoted)):
            if trials[number].state != TrialState.RUNNING:
                continue
            reason, score = None, trials[number].intermediate_values[crops]
            if promoted:
                least = trials[promoted[-1]].intermediate_values[crops]
                others = f"{len(promoted)} of {len(left)} trials went on, with at least {least:.4f}"
                reason = f"{score:.4f} after {crops} crops; {others}"
                optuna.Trial(self.study, trials[number]._trial_id).set_user_attr("pruned", reason)
            self.callback.trial_ended(number, reason)
            if reason:
                self.study.tell(number, state=TrialState.PRUNED)
            else:
                self.study.tell(number, score)
        return sorted(promoted)


def _fit_here(
    objective: Objective, waiting: Mapping[int, dict[str, Any]], crops: Sequence[int]
) -> Iterator[tuple[int, Fitted]]:
    for number, values in waiting.items():
        yield number, _fit(objective, number, values, crops, lambda: None)


def _fit_on_workers(
    client: Client, objective: Objective, waiting: Mapping[int, dict[str, Any]], crops: Sequence[int]
) -> Iterator[tuple[int, Fitted]]:
    """Keep each worker busy with one trial, also those that join meanwhile."""
    ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
    running: dict[str, tuple[int, Future]] = {}
    left = list(waiting.items())
    with progress_bar(desc=f"tune, {sum(crops)} crops", total=len(left), unit="trial") as bar:
        while left or running:
            present = len(client.nthreads())
            bar.set_postfix(workers=present, refresh=False)
            while left and len(running) < max(1, present):
                number, values = left.pop(0)
                key = f"trial-{number}-{uuid.uuid4().hex}"
                future = client.submit(_fit_on_worker, objective, number, values, crops, key=key, pure=False)
                running[key] = number, future
                future.add_done_callback(ended.put)
            try:
                number, future = running.pop(ended.get(timeout=PAUSE).key)
            except queue.Empty:
                continue
            yield number, cluster.result(future)
            bar.update()


def _fit(
    objective: Objective, number: int, values: dict[str, Any], crops: Sequence[int], check: Callable[[], None]
) -> Fitted:
    started = time.monotonic()
    history = objective(number, values, crops, check)
    return Fitted(history, time.monotonic() - started)


def _fit_on_worker(objective: Objective, number: int, values: dict[str, Any], crops: Sequence[int]) -> Fitted:
    """Fit a trial on a worker; where its owner died, Dask cancels it, and it ends after the epoch."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def check() -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise AbandonedError

    try:
        return _fit(objective, number, values, crops, check)
    except AbandonedError:
        raise
    except Exception as error:
        if line := as_user_error(error):  # what only this machine knows, such as the number of an error of its disk
            raise line from None
        raise TrialError(traceback.format_exc()) from None

"""The Optuna study: learning rate, depth and augmentation strength of the U-Net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from mitoflow.params import Tune

#: Ends a trial that is not worth going on with.
Pruned = optuna.TrialPruned
#: Reports the validation Dice of an epoch; raises `Pruned`.
Report = Callable[[int, float], None]
#: Fits trial number N with the sampled learning_rate, depth and augment_strength; returns the best validation Dice.
Objective = Callable[[int, dict[str, Any], Report], float]

PRUNE_AFTER = 2  # finished trials before the median says anything
DELIVERED = "delivered"  # set on a study whose results were written: DVC's hash of them


def open_study(storage: Path, name: str, recorded: str | None = None) -> optuna.Study:
    """Open the study `name` in the SQLite file `storage`, or create it.

    A study that was cut off goes on: its finished trials stay. One that delivered the results which DVC has `recorded`
    starts afresh.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{storage}"
    known = {summary.study_name: summary for summary in optuna.get_all_study_summaries(url)}
    if recorded and name in known and known[name].user_attrs.get(DELIVERED) == recorded:
        optuna.delete_study(study_name=name, storage=url)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=PRUNE_AFTER)
    return optuna.create_study(study_name=name, storage=url, direction="maximize", pruner=pruner, load_if_exists=True)


def recover(study: optuna.Study) -> list[int]:
    """Mark trials that were cut off as failed, queue their values to be tried again first, and return their numbers."""
    cut_off = study.get_trials(states=(TrialState.RUNNING,))
    for trial in cut_off:
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)
    return [trial.number for trial in cut_off]


def run_study(study: optuna.Study, settings: Tune, objective: Objective) -> None:
    """Run the study until `settings.trials` trials are finished; a pruned trial is a finished one.

    The sampler is seeded with the seed and the number of finished trials, so a study that was cut off and recovered
    ends with the trials that it would have had undisturbed.

    Parameters
    ----------
    study
        As `open_study` and `recover` leave it.
    settings
        Number of trials, seed and ranges.
    objective
        See `Objective`.
    """
    while (finished := len(finished_trials(study))) < settings.trials:
        seed = settings.seed * 100_003 + finished
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=PRUNE_AFTER)
        study.optimize(lambda trial: _attempt(trial, settings, objective), n_trials=1)


def _attempt(trial: optuna.Trial, settings: Tune, objective: Objective) -> float:
    values = {
        "learning_rate": trial.suggest_float(
            "learning_rate", settings.learning_rate.low, settings.learning_rate.high, log=True
        ),
        "depth": trial.suggest_int("depth", settings.depth.low, settings.depth.high),
        "augment_strength": trial.suggest_float(
            "augment_strength", settings.augment_strength.low, settings.augment_strength.high
        ),
    }

    def report(epoch: int, dice: float) -> None:
        trial.report(dice, epoch)
        if trial.should_prune():
            raise Pruned

    return objective(trial.number, values, report)


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that ended by themselves, complete or pruned, in the order in which they began."""
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def mark_delivered(study: optuna.Study, md5: str) -> None:
    """Note that the results are written, and DVC's hash of them; see `open_study`."""
    study.set_user_attr(DELIVERED, md5)


def write_plots(study: optuna.Study, folder: Path, seed: int) -> None:
    """Write Optuna's history, importance and parallel-coordinate plots as HTML files that need no network.

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
    for name, figure in figures.items():
        figure.write_html(folder / f"{name}.html", include_plotlyjs=True, div_id=name)

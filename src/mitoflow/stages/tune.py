"""Search with Optuna the values of learning rate, depth and augmentation strength that ``train`` leaves open."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from mitoflow.config import params
from mitoflow.config.params import SAMPLED, Params, SharedWithTrials
from mitoflow.core import cluster, files, provenance
from mitoflow.stages.paths import BEST_PARAMS, PATCHES, TUNE_REPORTS

if TYPE_CHECKING:
    from mitoflow.tracking import runs
    from mitoflow.tracking.inputs import Input
    from mitoflow.tuning.trial import Trial

PLOTS = TUNE_REPORTS / "plots"


def main() -> None:
    settings = params.load()
    if settings.train.tuned:
        run_study(settings)
        return
    # The same whatever the section `tune` says, so that `train` stays up to date.
    _write({}, [], {"trials": 0})
    with files.replacing(PLOTS) as beside:
        beside.mkdir()
    print(f"no study: params.yaml gives train.{', '.join(SAMPLED[:-1])} and {SAMPLED[-1]}")


def run_study(settings: Params) -> None:
    """Run or resume the study, and write its results."""
    from mitoflow.data.patches import PatchStore
    from mitoflow.models import losses, unet  # these import Keras and Optuna
    from mitoflow.tracking import inputs, runs, system_metrics
    from mitoflow.tracking.naming import run_name
    from mitoflow.tuning import optuna_study
    from mitoflow.tuning.trial import Trial

    losses.LOSSES.require(settings.train.loss)
    unet.NETWORKS.require(settings.train.network)
    tune = settings.tune
    shared = settings.train.model_dump(include=set(SharedWithTrials.model_fields))
    lengths = {"epochs": tune.epochs, "patches_per_epoch": tune.patches_per_epoch, "patience": tune.epochs}
    trial = Trial.of(PATCHES, {**shared, **lengths, "seed": tune.seed})
    name = "tune-" + files.short_digest([tune.model_dump(), shared, *trial.digests])
    # Forced, a study that ended is searched again; for other parameters that decide nothing in it, it serves as it is.
    is_forced = provenance.has_recorded_params("tune")
    recorded = provenance.recorded_md5("tune", BEST_PARAMS) if is_forced else None
    with optuna_study.owned_study(name, recorded) as study:
        key = study.user_attrs.get("run") or f"tune-{uuid.uuid4().hex}"
        study.set_user_attr("run", key)

        name = run_name("tune", settings.data.name)
        with runs.start("tune", name, key=key) as run, system_metrics.measured(run), ExitStack() as open_trials:
            run.params({"tune": tune.model_dump()})
            datasets = inputs.of_patches(settings.data.name, PATCHES, PatchStore.open(PATCHES, verify=False))
            for each in datasets:
                run.dataset(*each)
            for number in optuna_study.recover(study):
                _child(run, number).end("KILLED")
            search = optuna_study.Search(study, tune, Tracked(run, trial, open_trials, datasets))
            address, workers = os.environ.get(cluster.DASK), settings.machine.workers
            if address or workers > 1:
                search.on_cluster(trial, address=address, workers=workers)
            else:
                search.here(trial)
            finished = optuna_study.finished_trials(study)
            summary = {"best_val_dice": study.best_value, "trials": len(finished)}
            rows = [
                (place, trial.state.name, *(trial.params[name] for name in SAMPLED), trial.value)
                for place, trial in enumerate(finished, start=1)
            ]
            _write(study.best_params, rows, summary)
            optuna_study.write_plots(study, PLOTS, tune.seed)
            run.metrics(summary)
            run.params({"best": study.best_params})
            run.artifact(TUNE_REPORTS)
            run.produced(BEST_PARAMS)
            found = f"best of {len(finished)} trials: validation Dice {study.best_value:.4f} with {study.best_params}"
            run.describe(found)
        optuna_study.mark_delivered(study, provenance.file_md5(BEST_PARAMS))
        print(found)


def _write(best: dict[str, Any], rows: Sequence[tuple[Any, ...]], summary: Mapping[str, float]) -> None:
    files.write_yaml(BEST_PARAMS, best)
    files.write_csv(TUNE_REPORTS / "trials.csv", ("trial", "state", *SAMPLED, "val_dice"), rows)
    files.write_json(TUNE_REPORTS / "metrics.json", summary)


class Tracked:
    """Logs each trial to MLflow, as a child run of the study."""

    def __init__(self, run: runs.Run, trial: Trial, open_trials: ExitStack, datasets: Sequence[Input]) -> None:
        self._run, self._trial, self._open, self._datasets = run, trial, open_trials, datasets
        self._runs: dict[int, runs.Run] = {}

    def trial_started(self, number: int, values: dict[str, Any]) -> None:
        """Start the run of a trial, which ends with the study at the latest."""
        self._runs[number] = self._open.enter_context(_child(self._run, number))
        self._runs[number].params(self._trial.recipe(values).model_dump())
        for each in self._datasets:
            self._runs[number].dataset(*each)

    def epoch_ended(self, number: int, epoch: int, logs: Mapping[str, float]) -> None:
        """Log the curves of a trial."""
        self._runs[number].metrics(logs, step=epoch)

    def trial_pruned(self, number: int, epoch: int) -> None:
        """Tag the run with the epoch after which the trial was pruned."""
        self._runs[number].tags({"mitoflow.pruned": f"after epoch {epoch + 1}"})

    def trial_ended(self, number: int) -> None:
        """End the run of a trial."""
        self._runs.pop(number).end()


def _child(run: runs.Run, number: int) -> runs.Run:
    return run.child(f"trial {number}", key=f"{run.key}-{number}")

"""Search learning rate, depth and augmentation strength with Optuna."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from mitoflow.config import params
from mitoflow.core import cluster, files, provenance
from mitoflow.models import losses, unet
from mitoflow.stages.paths import BEST_PARAMS, PATCHES, TUNE_REPORTS
from mitoflow.tracking import runs
from mitoflow.training.recipe import as_dict
from mitoflow.tuning import optuna_study
from mitoflow.tuning.trial import Trial


def main() -> None:
    settings = params.load()
    losses.LOSSES.require(settings.train.loss)
    unet.NETWORKS.require(settings.train.network)
    tune = settings.tune
    searched = tune.model_dump(exclude={"trials"})
    of_a_fit = {
        "init_from",
        "learning_rate",
        "depth",
        "augment_strength",
        "epochs",
        "patches_per_epoch",
        "patience",
        "seed",
    }
    shared = settings.train.model_dump(exclude=of_a_fit)
    of_a_trial = {
        "epochs": tune.epochs,
        "patches_per_epoch": tune.patches_per_epoch,
        "patience": tune.epochs,
        "seed": tune.seed,
    }
    trial = Trial.of(PATCHES, shared | of_a_trial)
    name = "tune-" + files.short_digest([searched, shared, *trial.digests])
    with optuna_study.owned_study(name, provenance.recorded_md5("tune", BEST_PARAMS)) as study:
        key = study.user_attrs.get("run") or f"tune-{uuid.uuid4().hex}"
        study.set_user_attr("run", key)

        with runs.start("tune", "tune", key=key) as run, ExitStack() as open_trials:
            run.params({"tune": tune.model_dump()})
            for number in optuna_study.recover(study):
                _child(run, number).end("KILLED")
            search = optuna_study.Search(study, tune, Tracked(run, trial, open_trials))
            address = os.environ.get(cluster.DASK)
            if address or settings.machine.workers > 1:
                search.on_cluster(trial, address=address, workers=settings.machine.workers)
            else:
                search.here(trial)
            finished = optuna_study.finished_trials(study)
            files.write_yaml(BEST_PARAMS, study.best_params)
            rows = (
                (place, trial.state.name, *(trial.params[name] for name in optuna_study.SAMPLED), trial.value)
                for place, trial in enumerate(finished, start=1)
            )
            files.write_csv(TUNE_REPORTS / "trials.csv", ("trial", "state", *optuna_study.SAMPLED, "val_dice"), rows)
            optuna_study.write_plots(study, TUNE_REPORTS / "plots", tune.seed)
            summary = {"best_val_dice": study.best_value, "trials": len(finished)}
            files.write_json(TUNE_REPORTS / "metrics.json", summary)
            run.metrics(summary)
            run.params({"best": study.best_params})
            run.artifact(TUNE_REPORTS)
        optuna_study.mark_delivered(study, provenance.file_md5(BEST_PARAMS))
        print(f"best of {len(finished)} trials: validation Dice {study.best_value:.4f} with {study.best_params}")


class Tracked:
    """Tells MLflow of the trials: each is a run of its own inside that of the study."""

    def __init__(self, run: runs.Run, trial: Trial, open_trials: ExitStack) -> None:
        self._run, self._trial, self._open = run, trial, open_trials
        self._runs: dict[int, runs.Run] = {}

    def began(self, number: int, values: dict[str, Any]) -> None:
        """Start its run, which ends with the study if nothing else ends it."""
        self._runs[number] = self._open.enter_context(_child(self._run, number))
        self._runs[number].params(as_dict(self._trial.recipe(values)))

    def epoch(self, number: int, epoch: int, logs: Mapping[str, float]) -> None:
        """Log its curves."""
        self._runs[number].metrics(logs, step=epoch)

    def pruned(self, number: int, epoch: int) -> None:
        """Say after which epoch it was not worth going on."""
        self._runs[number].tags({"mitoflow.pruned": f"after epoch {epoch + 1}"})

    def ended(self, number: int) -> None:
        """End its run."""
        self._runs.pop(number).end()


def _child(run: runs.Run, number: int) -> runs.Run:
    return run.child(f"trial {number}", key=f"{run.key}-{number}")

"""Search with Optuna the values of learning rate, depth and augmentation strength that ``train`` leaves open."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mitoflow.config import params
from mitoflow.config.params import SAMPLED, Params, Recipe, SharedWithTrials
from mitoflow.core import cluster, files, provenance, workspace
from mitoflow.data.patches import PatchStore
from mitoflow.stages.paths import BEST_PARAMS, PATCHES, TUNE_REPORTS

if TYPE_CHECKING:
    from mitoflow.tracking import runs
    from mitoflow.tracking.inputs import Input
    from mitoflow.tuning import halving
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
    from mitoflow.tracking import inputs, runs, system_metrics  # here, because these load Keras and Optuna
    from mitoflow.tracking.naming import run_name
    from mitoflow.tuning import halving, optuna_study

    tune, tuned = settings.tune, settings.train.tuned
    trial = _common_to_trials(settings)
    # Forced, a study that ended is searched again; for other parameters that decide nothing in it, it serves as it is.
    is_forced = provenance.has_recorded_params("tune")
    recorded = provenance.recorded_md5("tune", BEST_PARAMS) if is_forced else None
    code = sorted(Path(halving.__file__).parent.glob("*.py"))
    name = "tune-" + files.short_digest([tune.model_dump(), tuned, trial.digest], *code)
    checkpoints = workspace.state_dir() / "checkpoints" / name
    with optuna_study.owned_study(name, recorded) as study:
        key = study.user_attrs.get("run") or f"tune-{uuid.uuid4().hex}"
        study.set_user_attr("run", key)

        shown = run_name("tune", settings.data.name)
        with runs.start("tune", shown, key=key) as run, system_metrics.measured(run), ExitStack() as open_trials:
            run.params({"tune": tune.model_dump()})
            datasets = inputs.of_patches(settings.data.name, PATCHES, PatchStore.open(PATCHES))
            for each in datasets:
                run.dataset(*each)
            crops = tune.budget
            if tune.budget_unit == "minutes":
                start = {key: getattr(tune, key).start for key in tuned}
                crops = optuna_study.measured_once(study, "crops", lambda: trial.crops_in(tune.budget, start))
            search = halving.Search(study, tune, tuned, crops, Tracked(run, trial, open_trials, datasets))
            address, workers = os.environ.get(cluster.DASK), settings.machine.workers
            objective = partial(trial, checkpoints)
            if address or workers > 1:
                search.on_cluster(objective, address=address, workers=workers)
            else:
                search.here(objective)
            finished = optuna_study.finished_trials(study)
            summary = {
                "best_val_dice": study.best_value,
                "trials": len(finished),
                "crops": sum(rung.trials * rung.crops for rung in halving.rungs(tune, crops)),
            }
            rows = [
                (each.number + 1, each.state.name, *_searched(trial.recipe(each.params)), each.value, each.last_step)
                for each in finished
            ]
            _write(study.best_params, rows, {"study_val_dice": study.best_value, "trials": len(finished)})
            optuna_study.write_plots(study, PLOTS, tune.seed)
            run.metrics({**summary, "seconds": sum(each.user_attrs["seconds"] for each in finished)})
            run.params({"best": study.best_params})
            run.artifact(TUNE_REPORTS)
            run.produced(BEST_PARAMS)
            values = _named(study.best_params)
            found = f"best of {len(finished)} trials: validation Dice {study.best_value:.4f} with {values}"
            run.describe(found)
        shutil.rmtree(checkpoints, ignore_errors=True)
        optuna_study.mark_delivered(study, provenance.file_md5(BEST_PARAMS))
        print(found)


def _common_to_trials(settings: Params) -> Trial:
    """Return what all trials of the study have in common."""
    from mitoflow.models import losses, unet
    from mitoflow.tracking import pretrained
    from mitoflow.tuning.trial import Trial

    train = settings.train
    losses.LOSSES.require(train.loss)
    unet.NETWORKS.require(train.network)
    shared = train.model_dump(include={*SharedWithTrials.model_fields, *SAMPLED}, exclude=set(train.tuned))
    initial = pretrained.initial_weights(str(train.init_from))
    if initial:
        initial.require_normalization(PatchStore.open(PATCHES).normalization)
    started_from = (initial.path, initial.slices) if initial else (None, None)
    return Trial.of(PATCHES, {**shared, "seed": settings.tune.seed}, *started_from)


def _named(values: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:.3g}" for key, value in values.items())


def _searched(recipe: Recipe) -> list[float]:
    return [getattr(recipe, key) for key in SAMPLED]


def _write(best: dict[str, Any], rows: Sequence[tuple[Any, ...]], shown: Mapping[str, float]) -> None:
    """Write the results; DVC's tables show some, beside those of the training, whose names are others."""
    files.write_yaml(BEST_PARAMS, best)
    files.write_csv(TUNE_REPORTS / "trials.csv", ("trial", "state", *SAMPLED, "val_dice", "crops"), rows)
    files.write_json(TUNE_REPORTS / "metrics.json", shown)


class Tracked:
    """Logs each trial to MLflow, as a child run of the study, with the keys of a training."""

    def __init__(self, run: runs.Run, trial: Trial, open_trials: ExitStack, datasets: Sequence[Input]) -> None:
        self._run, self._trial, self._open, self._datasets = run, trial, open_trials, datasets
        self._runs: dict[int, runs.Run] = {}

    def trial_started(self, number: int, values: dict[str, Any]) -> None:
        """Start or resume the run of a trial, which ends with the study at the latest."""
        run = self._run.child(f"trial {number + 1}: {_named(values)}", key=f"{self._run.key}-{number}")
        self._runs[number] = self._open.enter_context(run)
        keys = {*SharedWithTrials.model_fields, *SAMPLED}
        run.params({"train": self._trial.recipe(values).model_dump(include=keys)})
        for each in self._datasets:
            run.dataset(*each)

    def rung_ended(self, number: int, crops: int, fitted: halving.Fitted) -> None:
        """Log the objective, the budget until then and how long it took, over the crops."""
        # The objective comes first: MLflow's comparison of runs opens on the metric that was logged first.
        facts = {"best_val_dice": fitted.score, "crops": crops, "seconds": fitted.seconds}
        self._runs[number].metrics({**facts, **fitted.history[-1]}, step=crops)

    def trial_ended(self, number: int, pruned: str | None) -> None:
        """End the run of a trial, with a description, and a tag that says why it was pruned."""
        run = self._runs.pop(number)
        run.describe(f"pruned: {pruned}" if pruned else "fitted to the end of the last rung")
        if pruned:
            run.tags({"mitoflow.pruned": pruned})
        run.end()

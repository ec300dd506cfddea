"""Fit the augmented U-Net with the tuned values, or with those that ``params.yaml`` gives in their place."""

from __future__ import annotations

import dataclasses
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import keras

from mitoflow.config import params
from mitoflow.core import files, provenance, workspace
from mitoflow.data.patches import PatchStore
from mitoflow.data.slice_distance import SliceDistance
from mitoflow.errors import InputError
from mitoflow.models import losses, unet
from mitoflow.stages.paths import BEST_PARAMS, CURVES, MODEL, MODEL_FACTS, PATCHES, TRAIN_REPORTS
from mitoflow.tracking import inputs, pretrained, runs, system_metrics
from mitoflow.tracking.naming import run_name
from mitoflow.training import fitting
from mitoflow.training.callbacks import Logs

HEADLINE = ("best_epoch", "best_val_dice")  # in metrics.json; MLflow has all of the best epoch
DELIVERED = "delivered"  # beside the checkpoints: DVC's hash of the model that they led to


def main() -> None:
    settings = params.load()
    losses.LOSSES.require(settings.train.loss)
    unet.NETWORKS.require(settings.train.network)
    store = PatchStore.open(PATCHES)
    recipe = settings.train.recipe(BEST_PARAMS)
    initial = pretrained.initial_weights(str(settings.train.init_from))
    origin = initial.origin if initial else {}
    if initial:
        initial.require_normalization(store.normalization)
    slices = (initial and initial.slices) or store.slices()
    learned = dataclasses.asdict(slices) if slices else None
    decides = [recipe.model_dump(), origin.get("sha256"), learned, store.digest, fitting.code_digest()]
    fingerprint = files.short_digest(decides)
    checkpoints = workspace.state_dir() / "checkpoints" / fingerprint

    with workspace.exclusive(f"train-{fingerprint}"):
        _remove_recorded(checkpoints)
        checkpoints.mkdir(parents=True, exist_ok=True)
        name = run_name("train", settings.data.name)
        study = runs.producer(BEST_PARAMS) if settings.train.tuned else None
        started = runs.start("train", name, key=_run_key(checkpoints), study=study)
        with started as run, system_metrics.measured(run, after_scores=True):
            run.params(params.as_trained(settings.model_dump(by_alias=True), recipe.model_dump(), origin))
            for each in inputs.of_patches(settings.data.name, PATCHES, store):
                run.dataset(*each)
            curves = Curves(run, checkpoints / "history.json")
            fitted = fitting.fit(
                store,
                recipe,
                initial=unet.load_model(initial.path) if initial else None,
                learned=slices,
                strategy=settings.machine.strategy,
                loaders=settings.machine.loaders,
                checkpoints=checkpoints,
                callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=curves.epoch_ended)],
            )
            unet.save_model(fitted.model, MODEL)
            files.write_yaml(MODEL_FACTS, _facts(fitted, store, recipe, origin, slices))
            write_curves(fitted.history)
            best_epoch = fitted.best_epoch
            summary = {
                "best_epoch": best_epoch + 1,
                "epochs": len(fitted.history),
                **{f"best_{name}": value for name, value in fitted.history[best_epoch].items()},
            }
            files.write_json(TRAIN_REPORTS / "metrics.json", {name: summary[name] for name in HEADLINE})
            run.metrics(summary)
            run.artifact(TRAIN_REPORTS)
            run.produced(MODEL)
            reached = f"validation Dice {summary['best_val_dice']:.4f} after epoch {best_epoch + 1}"
            run.describe(f"{reached}, from {origin.get('name', 'random weights')}")
        files.write_text(checkpoints / DELIVERED, provenance.file_md5(MODEL))
        print(f"{MODEL}: {reached}")


class Curves:
    """Logs every epoch to the run and to ``curves.csv``, which grows while the training runs.

    Parameters
    ----------
    run
        The run of the training.
    kept
        Where the epochs so far are kept for a training that is resumed: DVC removes ``curves.csv`` before it.
    """

    def __init__(self, run: runs.Run, kept: Path) -> None:
        self._run, self._kept = run, kept
        self._history: list[Logs] = []
        with suppress(InputError):  # it is new, or damaged: then earlier epochs are missing until the training ends
            self._history = files.read_json(kept, "remove it", ("epochs",))["epochs"]

    def epoch_ended(self, epoch: int, logs: Logs) -> None:
        """Add an epoch, or write it again: a resumed training may repeat one."""
        self._history[epoch:] = [dict(logs)]
        files.write_json(self._kept, {"epochs": self._history})
        write_curves(self._history)
        # MLflow's comparison of runs opens on the metric that was logged first: that of the weights that are kept.
        best = max(each["val_dice"] for each in self._history)
        self._run.metrics({"best_val_dice": best, "val_dice": logs["val_dice"], **logs}, step=epoch)


def write_curves(history: Sequence[Logs]) -> None:
    """Write ``curves.csv``, with the validation Dice of each of several sets in further columns."""
    names = list(dict.fromkeys(["loss", "val_loss", "dice", "val_dice", *history[0]]))
    rows = ((epoch, *(logs[name] for name in names)) for epoch, logs in enumerate(history, start=1))
    files.write_csv(CURVES, ("epoch", *names), rows)


def _facts(
    fitted: fitting.Fit,
    store: PatchStore,
    recipe: params.Recipe,
    origin: dict[str, str],
    slices: SliceDistance | None,
) -> dict[str, Any]:
    """Return what other stages must know of the model."""
    return {
        "bit_depth": store.bit_depth,
        "normalization": store.normalization,
        "divisor": 2**recipe.depth,
        "parameters": fitted.model.count_params(),
        "recipe": recipe.model_dump(),
        "initial": origin,
        "context_step": _learned_step(store, recipe, slices),
        "slices": dataclasses.asdict(slices) if slices else None,
    }


def _learned_step(store: PatchStore, recipe: params.Recipe, slices: SliceDistance | None) -> int:
    """Return the distance, in slices, between the neighbours that the network knows; 0 where it saw none."""
    steps = store.with_context_steps(recipe.context_step, slices).train.context_steps
    return recipe.context_step if any(steps[stack] for stack in store.train.ranges) else 0


def _remove_recorded(checkpoints: Path) -> None:
    """Remove what trainings that ended left: those of other recipes, and this one where it was forced.

    It was forced where DVC has this model and these parameters on record. Otherwise it was stopped after its last line
    and before DVC recorded it, or runs for a parameter that decides nothing, such as the name of the data: then it ends
    with the same model at once.
    """
    is_forced = provenance.has_recorded_params("train")
    recorded = provenance.recorded_md5("train", MODEL) if is_forced else None
    for delivered in checkpoints.parent.glob(f"*/{DELIVERED}"):
        with suppress(FileNotFoundError):  # another training removes it
            if delivered.parent != checkpoints or delivered.read_text(encoding="utf-8") == recorded:
                shutil.rmtree(delivered.parent)


def _run_key(checkpoints: Path) -> str:
    """Return the key of the tracked run, which a resumed training continues."""
    file = checkpoints / "run"
    if not file.exists():
        files.write_text(file, f"train-{uuid.uuid4().hex}")
    return file.read_text(encoding="utf-8")

"""Search learning rate, depth and augmentation strength with Optuna."""

from __future__ import annotations

import uuid
from typing import Any

from mitoflow import lineage, params, tracking, training, tuning, workspace
from mitoflow.patches import PatchStore
from mitoflow.stages import BEST_PARAMS, PATCHES, TUNE_REPORTS, as_process


def main() -> None:
    settings = params.load()
    store = PatchStore.open(PATCHES)
    searched = settings.tune.model_dump(exclude={"trials"})
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
    name = "tune-" + workspace.fingerprint([searched, shared, store.digest, training.code_digest()])
    with workspace.only_one(name):
        recorded = lineage.recorded_md5("tune", BEST_PARAMS)
        study = tuning.open_study(workspace.state_dir() / "optuna.db", name, recorded)
        key = study.user_attrs.get("run") or f"tune-{uuid.uuid4().hex}"
        study.set_user_attr("run", key)

        with tracking.start("tune", "tune", key=key) as run:
            run.params({"tune": settings.tune.model_dump()})
            for number in tuning.recover(study):
                run.child(f"trial {number}", key=f"{key}-{number}").end("KILLED")

            def objective(number: int, values: dict[str, Any], report: tuning.Report) -> float:
                recipe = training.Recipe(
                    **values,
                    **shared,
                    epochs=settings.tune.epochs,
                    patches_per_epoch=settings.tune.patches_per_epoch,
                    patience=settings.tune.epochs,
                    seed=settings.tune.seed,
                )
                with run.child(f"trial {number}", key=f"{key}-{number}") as trial:
                    trial.params(training.as_dict(recipe))

                    def on_epoch(epoch: int, logs: training.Logs) -> None:
                        trial.metrics(logs, step=epoch)
                        try:
                            report(epoch, logs["val_dice"])
                        except tuning.Pruned:
                            trial.tags({"mitoflow.pruned": f"after epoch {epoch + 1}"})
                            trial.end()
                            raise

                    title = f"trial {len(tuning.finished_trials(study)) + 1} of {settings.tune.trials}"
                    fitted = training.fit(store, recipe, on_epoch=on_epoch, title=title)
                    return fitted.history[fitted.best_epoch]["val_dice"]

            tuning.run_study(study, settings.tune, objective)
            finished = tuning.finished_trials(study)
            workspace.write_yaml(BEST_PARAMS, study.best_params)
            names = ("learning_rate", "depth", "augment_strength")
            rows = (
                (place, trial.state.name, *(trial.params[name] for name in names), trial.value)
                for place, trial in enumerate(finished, start=1)
            )
            workspace.write_csv(TUNE_REPORTS / "trials.csv", ("trial", "state", *names, "val_dice"), rows)
            tuning.write_plots(study, TUNE_REPORTS / "plots", settings.tune.seed)
            summary = {"best_val_dice": study.best_value, "trials": len(finished)}
            workspace.write_json(TUNE_REPORTS / "metrics.json", summary)
            run.metrics(summary)
            run.params({"best": study.best_params})
            run.artifact(TUNE_REPORTS)
        tuning.mark_delivered(study, lineage.file_md5(BEST_PARAMS))
        print(f"best of {len(finished)} trials: validation Dice {study.best_value:.4f} with {study.best_params}")


if __name__ == "__main__":
    as_process(main)

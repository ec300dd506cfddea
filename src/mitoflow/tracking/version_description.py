"""What MLflow shows first of a version and of its logged model: verdict, scores, what it is, and how to use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from mitoflow.evaluation.verdict import Verdict
from mitoflow.tracking import store, version_tags

LONGEST = 5000  # characters that MLflow takes
NAMES = {"dice": "Dice", "iou": "IoU"}


def write(client: MlflowClient, version: ModelVersion, verdict: Verdict) -> None:
    """Describe a version, and its logged model where the user may write to its experiment."""
    logged = _logged_model(client, version)
    described = "\n\n".join(_paragraphs(version, verdict, logged.params if logged else {}))[:LONGEST]
    client.update_model_version(version.name, str(version.version), described)
    if logged:
        try:
            client.set_logged_model_tags(logged.model_id, {MLFLOW_RUN_NOTE: described})
        except MlflowException as error:
            if not store.is_forbidden(error):
                raise


def _logged_model(client: MlflowClient, version: ModelVersion) -> LoggedModel | None:
    """Return the logged model of a version; None where it was deleted, or the user may not see it."""
    try:
        run = client.get_run(version.run_id) if version.run_id else None
        outputs = run.outputs.model_outputs if run and run.outputs else []
        models = [client.get_logged_model(output.model_id) for output in outputs]
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" or store.is_forbidden(error):
            return None
        raise
    return next((model for model in models if model.artifact_location == version.source), None)


def _paragraphs(version: ModelVersion, verdict: Verdict, params: Mapping[str, str]) -> Iterator[str]:
    """Yield the paragraphs of a description in Markdown.

    Parameters
    ----------
    version, verdict
        The version, whose scores are in its tags, and what was decided about it.
    params
        Of its logged model; empty where there is none.
    """
    yield f"{'Promoted' if verdict.promoted else 'Not promoted'}: {verdict.reason}."
    scores = {NAMES[name]: version_tags.score(version, name) for name in version_tags.SCORES}
    measured = ", ".join(f"{name} {interval}" for name, interval in scores.items() if interval)
    if measured:
        yield measured
    if sets := version_tags.dice_by_set(version):
        yield "\n".join(f"- {name}: Dice {dice}" for name, dice in sets.items())
    if params:
        yield _what_it_is(params)
        yield _how_to_use(f"models:/{version.name}/{version.version}")
    if verdict.checks:
        yield "\n".join(f"- {check}" for check in verdict.checks)


def _what_it_is(params: Mapping[str, str]) -> str:
    network = params.get("train.network", "unet")
    depth = params.get("recipe.depth") or params.get("train.depth")  # earlier versions had what was tuned in `recipe`
    built = f"`{network}`" + (f" of depth {depth}" if depth else "")
    *sets, last = params.get("data.name", "unnamed data").split("+")
    trained_on = f"{', '.join(sets)} and {last}" if sets else last
    start, version = params.get("initial.name", "random weights"), params.get("initial.version")
    begun = f"{start} version {version}" if version else start
    return f"Finds mitochondria in slices of electron microscopy: {built}, trained on {trained_on} from {begun}."


def _how_to_use(address: str) -> str:
    return (
        f"    mitoflow predict STACK MASKS --model {address}\n\n"
        "or in Python, with slices (Z, Y, X), in the environment that the model requires:\n\n"
        f'    masks = mlflow.pyfunc.load_model("{address}").predict(slices)'
    )

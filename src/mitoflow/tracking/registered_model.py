"""A registered model: its name, which `registry.model` in ``params.yaml`` gives, and a client of its store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mitoflow.config import params
from mitoflow.errors import InputError
from mitoflow.tracking import promotion_log, store

NAME_TAG = "mitoflow.registered_model"  # of a version, and of what waits to become one


@dataclass(frozen=True)
class Registered:
    """A registered model of MLflow, with versions, champion and history of its own."""

    client: MlflowClient
    name: str


def name() -> str:
    """Return the name of the registered model of this project; raises `InputError` where ``params.yaml`` is wrong."""
    return params.load_registry().model


def create(client: MlflowClient, name: str) -> str:
    """Create a registered model where there is none of that name, and return the name."""
    store.make_registered_model(client, name, "Mitochondria in electron-microscopy slices")
    return name


@contextmanager
def opened(called: str = "") -> Iterator[Registered]:
    """Give the registered model of that name, or else of this project; raises `InputError` where MLflow is away.

    What this machine refuses is no fault of MLflow: such an OSError, which names its file, stays what it is.
    """
    try:
        yield Registered(store.client(store.uri()), called or name())
    except store.ERRORS as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise store.as_user_error(store.uri(), error) from None


def get_version(model: Registered, version: int) -> ModelVersion:
    """Return a version; raises `InputError` where there is no such one, or where the model was renamed in MLflow."""
    try:
        return model.client.get_model_version(model.name, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        promotion_log.require_not_renamed(model.client, model.name)
        remedy = "`mitoflow models` lists them"
        raise InputError(f"version {version}", "no such version", f"a version of model {model.name}", remedy) from None

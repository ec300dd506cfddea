"""A registered model: its name, which `registry.model` in ``params.yaml`` gives, and a client of its store."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow import MlflowClient

from mitoflow.config import params
from mitoflow.tracking import store

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

"""Commands for MLflow: open it, send what it missed, follow a checkout that was moved."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from mitoflow.cli._output import echo
from mitoflow.errors import InputError


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def ui(port: int) -> None:
    """Open MLflow: runs, artifacts and the model registry."""
    from mitoflow.tracking import local_store, runs, store

    place = store.uri()
    if not store.is_database(place):
        echo(f"MLflow is at {store.without_credentials(place)}")
        return
    local_store.require_usable(place)
    store.configure()
    experiment = store.client(place).get_experiment_by_name(os.environ.get("MLFLOW_EXPERIMENT_NAME") or runs.EXPERIMENT)
    page = f"/#/experiments/{experiment.experiment_id}{store.TRAINING_VIEW}" if experiment else ""
    echo(f"MLflow: http://127.0.0.1:{port}{page}")
    os.environ["MLFLOW_BACKEND_STORE_URI"] = place  # command lines are for everybody to see, and it may hold a password
    # One worker serves one person. MLflow's four take four times the memory, and are killed and started again without
    # end where a busy machine takes seconds to start them.
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", *command])


@click.command()
def sync() -> None:
    """Send to MLflow what it missed while it was away."""
    from mitoflow.tracking import runs

    synced = runs.sync()
    if synced.live:
        echo(f"{synced.live} running stages send for themselves")
    echo(f"{synced.sent} events sent")
    for outcome in synced.outcomes:
        echo(outcome)
    errors = list({str(error): error for error in synced.errors}.values())
    if synced.reason:
        found, remedy = f"{synced.left} events that it did not take", f"{synced.reason}; then run `mitoflow sync` again"
        errors.append(InputError("MLflow", found, "none", remedy))
    for error in errors[:-1]:
        echo(f"mitoflow: {error}", err=True)
    if errors:
        raise errors[-1]


@click.command()
def relocate() -> None:
    """Name artifacts here, in a checkout that was moved or copied.

    MLflow's database in the checkout has absolute paths of its artifacts.
    """
    from mitoflow.tracking import local_store

    before = local_store.relocate()
    for checkout in before:
        echo(f"mlflow.db: artifacts in {checkout / 'mlruns'} are in {Path.cwd() / 'mlruns'} now")
    if not before:
        echo("mlflow.db: nothing to change")

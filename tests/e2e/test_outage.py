"""The pipeline on a shared server, through the environment alone, and the server dies in the middle of it.

PostgreSQL, ``mlflow server`` and its accounts are real. Nothing of the result is lost, nothing of the history, and no
password is written anywhere.
"""

from __future__ import annotations

import secrets
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.services import PostgreSQL, TrackingServer

from .conftest import Project, outputs


def test_the_server_dies_during_training(
    fresh: Project, finished_project: Path, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = secrets.token_urlsafe(18)
    (fresh.folder / "mlflow.db").unlink()  # the store of the project as it was made
    with TrackingServer(postgresql.create("pipeline"), password) as server:
        who = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_TRACKING_USERNAME": "admin"}
        who["MLFLOW_TRACKING_PASSWORD"] = password

        def die_during_training() -> None:
            deadline = time.monotonic() + 300
            while not list(fresh.folder.glob(".mitoflow/checkpoints/*/epoch-0.npz")) and time.monotonic() < deadline:
                time.sleep(0.02)
            server.kill()

        killer = threading.Thread(target=die_during_training)
        killer.start()
        done = fresh.run("dvc", "repro", **who)
        killer.join()
        assert "mitoflow sync" in done.stdout + done.stderr
        assert outputs(fresh) == outputs(Project(finished_project))
        assert "Not decided yet" in fresh.read("reports/evaluate/report.html")
        away = fresh.run("mitoflow", "sync", check=False, **who)
        assert away.returncode == 2

        server.start()
        printed = fresh.run("mitoflow", "sync", **who).stdout
        for name, value in who.items():
            monkeypatch.setenv(name, value)
        client = MlflowClient(server.uri)
        evaluated = client.get_run(client.get_model_version_by_alias("mitoflow", "champion").run_id)
        trained = client.get_run(evaluated.data.tags["mitoflow.training_run"])
        assert evaluated.info.status == trained.info.status == "FINISHED"
        assert [point.step for point in client.get_metric_history(trained.info.run_id, "val_dice")] == [0, 1, 2, 3]
        assert "train" in {file.path for file in client.list_artifacts(trained.info.run_id)}
        assert "evaluate" in {file.path for file in client.list_artifacts(evaluated.info.run_id)}
        assert "0 events sent" in fresh.run("mitoflow", "sync", **who).stdout

        # The environment was enough: no file that git knows was changed.
        assert fresh.run("git", "diff", "--name-only").stdout == ""
        assert not (fresh.folder / "mlflow.db").exists()
        texts = [done.stdout, done.stderr, away.stderr, printed, server.log, postgresql.run("pg_dump", "pipeline")]
        files = [file for place in (fresh.folder, server.folder) for file in place.rglob("*") if file.is_file()]
        assert not [text for text in texts if password in text]
        assert not [file for file in files if password.encode() in file.read_bytes()]

"""The tracking server dies in the middle of the pipeline: nothing of the result is lost, and nothing of the history."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from mlflow import MlflowClient

from .conftest import Project, outputs

PATIENCE = 120


class Server:
    """A real `mlflow server` that can be killed and started again on the same store."""

    def __init__(self, folder: Path, project: Project) -> None:
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.project, self.address = folder, project, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        artifacts = ["--artifacts-destination", str(self.folder / "artifacts")]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        self.process = subprocess.Popen(
            ["mlflow", "server", *where, *store, *artifacts],
            cwd=self.folder,
            env=self.project.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urlopen(f"{self.address}/health", timeout=5)
                return
            except (URLError, OSError):
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.2)

    def kill(self) -> None:
        """Kill the server and all its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def test_the_server_dies_during_training(fresh: Project, finished_project: Path, tmp_path: Path) -> None:
    server = Server(tmp_path / "server", fresh)

    def die_during_training() -> None:
        deadline = time.monotonic() + 300
        while not list(fresh.folder.glob(".mitoflow/checkpoints/*/epoch-0.npz")) and time.monotonic() < deadline:
            time.sleep(0.02)
        server.kill()

    killer = threading.Thread(target=die_during_training)
    killer.start()
    done = fresh.run("dvc", "repro", MLFLOW_TRACKING_URI=server.address)
    killer.join()
    assert "mitoflow sync" in done.stdout + done.stderr
    assert outputs(fresh) == outputs(Project(finished_project))
    assert "Not decided yet" in fresh.read("reports/evaluate/report.html")
    away = fresh.run("mitoflow", "sync", check=False, MLFLOW_TRACKING_URI=server.address)
    assert away.returncode == 2

    server.start()
    try:
        fresh.run("mitoflow", "sync", MLFLOW_TRACKING_URI=server.address)
        client = MlflowClient(server.address)
        trained = client.get_model_version_by_alias("mitoflow", "champion").run_id
        assert client.get_run(trained).info.status == "FINISHED"
        assert [point.step for point in client.get_metric_history(trained, "val_dice")] == [0, 1, 2, 3]
        assert {file.path for file in client.list_artifacts(trained)} >= {"evaluate", "train"}
        assert "0 events sent" in fresh.run("mitoflow", "sync", MLFLOW_TRACKING_URI=server.address).stdout
    finally:
        server.kill()

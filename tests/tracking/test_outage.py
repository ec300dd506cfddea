"""A real ``mlflow server`` on the loopback interface that is down, killed and restarted."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mitoflow.core import provenance
from mitoflow.errors import InputError
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference.settings import Settings
from mitoflow.models import unet
from mitoflow.tracking import journal, lineage, registration, registry, runs, store

pytestmark = pytest.mark.e2e

EPOCHS = 12


class Server:
    """``mlflow server`` with SQLite behind it; `kill` is ``kill -9`` and keeps the data."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.process:
            return
        options = ["--port", str(self.port), "--workers", "1", "--host", "127.0.0.1"]
        options += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        options += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).parent / "mlflow", "server", *options],
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                MlflowClient(self.uri).search_experiments(max_results=1)
                return
            except Exception:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.2)
        raise TimeoutError((self.folder / "log").read_text())

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def checkout(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(key: str) -> Run:
    client = store.client(store.uri())
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.`mitoflow.key` = '{key}'")
    return run


def epochs_of(key: str) -> list[int]:
    """Every point of the run's curve, in the order of the server."""
    history = store.client(store.uri()).get_metric_history(found(key).info.run_id, "val_dice")
    assert all(point.value == point.step / EPOCHS for point in history)
    return [point.step for point in history]


def train(run: runs.Run, first: int, last: int) -> float:
    """Report epochs, and return the seconds that the slowest report took."""
    slowest = 0.0
    for epoch in range(first, last):
        begun = time.perf_counter()
        run.metrics({"val_dice": epoch / EPOCHS}, step=epoch)
        slowest = max(slowest, time.perf_counter() - begun)
        time.sleep(0.02)
    return slowest


def test_down_at_the_start(
    server: Server, checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server.kill()
    (checkout / "curves.csv").write_text("epoch,val_dice\n")
    begun = time.perf_counter()
    with runs.start("train", "all of it away") as away:
        away.params({"seed": 1})
        assert train(away, 0, EPOCHS) < 0.5
        away.artifact(checkout / "curves.csv")
        with away.child("trial 0") as trial:
            trial.metrics({"val_dice": 0.0})
    assert time.perf_counter() - begun < 10
    message = capfd.readouterr().err
    assert (
        f"{server.uri}: [Errno 111] Connection refused; 19 events are kept on disk, send them with `mitoflow" in message
    )
    assert len(message.splitlines()) == 1
    synced = runs.sync()
    assert (synced.sent, synced.left) == (0, 19)
    assert "Connection refused" in synced.reason

    monkeypatch.setattr(runs, "WARN_AFTER", 0.0)
    with runs.start("train", "away at first") as late:
        train(late, 0, 5)
        server.start()
        train(late, 5, EPOCHS)
    gone, back = capfd.readouterr().err.splitlines()
    assert gone.endswith("Connection refused; the run continues, and its events are kept on disk")
    assert back.endswith("answers again, and has all events")
    assert epochs_of(late.key) == list(range(EPOCHS))
    assert found(late.key).info.status == "FINISHED"

    assert runs.sync() == runs.Synced(sent=19, left=0, live=0, reason="")
    there = found(away.key)
    assert epochs_of(away.key) == list(range(EPOCHS))
    assert (there.info.status, there.data.params) == ("FINISHED", {"seed": "1"})
    assert there.info.end_time - there.info.start_time < 10_000  # the times of the run, not of the sync
    client = store.client(store.uri())
    assert [file.path for file in client.list_artifacts(there.info.run_id)] == ["curves.csv"]
    assert found(trial.key).data.tags["mlflow.parentRunId"] == there.info.run_id
    assert not journal.folders()


def test_killed_in_the_middle_and_down_at_the_end(
    server: Server, checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.start()
    model, settings = checkout / "unet.keras", checkout / "unet.yaml"
    unet.save_model(unet.build_unet(depth=1, base_width=1), model)
    Settings(bit_depth=8, divisor=2, tile=64, overlap=16, threshold=0.5).write(settings)
    evaluation = Evaluation(provenance.file_sha256(model), "test", ["a"] * 4, [[9, 1, 1, 9]] * 4, 2, 50, 0)

    with runs.start("train", "unet") as run:
        train(run, 0, 5)
        assert run.flush()
        train(run, 5, 7)  # some of it may be under way when the server dies
        server.kill()
        assert train(run, 7, EPOCHS) < 0.5
        run.artifact(settings)
        run.produced(model)
        begun = time.perf_counter()
        assert registration.register(run, evaluation, model, settings) is None
    assert time.perf_counter() - begun < 20
    assert "are kept on disk, send them with `mitoflow sync`" in capfd.readouterr().err
    assert runs.producer(model) == run.key

    server.start()
    synced = runs.sync()
    assert (synced.left, synced.reason) == (0, "")
    assert synced.outcomes == ("model mitoflow version 1: there was no champion",)
    assert journal.folders() == []
    there = found(run.key)
    assert epochs_of(run.key) == list(range(EPOCHS))
    assert there.info.status == "FINISHED"
    client = store.client(store.uri())
    assert [file.path for file in client.list_artifacts(there.info.run_id)] == ["unet.yaml"]
    (row,) = registry.models()
    assert (row.version, row.aliases, row.run_id) == (1, ("champion",), there.info.run_id)
    assert row.reason == "there was no champion"
    assert lineage.origin(str(model))["version"] == "1"
    with runs.start("evaluate", "the same again", key=run.key) as again:
        assert registration.register(again, evaluation, model, settings).version == 1
    assert len(registry.models()) == 1


def test_a_server_that_hangs(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.perf_counter()
        with runs.start("train", "unet") as run:
            assert train(run, 0, 5) < 0.5
        assert time.perf_counter() - begun < 6
        assert "timed out; 7 events are kept on disk" in capfd.readouterr().err
        with pytest.raises(InputError, match="an MLflow registry that answers"):
            registry.models()


class _AskForPassword(BaseHTTPRequestHandler):
    """The answer of a proxy that asks for a password."""

    def do_POST(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"Unauthorized")

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def test_wrong_credentials(checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with HTTPServer(("127.0.0.1", 0), _AskForPassword) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{proxy.server_port}")
        with runs.start("train", "unet") as run:
            train(run, 0, 5)
        message = capfd.readouterr().err
        assert "error code 401" in message
        assert "7 events are kept on disk" in message
        assert len(message.splitlines()) == 1
        assert runs.sync().left == 7
        with pytest.raises(InputError, match="error code 401"):
            registry.promote(1)
        proxy.shutdown()

"""A tracking server that is away, slow, wrong or full: every point reaches it once."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from mitoflow.tracking import journal, runs, store
from tests.parts import until
from tests.services import PostgreSQL, TrackingServer

from .injection import LONG, fault
from .namespace import MOUNTS, disk
from .proxy import TROUBLES, Proxy

EPOCHS = 15


@pytest.fixture(scope="module")
def database() -> Iterator[PostgreSQL]:
    with PostgreSQL() as database:
        yield database


@pytest.fixture(scope="module")
def server(database: PostgreSQL) -> Iterator[TrackingServer]:
    with TrackingServer(database.create("mlflow")) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: TrackingServer) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(runs, "PATIENCE", 2.0)
    monkeypatch.setattr(runs, "FIRST_PAUSE", 0.2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Training:
    """What a training reports, epoch by epoch, and whether the server has all of it."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.values = [chance.random() for _ in range(EPOCHS)]
        self.pauses = [chance.uniform(0, 0.2) for _ in range(EPOCHS)]
        self.curves = folder / "curves.csv"
        self.curves.write_text("\n".join(map(str, self.values)))

    def __iter__(self) -> Iterator[int]:
        """Report, and yield each epoch after it was."""
        with runs.start("train", "train") as run:
            self.key = run.key
            run.params({"seed": 1})
            for epoch, value in enumerate(self.values):
                run.metrics({"val_dice": value, "loss": -value}, step=epoch)
                time.sleep(self.pauses[epoch])
                yield epoch
            with run.child("trial 0", key=f"{run.key}-0") as trial:
                trial.metrics({"val_dice": self.values[0]})
            run.artifact(self.curves)
            run.tags({"mitoflow.note": "done"})

    def check(self, place: str) -> None:
        until(lambda: not runs.sync().live)  # the threads of a slow run, which end with its process
        assert runs.sync() == runs.Synced(sent=0, left=0, live=0, reason="")
        assert journal.folders() == []
        client = store.client(place)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        (run,) = client.search_runs(experiments, f"tags.`mitoflow.key` = '{self.key}'")
        for name, sign in (("val_dice", 1), ("loss", -1)):
            points = client.get_metric_history(run.info.run_id, name)
            assert [(point.step, point.value) for point in points] == [(e, sign * v) for e, v in enumerate(self.values)]
        assert (run.info.status, run.data.params) == ("FINISHED", {"seed": "1"})
        assert run.data.tags["mitoflow.note"] == "done"
        (child,) = client.search_runs(experiments, f"tags.`mitoflow.key` = '{self.key}-0'")
        assert child.data.tags["mlflow.parentRunId"] == run.info.run_id
        assert [point.step for point in client.get_metric_history(child.info.run_id, "val_dice")] == [0]
        got = client.download_artifacts(run.info.run_id, "curves.csv", str(self.curves.parent / "got"))
        assert Path(got).read_text() == self.curves.read_text()


@pytest.mark.parametrize("trouble", TROUBLES.values() if LONG else [TROUBLES["refusing"], TROUBLES["mute"]])
@fault("tracking server {trouble}", long=8)
def test_troubled(
    proxy: Proxy, checkout: Path, chance: random.Random, trouble: str, attempt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    training = Training(checkout, chance)
    begin, end = sorted(chance.sample(range(EPOCHS + 1), 2))
    proxy.chance, proxy.share = chance, chance.choice([0.3, 0.7, 1.0])
    try:
        for epoch in training:
            proxy.trouble = next(k for k, v in TROUBLES.items() if v == trouble) if begin <= epoch <= end else None
    finally:
        proxy.trouble = None
    training.check(proxy.uri)


@fault("tracking server killed and started again", long=5, short=0)
def test_killed(
    server: TrackingServer, checkout: Path, chance: random.Random, attempt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    training = Training(checkout, chance)
    killed, started = sorted(chance.sample(range(EPOCHS + 1), 2))
    for epoch in training:
        if epoch == killed:
            server.kill()
        if epoch == started:
            server.start()
    server.start()
    training.check(server.uri)


@pytest.mark.parametrize("how", ["restarted", "killed and started again"] if LONG else ["restarted"])
@fault("PostgreSQL {how}", long=6)
def test_database(
    server: TrackingServer,
    database: PostgreSQL,
    checkout: Path,
    chance: random.Random,
    how: str,
    attempt: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    training = Training(checkout, chance)
    gone, back = sorted(chance.sample(range(EPOCHS + 1), 2))
    for epoch in training:
        if epoch == gone:
            database.stop() if how == "restarted" else database.kill()
        if epoch == back:
            database.start()
    database.start()
    training.check(server.uri)


@fault("connections to PostgreSQL cut in the middle of a transaction", long=8)
def test_cut_transactions(
    server: TrackingServer,
    database: PostgreSQL,
    checkout: Path,
    chance: random.Random,
    attempt: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lock holds up the server after it wrote points, and before it commits them."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    training = Training(checkout, chance)
    locked, cut = sorted(chance.sample(range(EPOCHS), 2))
    with (
        psycopg.connect(database.uri("mlflow")) as lock,
        psycopg.connect(database.uri("mlflow"), autocommit=True) as at,
    ):
        for epoch in training:
            if epoch == locked:
                lock.execute("lock table latest_metrics in exclusive mode")
            if epoch == cut:
                until(lambda: at.execute(CUT).fetchall())
                lock.rollback()
    training.check(server.uri)


#: Ends the connections that wait for a lock, and returns a row for each.
CUT = "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock' and datname = 'mlflow'"


@MOUNTS
@fault("disk of the tracking server full", long=4, short=0)
def test_full(checkout: Path, chance: random.Random, attempt: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with FullDisk() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        training = Training(checkout, chance)
        full, emptied = sorted(chance.sample(range(EPOCHS + 1), 2))
        for epoch in training:
            if epoch == full:
                server.disk.fill(left=chance.randrange(3) * 4096)
            if epoch == emptied:
                server.disk.empty()
        server.disk.empty()
        training.check(server.uri)


class FullDisk(TrackingServer):
    """A tracking server on SQLite, with a small disk of its own."""

    def __init__(self) -> None:
        super().__init__("")
        self.database = f"sqlite:///{self.folder}/mlflow.db"
        self._stack = ExitStack()
        self.disk = self._stack.enter_context(disk(self.folder, "16m"))

    def command(self) -> list[str]:
        return [*self.disk.enter, *map(str, super().command())]

    def __exit__(self, *_: object) -> None:
        self._stack.callback(super().__exit__)
        self.kill()
        self._stack.close()

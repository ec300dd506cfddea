"""PostgreSQL and ``mlflow server``, stopped and started again."""

import pytest
from mlflow import MlflowClient

from tests.services import PostgreSQL, TrackingServer

pytestmark = pytest.mark.e2e


def test_runs_outlive_what_happens_to_the_servers() -> None:
    with PostgreSQL() as database, TrackingServer(database.create("mlflow")) as server:
        client = MlflowClient(server.uri)
        run = client.create_run(client.create_experiment("kept"))
        client.log_metric(run.info.run_id, "dice", 0.5)
        client.log_text(run.info.run_id, "said", "note.txt")
        database.restart()  # as an upgrade does it; the server finds its way back
        assert client.get_run(run.info.run_id).info.status == "RUNNING"
        server.kill()
        database.kill()
        assert not server.answers()
        assert not database.answers()
        database.start()
        server.start()
        assert client.get_run(run.info.run_id).data.metrics == {"dice": 0.5}
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]
        assert database.run("psql", "-tAc", "select value from metrics", "mlflow").strip() == "0.5"

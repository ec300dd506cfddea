from __future__ import annotations

import os
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mitoflow.tracking import runs, store
from tests.tracking import tiny_model


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty MLflow database, whose tables take seconds to create."""
    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    store.client(f"sqlite:///{path}")
    return path.read_bytes()


@pytest.fixture
def client(tables: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A client of the store of a project, the current folder, where a packed model waits to be registered."""
    for name in ("DVC_ROOT", "DVC_EXP_NAME", *(name for name in os.environ if name.startswith("MLFLOW_"))):
        if name not in store.DEFAULTS:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "PATIENCE", 5.0)
    store._note.cache_clear()
    Path("mlflow.db").write_bytes(tables)
    Path("params.yaml").write_text("{}\n")
    tiny_model.write()
    return store.client(store.uri())

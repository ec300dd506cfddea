"""MLflow's settings: set by the first client, and not by an import."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mitoflow.tracking import store

pytestmark = pytest.mark.slow

REPORT = """
import contextlib, json, logging, os
from mitoflow.tracking import delivery, model_lookup, packing, pretrained, registration, registry, release, runs, store

def variables():
    return {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}

imported = variables()
with contextlib.suppress(*store.ERRORS):  # nothing answers there
    store.client("http://127.0.0.1:9")
levels = [logging.getLogger(name).level for name in ("mlflow", "mlflow.store.db.utils")]
print(json.dumps([imported, variables(), levels]))
"""
#: By these MLflow recognises a test, in which it has no telemetry.
OF_TESTS = ("PYTEST_CURRENT_TEST", "GITHUB_ACTIONS", "CI")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose home folder is empty."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", *OF_TESTS))}
    return kept | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / ".config")}


def test_an_import_sets_nothing_and_the_first_client_sets_what_the_user_did_not(environment: dict[str, str]) -> None:
    chosen = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "99", "MLFLOW_LOGGING_LEVEL": "error"}
    command = [sys.executable, "-c", REPORT]
    ran = subprocess.run(command, env=environment | chosen, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [chosen, store.DEFAULTS | chosen, [logging.ERROR, logging.CRITICAL]]


def test_a_command_leaves_the_home_folder_as_it_was(environment: dict[str, str], tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "params.yaml").write_text("{}\n")
    command = [sys.executable, "-m", "mitoflow.cli", "models"]
    ran = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=True)
    assert (ran.stdout.startswith("no versions of mitoflow yet"), ran.stderr) == (True, "")
    assert list(tmp_path.rglob("telemetry.json")) == []

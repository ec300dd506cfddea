"""The small project of the end-to-end tests, chance, and the count of faults."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.e2e.conftest import finished, finished_project, fresh, made_project

from .injection import SEED, Table
from .namespace import private_mounts

__all__ = ["finished", "finished_project", "fresh", "made_project", "private_mounts"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(what): the test injects this fault")
    if not hasattr(config, "workerinput"):
        os.environ["FAULT_SEED"] = SEED  # for the workers
        config.pluginmanager.register(Table())


@pytest.fixture(autouse=True)
def _named(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    mark = request.node.get_closest_marker("fault")
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if mark:
        record_property("fault", mark.args[0].format(**parameters))


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this attempt alone."""
    print(f"FAULT_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")

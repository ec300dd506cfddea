from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from selenium import webdriver
from selenium.webdriver.remote.webdriver import WebDriver

from mitoflow.data.phantom import write_phantom
from tests.services import PostgreSQL, find_program

TESTS = Path(__file__).parent
TRACKING_URI = "MLFLOW_TRACKING_URI"

# A machine that is busy with something else is no reason to fail.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in ``e2e`` and ``faults``; elsewhere a test that starts a server has its marker in its file."""
    for item in items:
        if item.path.is_relative_to(TESTS / "e2e") or item.path.is_relative_to(TESTS / "faults"):
            item.add_marker("e2e")


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what MLflow does to ``sys.path``: it puts the code of a model there, and spawned processes import it."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(scope="module", autouse=True)
def own_tracking_uri() -> Iterator[None]:
    """Undo what `mlflow.set_tracking_uri` does to the environment, for the tests of the next file."""
    before = os.environ.get(TRACKING_URI)
    yield
    if before is None:
        os.environ.pop(TRACKING_URI, None)
    else:
        os.environ[TRACKING_URI] = before


@pytest.fixture(autouse=True)
def own_dtype_policy() -> Iterator[None]:
    """Undo what a training does to the process: its precision becomes that of the layers that are built after it."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``data/`` folder of a small phantom; shared by tests, so copy it before changing it."""
    data = tmp_path_factory.mktemp("small") / "data"
    write_phantom(data, train=(24, 96, 128), test=(8, 96, 128))
    return data


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """PostgreSQL for tests that leave it running; each makes a database of its own there."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """A real, headless browser, where there is one."""
    chromium, driver_path = find_program("chromium", "chromium"), find_program("chromedriver", "chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-dev-shm-usage",
        "--window-size=1600,1200",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    yield driver
    driver.quit()

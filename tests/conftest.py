from __future__ import annotations

from pathlib import Path

import pytest

from mitoflow.phantom import write_phantom


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``data/`` folder of a small phantom; shared by tests, so copy it before changing it."""
    data = tmp_path_factory.mktemp("small") / "data"
    write_phantom(data, train=(24, 96, 128), test=(8, 96, 128))
    return data

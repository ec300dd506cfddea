from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from mitoflow.phantom import write_phantom

# A machine that is busy with something else is no reason to fail.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``data/`` folder of a small phantom; shared by tests, so copy it before changing it."""
    data = tmp_path_factory.mktemp("small") / "data"
    write_phantom(data, train=(24, 96, 128), test=(8, 96, 128))
    return data

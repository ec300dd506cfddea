"""What several tests of inference share."""

from __future__ import annotations

import pytest

from mitoflow.inference.predictor import Predictor

from .disks import disk_finder


@pytest.fixture(scope="session")
def finder() -> Predictor:
    return disk_finder()

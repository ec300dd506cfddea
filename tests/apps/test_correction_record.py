"""What the lineage says of corrections by hand."""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime

import pytest

from mitoflow.apps.correction_record import with_correction


@pytest.fixture(autouse=True)
def _anna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "anna")


def test_it_names_the_program_the_account_and_the_time() -> None:
    recorded = with_correction({"model": "unet.keras"}, "in napari 0.9.2")
    assert recorded.keys() == {"model", "corrected"}
    made, time = recorded["corrected"].rsplit(", ", 1)
    assert made == "by hand, in napari 0.9.2, run by anna"
    assert abs((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()) < 60


def test_earlier_corrections_stay_and_what_was_not_predicted_was_drawn() -> None:
    drawn = with_correction({}, "in napari 0.9.2")
    assert drawn.keys() == {"drawn"}
    once = with_correction(drawn, "in 2 strokes on the page of mitoflow 0.2.0")
    twice = with_correction(once, "in napari 0.9.2")
    assert twice["drawn"] == drawn["drawn"]
    assert twice["corrected"].startswith(f"{once['corrected']}; by hand, in napari 0.9.2, run by anna, ")


def test_an_account_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert f"run by {os.getuid()}, " in with_correction({}, "in napari 0.9.2")["drawn"]

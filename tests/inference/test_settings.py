"""The file of settings that inference needs besides the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mitoflow.errors import InputError
from mitoflow.inference.settings import Settings

SETTINGS = Settings(bit_depth=8, divisor=4, tile=64, overlap=16, threshold=0.5)


def test_settings_survive_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = replace(SETTINGS, context=2, tta=8, median=5, contacts=True)
    written.write(tmp_path / "inference.yaml")
    assert Settings.read(tmp_path / "inference.yaml") == written
    assert not caplog.records


KEYS = "bit_depth: 8\ndivisor: 4\ntile: 64\noverlap: 8\nthreshold: 0.5\ncontext: 0\ncontext_step: 1\nmedian: 1\n"
NOW, OLD = KEYS + "tta: 1\northoplanes: false\n", KEYS + "views: 1\nplanes: 1\n"


@pytest.mark.parametrize(
    ("views", "planes", "settings", "now"),
    [
        (1, 1, SETTINGS, "tta: 1, orthoplanes: false and overlap: 16 now"),
        (8, 3, replace(SETTINGS, tta=8, orthoplanes=True), "tta: 8, orthoplanes: true and overlap: 16 now"),
    ],
)
def test_settings_of_mitoflow_0_1_are_read_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, views: int, planes: int, settings: Settings, now: str
) -> None:
    (tmp_path / "inference.yaml").write_text(f"{KEYS}views: {views}\nplanes: {planes}\n")
    assert Settings.read(tmp_path / "inference.yaml") == settings
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("mitoflow", "WARNING")
    assert now in record.getMessage()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[1, 2]", "found list, expected keys with values"),
        ("a: b: c", "expected YAML"),
        (KEYS, "inference.yaml: tta: found no such key"),
        (NOW.replace("context: 0\n", ""), "inference.yaml: context: found no such key"),
        (NOW.replace("orthoplanes: false", "orthoplanes: 1"), "found orthoplanes: 1"),
        (NOW + "contacts: 2\n", "found contacts: 2"),
        (NOW.replace("tta: 1", "tta: 2"), "found tta: 2"),
        (OLD.replace("planes: 1", "planes: 2"), "found orthoplanes: 2"),
        (OLD.replace("views: 1", "views: [1]"), "found tta: [1]"),
        (OLD.replace("overlap: 8", "overlap: none"), "found overlap: none"),
    ],
)
def test_broken_settings_are_one_line(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "inference.yaml").write_text(text)
    with pytest.raises(InputError, match="inference.yaml") as raised:
        Settings.read(tmp_path / "inference.yaml")
    assert found in str(raised.value)

"""Touching mitochondria that are told apart: the truth by drawn lines, and the scores of the rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from benchmarks import touching


def bar() -> np.ndarray:
    """Return one object that shows no neck: 40 rows of 100 columns."""
    mask = np.zeros((60, 120), bool)
    mask[10:50, 10:110] = True
    return mask


def test_a_line_divides_an_object_and_every_pixel_belongs_to_a_part() -> None:
    parts = touching.divided(bar(), [[(8, 40), (52, 40)]])
    assert (parts > 0).tolist() == bar().tolist()
    assert parts[30, 20] != parts[30, 100]
    sizes = np.bincount(parts[bar()])[1:]
    assert sorted(sizes) == pytest.approx([1200, 2800], abs=40)  # 30 and 70 columns; the line is one of 40 rows


def test_the_rule_misses_what_only_the_line_divides() -> None:
    rows = touching.scores({0: bar()}, {0: [[(8, 60), (52, 60)]]})
    assert [[*row[:3], row[4]] for row in rows] == [[f"{neck:g}", "2", "1", "0.000"] for neck in touching.NECKS]


def test_the_rule_finds_what_no_line_divides() -> None:
    rows = touching.scores({0: bar()}, {0: []})
    assert rows[0] == ["0", "1", "1", "1.000", "1.000"]


def test_too_few_sections_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "masks.tif", bar()[None].astype(np.uint8) * 255, photometric="minisblack")
    with pytest.raises(SystemExit) as ended:
        touching.main([str(tmp_path / "masks.tif")])
    assert ended.value.code == 2
    assert "found 1 sections, expected 6 or more" in capsys.readouterr().err


def test_the_lines_of_the_project_are_read() -> None:
    lines = touching.read_lines(touching.LINES)
    assert sorted(lines) == [0, 1, 2, 3, 4, 5]
    assert all(len(points) > 1 for of_section in lines.values() for points in of_section)

"""Touching mitochondria that are told apart: the truth by drawn lines, and the scores of the rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from benchmarks import numbered, touching
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from tests.tiny_model import network_of_brightness, two_that_touch

SETTINGS = Settings(bit_depth=8, divisor=1, tile=64, overlap=16, threshold=0.5, contacts=True)


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
    rows = touching.scores({0: bar()}, {0: touching.divided(bar(), [[(8, 60), (52, 60)]])})
    assert [[*row[:3], row[4]] for row in rows] == [[f"{neck:g}", "2", "1", "0.000"] for neck in touching.NECKS]


def test_the_rule_finds_what_no_line_divides() -> None:
    rows = touching.scores({0: bar()}, {0: touching.divided(bar(), [])})
    assert rows[0] == ["0", "1", "1", "1.000", "1.000"]


def test_contacts_find_what_the_rule_misses() -> None:
    line = np.zeros_like(bar())
    line[:, 59:61] = True
    rows = touching.scores({0: bar()}, {0: touching.divided(bar(), [[(8, 60), (52, 60)]])}, {0: line})
    assert [row[1:] for row in rows[1:]] == [["2", "2", "1.000", "1.000"]] * (len(touching.NECKS) - 1)


def test_sections_are_divided_by_a_network_that_was_fitted_on_others(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted_on = []

    def fitted(sections: dict[int, tuple[np.ndarray, np.ndarray]]) -> Predictor:
        fitted_on.append([*sections])
        return Predictor(network_of_brightness(), SETTINGS)

    monkeypatch.setattr(touching, "fitted", fitted)
    (stack,) = two_that_touch()
    found = touching.learned_contacts(dict.fromkeys(range(4), stack), dict.fromkeys(range(4), stack))
    assert fitted_on == [[1, 3], [0, 2]]
    assert all(np.array_equal(found[section], stack == 255) for section in range(4))


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


def test_masks_are_numbered_by_the_rule_and_keep_their_pixels(tmp_path: Path) -> None:
    masks = np.zeros((2, 60, 120), bool)
    masks[:, 10:50, 10:50] = masks[:, 10:50, 60:110] = True
    masks[:, 28:32, 50:60] = True  # a neck of a tenth of their width
    masks[:, 20:22, 20:22] = False
    masks[:, 55:57, 5:7] = True
    tifffile.imwrite(tmp_path / "masks.tif", masks.astype(np.uint8) * 255, photometric="minisblack")
    numbered.main([str(tmp_path / "masks.tif"), str(tmp_path / "numbers.tif"), "--voxel-size", "50,5,5"])
    labels = tifffile.imread(tmp_path / "numbers.tif")
    assert labels.dtype == np.uint16
    assert np.array_equal(labels > 0, masks)
    assert len({labels[0, 30, 30], labels[0, 30, 90], labels[0, 56, 6]}) == labels.max() == 3


def test_masks_of_heart_are_numbered_by_the_lines() -> None:
    masks = np.ones((7, 1024, 1024), bool)
    masks[:, 0] = masks[:, -1] = masks[:, :, 0] = masks[:, :, -1] = False
    labels = numbered.by_lines(masks)
    assert np.array_equal(labels > 0, masks)
    assert labels[6].max() == 1  # there are no lines for it
    assert np.array_equal(labels[3], touching.divided(masks[3], touching.read_lines(touching.LINES)[3]))

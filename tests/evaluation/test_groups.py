"""Conditions compared by their animals."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy import stats

from mitoflow.cli.predict import groups
from mitoflow.config.params import Instances
from mitoflow.errors import InputError, as_user_error
from mitoflow.evaluation.groups import OUTPUTS, compare_groups
from mitoflow.instances.labelling import measure_labels

ANIMALS = {"a1": ("control", [4, 5]), "a2": ("control", [5, 6]), "b1": ("treated", [8, 9]), "b2": ("treated", [10])}
NM = {"z": 100.0, "y": 100.0, "x": 100.0}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    """Cubes of some sides for each animal, and one that the border cuts in each table."""
    lines = ["table,condition,animal"]
    for name, (condition, sides) in ANIMALS.items():
        labels = np.zeros((14, 14, 14 * 4), np.uint8)
        labels[:11, 1:12, 1:12] = 1  # at the first slice
        for label, side in enumerate(sides, 2):
            labels[1 : side + 1, 1 : side + 1, 14 * (label - 1) : 14 * (label - 1) + side] = label
        measure_labels(labels, NM).write(tmp_path / f"{name}.csv")
        lines.append(f"{name}.csv,{condition},{name}")
    path = tmp_path / "sheet.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_conditions_are_compared_by_the_medians_of_their_animals(sheet: Path, tmp_path: Path) -> None:
    assert Instances().smallest_um3 < 0.064
    differences = {each.measure: each for each in compare_groups(sheet, tmp_path / "out")}
    control, treated = [(4**3 + 5**3) / 2e3, (5**3 + 6**3) / 2e3], [(8**3 + 9**3) / 2e3, 10**3 / 1e3]
    found = differences["volume_um3"]
    assert (found.condition, found.reference, found.animals, found.reference_animals) == ("treated", "control", 2, 2)
    assert (found.mean, found.reference_mean) == pytest.approx((np.mean(treated), np.mean(control)), rel=1e-5)
    # Welch 1947, with the degrees of freedom of Satterthwaite.
    parts = [np.var(each, ddof=1) / 2 for each in (treated, control)]
    freedom = sum(parts) ** 2 / sum(part**2 for part in parts)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half), rel=1e-4)

    animals = rows(tmp_path / "out/animals.csv")
    assert [(row["animal"], row["mitochondria"], row["whole"]) for row in animals] == [
        ("a1", "3", "2"), ("a2", "3", "2"), ("b1", "3", "2"), ("b2", "2", "1"),
    ]  # fmt: skip
    together = rows(tmp_path / "out/mitochondria.csv")
    assert len(together) == 11
    assert [*together[0]][:4] == ["condition", "animal", "table", "label"]
    written = {row["measure"]: row for row in rows(tmp_path / "out/comparison.csv")}
    assert float(written["volume_um3"]["difference"]) == pytest.approx(found.difference, rel=1e-5)
    assert Image.open(tmp_path / "out/groups.png").size[0] == 1800
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*OUTPUTS}


@pytest.mark.slow
def test_many_mitochondria_of_few_animals_make_no_narrow_interval(sheet: Path, tmp_path: Path) -> None:
    before = {each.measure: each for each in compare_groups(sheet, tmp_path / "one")}
    for name in ANIMALS:  # each mitochondrion a hundred times
        path = tmp_path / f"{name}.csv"
        head, *lines = path.read_text().splitlines()
        path.write_text("\n".join([head, *lines * 100]) + "\n")
    after = {each.measure: each for each in compare_groups(sheet, tmp_path / "two")}
    found, expected = after["volume_um3"], before["volume_um3"]
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_animal_gives_no_interval(sheet: Path, tmp_path: Path) -> None:
    sheet.write_text("table,condition,animal\na1.csv,control,x\na2.csv,control,x\nb1.csv,treated,y\nb2.csv,treated,z\n")
    (found,) = [each for each in compare_groups(sheet, tmp_path / "out") if each.measure == "volume_um3"]
    assert (found.reference_animals, found.why_blank) == (1, "fewer than two animals with a value")
    assert math.isnan(found.low)
    assert found.difference > 0


def test_what_cannot_be_compared_is_one_line(sheet: Path, tmp_path: Path) -> None:
    measure_labels(np.pad(np.ones((1, 4, 4), np.uint8), ((0, 0), (1, 1), (1, 1))), NM).write(tmp_path / "slice.csv")
    (tmp_path / "other.csv").write_text("label,touches_border,size\n1,0,3\n")
    head = "table,condition,animal\na1.csv,control,x\n"
    for text, line in (
        ("table,animal\na1.csv,x\n", "sheet.csv: found no column condition, expected the columns table, condition"),
        (f"{head}slice.csv,treated,y\n", "slice.csv: found a table of a single slice, expected tables of stacks alone"),
        (f"{head}other.csv,treated,y\n", "other.csv: found no measures"),
        (f"{head}none.csv,treated,y\n", "none.csv: found no such file"),
        (f"{head}b1.csv\n", "sheet.csv, line 3: found 1 of 3 cells, expected a cell for each name"),
        (f"{head}b1.csv,treated,\n", "sheet.csv, line 3: found no animal, expected a name in each column"),
        (f"{head}./a1.csv,treated,y\n", "line 3: found ./a1.csv, which line 2 names, too, expected each table once"),
        (
            f"{head}a\0.csv,treated,y\n",
            "sheet.csv, line 3: found an .* path|found embedded null byte|found line contains NUL",
        ),
    ):
        sheet.write_text(text)
        with pytest.raises(InputError, match=line):
            compare_groups(sheet, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_one_line(sheet: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("something")
    done = CliRunner().invoke(groups, [str(sheet), str(tmp_path / "out")])
    assert done.exception
    line = as_user_error(done.exception)
    assert line and str(line).startswith(f"{tmp_path / 'out'}: found a file in the place of a folder")


@pytest.mark.parametrize(
    ("column", "cell", "found"),
    [
        ("volume_um3", "0,064", "volume_um3 0,064, expected a number; write it with a decimal point"),
        ("volume_um3", "NA", "volume_um3 NA, expected a number"),
        ("sphericity", "inf", "sphericity inf, expected a number"),
        ("touches_border", "True", "touches_border True, expected 0 or 1"),
    ],
)
def test_a_cell_that_is_no_number_is_named_and_nothing_is_written(
    sheet: Path, tmp_path: Path, column: str, cell: str, found: str
) -> None:
    table = rows(tmp_path / "a2.csv")
    table[1][column] = cell
    with (tmp_path / "a2.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*table[0]])
        writer.writeheader()
        writer.writerows(table)
    with pytest.raises(InputError, match=rf"a2.csv, line 3: found {found}"):
        compare_groups(sheet, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_spaces_and_empty_rows_of_a_spreadsheet_make_no_condition(sheet: Path, tmp_path: Path) -> None:
    text = sheet.read_text().replace("control,a2", " control ,a2 ").replace("treated", "$\\frac{$") + ",,\n\n"
    sheet.write_text(text)
    found = {each.measure: each for each in compare_groups(sheet, tmp_path / "out")}["volume_um3"]
    assert (found.condition, found.reference, found.animals, found.reference_animals) == ("$\\frac{$", "control", 2, 2)


@pytest.mark.slow
def test_only_an_earlier_comparison_is_replaced(sheet: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    compare_groups(sheet, output)
    compare_groups(sheet, output, overwrite=True)
    before = {name: (output / name).read_bytes() for name in OUTPUTS}
    for name in OUTPUTS:
        foreign = b"condition,animal\nmine,1\n" if name.endswith(".csv") else b"a picture"
        (output / name).write_bytes(foreign)
        with pytest.raises(InputError, match=f"{name}: found something that mitoflow did not write"):
            compare_groups(sheet, output, overwrite=True)
        assert {each: (output / each).read_bytes() for each in OUTPUTS} == before | {name: foreign}
        (output / name).write_bytes(before[name])

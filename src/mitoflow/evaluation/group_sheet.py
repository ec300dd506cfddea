"""Sheets that say which table of mitochondria is of which animal under which condition."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mitoflow.errors import InputError
from mitoflow.instances.morphometry import SLICE_MEASURES, VOLUME_MEASURES

SHEET_COLUMNS = ("table", "condition", "animal")


@dataclass(frozen=True)
class Animal:
    """What was sampled independently of the others: an animal, a patient, a culture or a cell.

    Attributes
    ----------
    condition, name
        As in the sheet.
    rows
        The rows of its tables, and in the column ``table`` which one each is of.
    """

    condition: str
    name: str
    rows: Sequence[dict[str, str]]

    def values(self, measure: str) -> NDArray[np.float64]:
        """Return a measure of its mitochondria without those that the border cuts; NaN where it is blank."""
        whole = [row[measure] for row in self.rows if row["touches_border"] == "0"]
        return np.array([float(value or math.nan) for value in whole], np.float64)


def read_sheet(sheet: Path) -> tuple[list[Animal], tuple[str, ...]]:
    """Read a sheet and the tables that it names.

    Parameters
    ----------
    sheet
        A CSV with the columns `SHEET_COLUMNS`: a table that `mitoflow predict` or `measure` wrote, by its path from the
        folder of the sheet, and whose it is. An animal may have several tables. Spaces around names do not count, and
        empty rows are left out.

    Returns
    -------
    animals
        In the order of the sheet.
    measures
        The columns that their tables have: `VOLUME_MEASURES` or `SLICE_MEASURES`.

    Raises
    ------
    InputError
        A file is missing or is no such table, a cell is empty or no number, a table is named twice, or tables of slices
        and of stacks are mixed.
    """
    rows: dict[tuple[str, str], list[dict[str, str]]] = {}
    kinds: dict[tuple[str, ...], Path] = {}
    named: dict[Path, int] = {}
    for line, entry in _read_csv(sheet, SHEET_COLUMNS):
        for column in SHEET_COLUMNS:
            if not entry[column]:
                raise InputError(f"{sheet}, line {line}", f"no {column}", "a name in each column", "add it")
        path = sheet.parent / entry["table"]
        table = _read_csv(path, ("label", "touches_border"))
        first = named.setdefault(path.resolve(), line)
        if first != line:
            found = f"{entry['table']}, which line {first} names, too"
            raise InputError(f"{sheet}, line {line}", found, "each table once", "remove one of the lines")
        if table:
            kinds.setdefault(_measures(path, table), path)
        of_animal = rows.setdefault((entry["condition"], entry["animal"]), [])
        of_animal += ({"table": entry["table"]} | row for _, row in table)
    if len(kinds) > 1:
        expected = f"tables of stacks alone, or of slices alone; {kinds[VOLUME_MEASURES]} is of a stack"
        raise InputError(kinds[SLICE_MEASURES], "a table of a single slice", expected, "make a sheet for each")
    if not kinds:
        raise InputError(sheet, "no mitochondrion in any table", "at least one", "name other tables")
    return [Animal(*names, each) for names, each in rows.items()], next(iter(kinds))


def _measures(path: Path, table: Sequence[tuple[int, dict[str, str]]]) -> tuple[str, ...]:
    """Return which measures a table has; raises `InputError` where it has none, or where a cell cannot be one."""
    kind = next((each for each in (VOLUME_MEASURES, SLICE_MEASURES) if {*each} <= table[0][1].keys()), None)
    if kind is None:
        raise InputError(path, "no measures", "a table of `mitoflow measure`", "measure its labels again")
    for line, row in table:
        where = f"{path}, line {line}"
        if row["touches_border"] not in ("0", "1"):
            found, remedy = f"touches_border {row['touches_border'] or 'empty'}", "measure its labels again"
            raise InputError(where, found, "0 or 1", remedy)
        for measure in kind:
            try:
                finite = not row[measure] or math.isfinite(float(row[measure]))
            except ValueError:
                finite = False
            if not finite:
                remedy = "write it with a decimal point, or leave it blank"
                raise InputError(where, f"{measure} {row[measure]}", "a number", remedy)
    return kind


def _read_csv(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the rows that are not empty, each with the line of the file where it ends."""
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:  # spreadsheets begin a CSV with a mark
            reader = csv.reader(stream)
            names = [name.strip() for name in next(reader, [])]
            if missing := [column for column in columns if column not in names]:
                raise InputError(path, f"no column {missing[0]}", f"the columns {', '.join(columns)}", "add it")
            for cells in reader:
                values = [cell.strip() for cell in cells]
                if any(values) and len(values) != len(names):
                    where, found = f"{path}, line {reader.line_num}", f"{len(values)} of {len(names)} cells"
                    raise InputError(where, found, "a cell for each name of the first line", "mend the line")
                if any(values):
                    rows.append((reader.line_num, dict(zip(names, values, strict=True))))
    except FileNotFoundError:
        raise InputError(path, "no such file", "a CSV", "check the path") from None
    except (ValueError, IsADirectoryError, csv.Error) as error:
        raise InputError(path, error, "a CSV", "name another file") from None
    return rows

"""Compare conditions by tables of mitochondria: the animal or the cell counts, not the mitochondrion.

Mitochondria of one animal are alike, so a thousand of them are no thousand observations. Each animal has the median of
its mitochondria, and conditions are compared by these (Lord et al. 2020, "SuperPlots: Communicating reproducibility and
variability in cell biology", Journal of Cell Biology 219).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from mitoflow.core import files
from mitoflow.evaluation.group_sheet import Animal, read_sheet
from mitoflow.inference.outputs import refuse_existing
from mitoflow.inference.request import refuse_foreign
from mitoflow.instances.morphometry import median, written
from mitoflow.io import png

OUTPUTS = ("mitochondria.csv", "animals.csv", "comparison.csv", "groups.png")
FIRST_COLUMNS = {"mitochondria.csv": "condition,animal,table,", "animals.csv": "condition,animal,mitochondria,whole,"}


@dataclass(frozen=True)
class Difference:
    """A measure under a condition beside that under the first one, by the medians of the animals.

    Attributes
    ----------
    measure, condition, reference
        What is compared.
    animals, reference_animals
        How many have a value.
    mean, reference_mean
        Of the medians of these animals.
    difference, low, high
        The first less the second, and its 95 % interval by Welch's t: of two animals and more in each, and valid where
        their medians are about normally distributed.
    why_blank
        Why there is no interval.
    """

    measure: str
    condition: str
    reference: str
    animals: int
    reference_animals: int
    mean: float
    reference_mean: float
    difference: float
    low: float
    high: float
    why_blank: str

    @property
    def interval(self) -> str:
        """The difference with its interval, or why there is none."""
        return self.why_blank or f"{self.difference:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


def compare_groups(sheet: Path, output: Path, *, overwrite: bool = False) -> list[Difference]:
    """Write one table of all mitochondria, one of all animals, the comparison of the conditions, and a figure.

    Parameters
    ----------
    sheet
        See `mitoflow.evaluation.group_sheet.read_sheet`. The first condition is the reference.
    output
        A folder for `OUTPUTS`.
    overwrite
        Whether files that an earlier comparison wrote are replaced.

    Raises
    ------
    InputError
        As `read_sheet` does, or an output exists; with `overwrite`, only where mitoflow did not write it.
    """
    animals, measures = read_sheet(sheet)
    output.mkdir(exist_ok=True)
    paths = [output / name for name in OUTPUTS]
    if overwrite:
        refuse_foreign(paths, _is_output)
    else:
        refuse_existing(output, paths)
    names = list(dict.fromkeys(name for animal in animals for row in animal.rows for name in row))
    rows = (
        [each.condition, each.name, *(row.get(name, "") for name in names)] for each in animals for row in each.rows
    )
    files.write_csv(paths[0], ("condition", "animal", *names), rows)
    columns = ("condition", "animal", "mitochondria", "whole", *(f"median_{measure}" for measure in measures))
    files.write_csv(paths[1], columns, (_row(each, measures) for each in animals))
    differences = [
        _difference(animals, measure, condition, animals[0].condition)
        for measure in measures
        for condition in dict.fromkeys(each.condition for each in animals if each.condition != animals[0].condition)
    ]
    lines = (map(written, asdict(each).values()) for each in differences)
    files.write_csv(paths[2], [field.name for field in fields(Difference)], lines)
    _draw(paths[3], animals, measures)
    return differences


def _is_output(path: Path) -> bool:
    """Return whether a CSV is one that `compare_groups` wrote under that name."""
    known = FIRST_COLUMNS.get(path.name, ",".join(field.name for field in fields(Difference)))
    try:
        with path.open(encoding="utf-8") as stream:
            return stream.read(len(known)) == known
    except (OSError, ValueError):
        return False


def _row(animal: Animal, measures: Sequence[str]) -> list[str]:
    whole = sum(row["touches_border"] == "0" for row in animal.rows)
    medians = [written(median(animal.values(measure))) for measure in measures]
    return [animal.condition, animal.name, str(len(animal.rows)), str(whole), *medians]


def _medians(animals: Sequence[Animal], measure: str, condition: str) -> NDArray[np.float64]:
    """Return the median of each animal of a condition that has one."""
    medians = [median(each.values(measure)) for each in animals if each.condition == condition]
    return np.array([value for value in medians if not math.isnan(value)], np.float64)


def _difference(animals: Sequence[Animal], measure: str, condition: str, reference: str) -> Difference:
    ours, theirs = (_medians(animals, measure, each) for each in (condition, reference))
    mean, reference_mean = (float(each.mean()) if len(each) else math.nan for each in (ours, theirs))
    low = high = math.nan
    why_blank = "" if min(len(ours), len(theirs)) >= 2 else "fewer than two animals with a value"
    if not why_blank:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where all values are equal
            interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
        low, high = float(interval.low), float(interval.high)
        why_blank = "" if math.isfinite(low) else "the animals do not differ"
    difference = mean - reference_mean
    return Difference(
        measure, condition, reference, len(ours), len(theirs), mean, reference_mean, difference, low, high, why_blank
    )


def _draw(path: Path, animals: Sequence[Animal], measures: Sequence[str]) -> None:
    """Draw each measure: small dots for mitochondria, large ones for medians of animals, bars for their means."""
    columns = 4
    rows = -(-len(measures) // columns)
    figure = Figure(figsize=(3 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, measure in zip(panels, measures, strict=False):
        _draw_measure(panel, animals, measure)
    for panel in panels[len(measures) :]:
        panel.set_visible(False)
    with files.replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=150, metadata=dict([png.OVERLAY]))  # it is never taken for a slice


def _draw_measure(panel: Axes, animals: Sequence[Animal], measure: str) -> None:
    conditions = list(dict.fromkeys(animal.condition for animal in animals))
    random = np.random.default_rng(0)
    for place, condition in enumerate(conditions):
        for number, animal in enumerate(each for each in animals if each.condition == condition):
            values, colour = animal.values(measure), f"C{number % 10}"
            spread = place + random.uniform(-0.3, 0.3, len(values))
            panel.scatter(spread, values, s=4, color=colour, alpha=0.4, linewidths=0)
            panel.scatter([place], [median(values)], s=60, color=colour, edgecolors="black", zorder=3)
        medians = _medians(animals, measure, condition)
        if len(medians):
            panel.hlines(medians.mean(), place - 0.35, place + 0.35, color="black", zorder=2)
    panel.set_xticks(range(len(conditions)), conditions, parse_math=False)  # `$` is no formula in a name
    panel.set_title(measure, fontsize=9)

"""Self-contained HTML reports: pictures before numbers, no script, and nothing that is fetched from elsewhere.

The same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from mitoflow.core import files
from mitoflow.data.masks import Rule, binarise
from mitoflow.data.pairs import Pair, read_pairs
from mitoflow.data.validation import Findings
from mitoflow.evaluation import figures, metrics
from mitoflow.evaluation.bootstrap import Interval
from mitoflow.evaluation.metrics import Counts
from mitoflow.evaluation.verdict import Verdict

if TYPE_CHECKING:
    from mitoflow.evaluation.results import Results  # imports what predicts, which a report on data does without

LONGEST_SIDE = 1600
ZOOM_SIDE = 224


@dataclass(frozen=True)
class Slice:
    """One slice of a stack, as a picture.

    Attributes
    ----------
    stack, z
        Where it is from.
    image
        ``(Y, X)`` uint8 or uint16.
    truth
        ``(Y, X)`` uint8 in {0, 1}.
    """

    stack: str
    z: int
    image: NDArray[Any]
    truth: NDArray[np.uint8]


@dataclass(frozen=True)
class PredictedSlice(Slice):
    """A slice with what the model makes of it.

    Attributes
    ----------
    prediction
        ``(Y, X)`` uint8 in {0, 1}.
    """

    prediction: NDArray[np.uint8]


@dataclass(frozen=True)
class ComparedSlice(Slice):
    """A slice with what two models make of it.

    Attributes
    ----------
    first, second
        ``(Y, X)`` uint8 in {0, 1}.
    """

    first: NDArray[np.uint8]
    second: NDArray[np.uint8]


@dataclass(frozen=True)
class Comparison:
    """The content of the page on two models.

    Attributes
    ----------
    names
        What to call them.
    params
        The parameters that differ, both values of each.
    scores
        For each score that of both, and, where both were made on the same slices, the second minus the first.
    sets
        The same of each set by its name; empty where there is one set.
    wrong
        The slices where they differ most: stack, z, and the wrong pixels of both.
    slices
        The same as pictures, as far as there are any.
    notes
        What is missing, and why.
    """

    names: tuple[str, str]
    params: Mapping[str, tuple[str, str]]
    scores: Mapping[str, tuple[Interval, Interval, Interval | None]]
    sets: Mapping[str, Mapping[str, tuple[Interval, Interval, Interval | None]]]
    wrong: Sequence[tuple[str, int, int, int]]
    slices: Sequence[ComparedSlice]
    notes: Sequence[str]


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, for its report.

    Attributes
    ----------
    dataset
        Name of the dataset.
    history
        For each epoch of the training its loss, dice, val_loss and val_dice.
    lineage
        What the model was made from, by name: commit, digest of the data and so on.
    params
        The sections of ``params.yaml``, with the recipe of the training as ``train``.
    """

    dataset: str
    history: Sequence[Mapping[str, float]]
    lineage: Mapping[str, str]
    params: Mapping[str, Mapping[str, Any]]


def sample_slices(part: Path, rules: Mapping[str, Rule], number: int = 3) -> list[Slice]:
    """Read ``number`` slices of ``part`` (``data/train`` or ``data/test``), evenly spaced over the stacks of each set.

    Each of several sets gives as many, and at least one.

    ``rules`` says how the masks of each set are read.
    """
    places: dict[str, list[tuple[Pair, int]]] = {}
    for pair in read_pairs(part):
        places.setdefault(pair.dataset, []).extend((pair, z) for z in range(pair.image.shape[0]))
    each = max(1, number // len(places))
    picked = [
        of_set[i]
        for of_set in places.values()
        for i in sorted({(2 * i + 1) * len(of_set) // (2 * each) for i in range(each)})
    ]
    slices = []
    for pair, z in picked:
        truth = binarise(pair.mask.slice(z), rules[pair.dataset]) == 1
        slices.append(Slice(f"{pair.dataset}/{pair.name}", z, pair.image.slice(z), truth.astype(np.uint8)))
    return slices


def write_validation_report(path: Path, findings: Findings, samples: Mapping[str, Sequence[Slice]]) -> None:
    """Write the report on a data set.

    Parameters
    ----------
    path
        The file.
    findings
        What `mitoflow.data.validation.check_dataset` found.
    samples
        Slices of each part to look at, by its name; none where errors keep them from being read.
    """
    pictures = {part: [_picture(sample) for sample in slices] for part, slices in samples.items()}
    _write(path, "validation.html", findings=findings.as_dict(), pictures=pictures)


def pictures(
    results: Results,
    history: Sequence[Mapping[str, float]],
    shown: Mapping[str, tuple[PredictedSlice, PredictedSlice]],
) -> dict[str, bytes]:
    """Return the pictures of the report as PNG files by their names; the arguments are those of the report."""
    best_epoch = _best_epoch(history)
    slices = {
        f"{f'{dataset} ' if len(shown) > 1 else ''}{which} slice": figures.panels_png(
            each.image, each.truth, each.prediction
        )
        for dataset, pair in shown.items()
        for which, each in zip(("worst", "median"), pair, strict=True)
    }
    return {
        **slices,
        "Dice along z": figures.dice_along_z_png(_slice_scores(results)),
        "precision and recall": figures.precision_recall_png(results.curve, results.whole_slice.threshold),
        "learning curves": figures.learning_png(history, best_epoch),
    }


def _best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    return int(np.argmax([logs["val_dice"] for logs in history]))


def _slice_scores(results: Results) -> dict[str, figures.SliceScores]:
    return {
        name: figures.SliceScores(each.counts, each.stacks, *worst_and_median(each.counts))
        for name, each in results.by_set.items()
    }


def worst_and_median(counts: Counts) -> tuple[int, int]:
    """Return the rows of lowest and of median Dice among the slices with mitochondria, true or predicted.

    Parameters
    ----------
    counts
        ``(slices, 4)``. Where no slice has mitochondria, both are row 0.
    """
    rows = np.flatnonzero(counts[:, :3].any(axis=1))
    if not len(rows):
        return 0, 0
    ranked = rows[np.argsort(metrics.dice(counts[rows]), kind="stable")]
    return int(ranked[0]), int(ranked[(len(ranked) - 1) // 2])


def write_evaluation_report(
    path: Path,
    results: Results,
    origin: Origin,
    shown: Mapping[str, tuple[PredictedSlice, PredictedSlice]],
    verdict: Verdict | None = None,
) -> None:
    """Write the report on a model.

    Parameters
    ----------
    path
        The file.
    results, origin
        The scores of the model, and where it comes from.
    shown
        Of each set by its name the slices at the rows that `worst_and_median` names.
    verdict
        Without it the report says that none was reached.
    """
    best_epoch = _best_epoch(origin.history)
    _write(
        path,
        "evaluation.html",
        results=results,
        origin=origin,
        verdict=verdict,
        pictures={
            name: {"worst": _error_pictures(worst), "median": _error_pictures(median)}
            for name, (worst, median) in shown.items()
        },
        colours=[f"rgb{colour[:3]}" for colour in figures.ERRORS],
        stacks=len({*zip(results.datasets, results.stacks, strict=True)}),
        rows_of_sets=[
            *((name, each, results.choice.sets.get(name)) for name, each in results.sets.items()),
            ("Mean of the sets", results, results.choice.dice),
        ],
        quantiles=metrics.slice_dice_quantiles(results.counts),
        along_z=figures.dice_along_z_chart(_slice_scores(results)),
        precision_recall=figures.precision_recall_chart(results.curve, results.whole_slice.threshold),
        reliability=figures.reliability_chart(results.reliability),
        learning=figures.learning_chart(origin.history, best_epoch),
        best_epoch=best_epoch,
    )


def write_comparison(path: Path, compared: Comparison) -> None:
    """Write the page on two models."""
    pictures = [_compared_pictures(shown) for shown in compared.slices]
    colours = [f"rgb{colour[:3]}" for colour in figures.ERRORS]
    rows = [(metrics.SCORES[name].title, name, each) for name, each in compared.scores.items()]
    for dataset, of_set in compared.sets.items():
        rows += [(f"{metrics.SCORES[name].title}, {dataset}", name, each) for name, each in of_set.items()]
    _write(path, "comparison.html", compared=compared, rows=rows, pictures=pictures, colours=colours)


def _picture(shown: Slice) -> dict[str, Any]:
    """Return the picture of a slice with its true mask, as the templates take it."""
    step = _step(shown)
    image, truth = shown.image[::step, ::step], shown.truth[::step, ::step]
    return {
        "stack": shown.stack,
        "z": shown.z,
        "step": step,
        "height": image.shape[0],
        "width": image.shape[1],
        "foreground": float(shown.truth.mean()),
        "image": figures.grey_png(image),
        "truth": figures.mask_png(truth),
    }


def _error_pictures(shown: PredictedSlice) -> dict[str, Any]:
    """Add prediction, errors and, as ``x y width height``, the square in which the most pixels are wrong."""
    step = _step(shown)
    truth, prediction = shown.truth[::step, ::step], shown.prediction[::step, ::step]
    counts = metrics.count(shown.truth, shown.prediction)
    side = min(ZOOM_SIDE, *truth.shape)
    y, x = _busiest_square(truth != prediction, side)
    return _picture(shown) | {
        "prediction": figures.mask_png(prediction),
        "errors": figures.errors_png(truth, prediction),
        "zoom": (x, y, side, side),
        "dice": float(metrics.dice(counts)),
        "added": int(counts[1]),
        "missed": int(counts[2]),
    }


def _compared_pictures(shown: ComparedSlice) -> dict[str, Any]:
    """Add the errors of both, and the square in which the most pixels differ."""
    step = _step(shown)
    truth, first, second = (mask[::step, ::step] for mask in (shown.truth, shown.first, shown.second))
    side = min(ZOOM_SIDE, *truth.shape)
    y, x = _busiest_square(first != second, side)
    scores = (float(metrics.dice(metrics.count(shown.truth, mask))) for mask in (shown.first, shown.second))
    return _picture(shown) | {
        "first": figures.errors_png(truth, first),
        "second": figures.errors_png(truth, second),
        "dice": tuple(scores),
        "zoom": (x, y, side, side),
    }


def _step(shown: Slice) -> int:
    """Return the step that keeps a picture of a large slice below `LONGEST_SIDE`."""
    return -(-max(shown.image.shape) // LONGEST_SIDE)


def _busiest_square(marked: NDArray[np.bool_], side: int) -> tuple[int, int]:
    """Return y and x of the first corner of the square of ``side`` pixels that holds the most of ``marked``."""
    total = np.pad(marked.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    held = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    y, x = np.unravel_index(int(held.argmax()), held.shape)
    return int(y), int(x)


def _write(path: Path, template: str, **content: Any) -> None:
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.globals["scores"] = metrics.SCORES
    with files.replacing(path) as beside:
        beside.write_text(pages.get_template(template).render(content), encoding="utf-8")

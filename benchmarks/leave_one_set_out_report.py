"""Tables and figure of `benchmarks.leave_one_set_out`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mitoflow.inference import judgement
from mitoflow.inference.agreement import Agreement
from mitoflow.inference.judgement import Calibration

#: What a result is of.
ZERO_SHOT, JUDGED, FINE_TUNED, FROM_SCRATCH = "zero-shot", "judged", "fine-tuned", "from scratch"
#: How slices are enlarged before they are predicted: not at all, as the model finds it, to the pixel size of training.
PUBLISHED, UNKNOWN, KNOWN = "as published", "unknown", "known"
PRESET = "the preset"  # the variant without a change

#: Headers of the table.
SIZES = ("pixel size as published", "pixel size unknown", "pixel size known")

Row = Mapping[str, Any]


def protocols(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows by what they have in common; the protocol of the last row is the last one.

    Older rows do not say it, and the recipes of their sets cannot be compared: of each set, those of its last
    recipe, with and without labels, are one protocol.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        digest = row.get("protocol", "")
        found[digest] = [*found.pop(digest, []), row]
    if unnamed := found.get(""):
        last = {_part(row): row["recipe"] for row in unnamed}
        found[""] = [row for row in unnamed if row["recipe"] == last[_part(row)]]
    return found


def of_one_protocol(rows: Sequence[Row], digest: str | None) -> list[Row]:
    """Return the rows of a protocol, by default of the one that was measured last."""
    found = protocols(rows)
    return found.get(digest or next(reversed(found), ""), [])


def tables(rows: Sequence[Row], line: Calibration | None = None) -> str:
    """Return Markdown: the tables of each protocol, with its digest before them where there are several.

    See `calibration` for ``line``.
    """
    found = protocols(rows)
    heading = "Protocol {}:\n\n" if len(found) > 1 else ""
    return "\n".join(heading.format(digest or "without a name") + _tables(each, line) for digest, each in found.items())


def _tables(rows: Sequence[Row], line: Calibration | None) -> str:
    """Return Markdown: zero-shot by set, after some labels by set, and by variant where there are several."""
    found = [zero_shot_table(rows), judgement_table(rows, line), labels_table(rows), variants_table(rows)]
    return "\n".join(table for table in found if table)


def zero_shot_table(rows: Sequence[Row]) -> str:
    """Return the table of models that have not seen a set; empty where there is none."""
    rows = [row for row in rows if row["variant"] == PRESET and row["kind"] == ZERO_SHOT]
    lines, names = [], _sets(rows)
    for name in names:
        cells = []
        for pixel_size in (PUBLISHED, UNKNOWN, KNOWN):
            row = next((row for row in rows if (row["set"], row["pixel_size"]) == (name, pixel_size)), None)
            cells += [_interval(row, score) for score in ("dice", "iou")]
        lines.append([name, *cells])
    if not lines:
        return ""
    means = []
    for pixel_size in (PUBLISHED, UNKNOWN):
        found = [row for row in rows if row["pixel_size"] == pixel_size]
        means += [f"{np.mean([row[score] for row in found]):.4f}" if found else "" for score in ("dice", "iou")]
    header = ["left out", *(f"{what}, {how}" for how in SIZES for what in ("Dice", "IoU"))]
    return _markdown(header, [*lines, ["mean of sets", *means, "", ""]])


def calibration(rows: Sequence[Row], line: Calibration | None = None) -> Calibration | None:
    """Return how Dice follows from agreement on the stacks that were left out; None for fewer than three.

    Where there is a ``line`` it is that one, with its error on these stacks, and else one that is fitted to them.
    """
    judged = [row for row in rows if row["variant"] == PRESET and row["kind"] == JUDGED]
    found = [(Agreement(**each["agreement"]), each["dice"]) for row in judged for each in row["stacks"]]
    if len(found) < 3:
        return None
    agreements, dices = zip(*found, strict=True)
    return line.checked_on(agreements, dices) if line else Calibration.fit(agreements, dices)


def judgement_table(rows: Sequence[Row], line: Calibration | None = None) -> str:
    """Return the table of expected and true Dice of the stacks that were left out; empty where there is none."""
    fitted = calibration(rows, line)
    if fitted is None:
        return ""
    lines, errors = [], []
    for row in rows:
        if row["variant"] == PRESET and row["kind"] == JUDGED:
            for each in row["stacks"]:
                expected = fitted.dice(Agreement(**each["agreement"]))
                errors.append(abs(expected - each["dice"]))
                cells = [
                    f"{each['scale']:.3g}",
                    f"{each['threshold']:.2f}",
                    f"{expected:.3f}",
                    judgement.verdict(expected),
                    f"{each['dice']:.3f}",
                ]
                lines.append([row["set"], each["stack"], *cells])
    table = _markdown(["left out", "stack", "scale", "threshold", "expected Dice", "verdict", "Dice"], lines)
    return f"{table}\nFour of five of them lie within {fitted.error:.3f}, and all within {max(errors):.3f}.\n"


def labels_table(rows: Sequence[Row]) -> str:
    """Return the table of Dice after some labels, means over the draws; empty where there is none."""
    curves = label_curves(rows)
    counts = sorted({count for curve in curves.values() for count in curve})
    if not counts:
        return ""
    names = list(dict.fromkeys(name for name, _ in curves))
    lines = []
    for kind in (FINE_TUNED, FROM_SCRATCH):
        found = {name: curves.get((name, kind), {}) for name in names}
        for name, curve in found.items():
            lines.append([name, kind, *(_mean_and_range(curve.get(count, [])) for count in counts)])
        means = []
        for count in counts:
            of_sets = [float(np.mean(curve[count])) for curve in found.values() if count in curve]
            means.append(f"{np.mean(of_sets):.3f}" if len(of_sets) == len(names) else "")
        lines.append(["mean of sets", kind, *means])
    return _markdown(["left out", "network", *(f"{count} labels" for count in counts)], lines)


def variants_table(rows: Sequence[Row]) -> str:
    """Return the table of zero-shot Dice by variant; empty where there is one."""
    rows = [row for row in rows if row["kind"] == ZERO_SHOT and row["pixel_size"] == UNKNOWN]
    names, variants = _sets(rows), sorted({row["variant"] for row in rows}, key=lambda name: (name != PRESET, name))
    if len(variants) < 2:
        return ""
    scores = {(row["variant"], row["set"]): row["dice"] for row in rows}
    lines = []
    for variant in variants:
        of_sets = [scores.get((variant, name)) for name in names]
        known = [score for score in of_sets if score is not None]
        mean = f"{np.mean(known):.3f}" if len(known) == len(names) else ""
        lines.append([variant, *("" if score is None else f"{score:.3f}" for score in of_sets), mean])
    return _markdown(["zero-shot Dice", *names, "mean of sets"], lines)


def label_curves(rows: Sequence[Row]) -> dict[tuple[str, str], dict[int, list[float]]]:
    """Return the Dice of each draw, by set and kind, and by the number of labels."""
    latest = {(row["set"], row["kind"], row["labels"], row["draw"]): row["dice"] for row in rows if _has_labels(row)}
    curves: dict[tuple[str, str], dict[int, list[float]]] = {}
    for (name, kind, count, _), dice in sorted(latest.items()):
        curves.setdefault((name, kind), {}).setdefault(count, []).append(dice)
    return curves


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw Dice against the number of labels, a colour for each set: fine-tuned solid, from scratch dashed, hollow."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "mitoflow"
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes, curves = figure.subplots(), label_curves(rows)
    names = list(dict.fromkeys(name for name, _ in curves))
    counts = sorted({count for curve in curves.values() for count in curve})
    for (name, kind), curve in curves.items():
        places, colour = [counts.index(count) for count in curve], f"C{names.index(name)}"
        line, face = ("-", colour) if kind == FINE_TUNED else ("--", "none")
        means = [np.mean(each) for each in curve.values()]
        axes.plot(places, means, line, marker="o", markerfacecolor=face, color=colour, label=f"{name}, {kind}")
        for place, each in zip(places, curve.values(), strict=True):
            axes.plot([place] * len(each), each, ".", color=colour, alpha=0.4, markersize=4)
    axes.set(xlabel="labelled slices or quarters of slices", ylabel="Dice", ylim=(0, 1))
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _has_labels(row: Row) -> bool:
    return row["variant"] == PRESET and "labels" in row


def _sets(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["set"] for row in rows))


def _part(row: Row) -> tuple[str, str, bool]:
    return row["set"], row["variant"], bool(row.get("labels"))


def _interval(row: Row | None, score: str) -> str:
    return f"{row[score]:.4f} [{row[f'{score}_low']:.4f}, {row[f'{score}_high']:.4f}]" if row else "not known"


def _mean_and_range(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else ""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *lines])

"""The command `python -m benchmarks peers`: which rows there are, and their table."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import biapy, nnunet, own
from benchmarks.peers.commands import CannotRunError
from benchmarks.peers.parts import READ, Parts, scores
from benchmarks.peers.work import Found, Work
from benchmarks.result_lines import Results
from mitoflow.errors import InputError, run_as_command

CORES = 2
OWN = Path(".mitoflow/peers")  # git ignores it
RESULTS = Path(__file__).parents[1] / "results" / "peers.jsonl"
TOOLS: dict[str, Callable[[Work], Found]] = {"mitoflow": own.run, "biapy": biapy.run, "nnunet": nnunet.run}
HEADER = (
    "data | tool | training | Dice of each seed | mean | IoU, mean | minutes of training | minutes of prediction | "
    "peak memory, MiB | lines of configuration"
)


def measure(results: Results, parts: Parts, options: argparse.Namespace) -> None:
    """Measure the rows of one set that are not there yet."""
    for seed in options.seeds:
        for tool in options.tools:
            key = {"set": parts.name, "tool": tool, "minutes": options.minutes, "seed": seed}
            if not results.lacks(key):
                continue
            print(f"peers: {parts.name}, {tool}, seed {seed}", flush=True)
            folder = options.work.absolute() / f"{parts.name}-{tool}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            work = Work(parts, folder, options.environments.absolute(), 60 * options.minutes, seed)
            row = measured(TOOLS[tool], work)
            results.add(key, row)
            print(f"peers: {row}", flush=True)


def measured(run: Callable[[Work], Found], work: Work) -> dict[str, Any]:
    """Return the row of a tool: scores, times and memory, or the reason why there are none."""
    start, load = time.monotonic(), round(os.getloadavg()[0], 1)
    try:
        found = run(work)
        scored = scores(work.parts.test_masks, found.masks)
    except (CannotRunError, InputError, OSError, ValueError) as error:
        return {"reason": str(error), "load": load}
    return {
        **scored,
        "version": found.version,
        "length": found.length,
        "training_minutes": round(found.training_seconds / 60, 2),
        "prediction_minutes": round(found.prediction_seconds / 60, 2),
        "all_minutes": round((time.monotonic() - start) / 60, 2),
        "peak_mib": round(found.peak_mib),
        "lines": found.lines,
        "load": load,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as Markdown: a line for each set, tool, budget and version, with the reason if it has none."""
    return "\n".join([f"| {HEADER} |", f"|{'---|' * (HEADER.count('|') + 1)}", *_lines(rows)])


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    groups: dict[tuple[str, str, float, str | None], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["tool"], row["minutes"], row.get("version")), []).append(row)
    for (name, tool, minutes, version), same in groups.items():
        scored = [row for row in same if "dice" in row]
        for reason in dict.fromkeys(row["reason"].replace("|", "/") for row in same if "reason" in row):
            yield f"| {name} | {tool} | {minutes:g} minutes | not run: {reason} |{' |' * (HEADER.count('|') - 3)}"
        if scored:
            each = ", ".join(f"{row['dice']:.4f}" for row in scored)
            dice, iou, trained, predicted, peak, lines = (
                np.mean([row[key] for row in scored])
                for key in ("dice", "iou", "training_minutes", "prediction_minutes", "peak_mib", "lines")
            )
            length = f"{version}, {minutes:g} minutes: {'; '.join(row['length'] for row in scored)}"
            cells = (f"{dice:.4f}", f"{iou:.4f}", f"{trained:.1f}", f"{predicted:.1f}", f"{peak:,.0f}", f"{lines:.0f}")
            yield f"| {name} | {tool} | {length} | {each} | {' | '.join(cells)} |"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    described = "Train and predict with BiaPy, nnU-Net and mitoflow on the same slices in the same time."
    parser = argparse.ArgumentParser(prog="python -m benchmarks peers", description=described)
    parser.add_argument("--vnc", type=Path, help="folder with images.tif and groundtruth.tif, 20 slices")
    parser.add_argument("--epfl", type=Path, help="folder with training.tif, testing.tif and their _groundtruth.tif")
    parser.add_argument("--minutes", type=float, default=20, help="of training (default %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=[*TOOLS], help="default: all")
    parser.add_argument(
        "--environments",
        type=Path,
        default=OWN / "environments",
        help="virtual environments of the tools (default %(default)s)",
    )
    parser.add_argument("--work", type=Path, default=OWN / "work", help="what the tools write (default %(default)s)")
    parser.add_argument("--into", type=Path, default=RESULTS, help="the results (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes: found {options.minutes:g}, expected more than 0")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each tool on the sets that are given, and print the table; without a set that of what is done."""
    options = parse(arguments)
    results = Results(options.into.absolute())

    def measure_all() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
        for name, read in READ.items():
            if folder := getattr(options, name):
                measure(results, read(folder), options)
        print(table(results.rows))

    run_as_command(measure_all)

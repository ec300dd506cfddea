"""Run the benchmarks and write their results: `python -m benchmarks [NAME ...]`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import growth
from benchmarks.table import Row, markdown

NAMES = (
    "startup",
    "no_op",
    "logging_share",
    "patches_and_augmentation",
    "inference",
    "train_step",
    "trials",
    "growth",
    "memory",
)
PACKAGES = ("mitoflow", "tensorflow", "keras", "torch", "numpy", "mlflow", "dvc")
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TQDM_DISABLE": "1"}  # progress bars cost time, too
RESULTS = Path(__file__).with_name("results")


#: Protocols that take options of their own, each a module with the same name.
PROTOCOLS = ("leave-one-set-out", "neighbour-distance", "gpu", "tuning", "suggest", "peers", "touching", "numbered")


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in PROTOCOLS:
        importlib.import_module(f"benchmarks.{sys.argv[1].replace('-', '_')}").main(sys.argv[2:])
        return
    described = "Measure mitoflow against its baselines."
    others = f"With options of their own: {', '.join(f'python -m benchmarks {name}' for name in PROTOCOLS)}"
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=described, epilog=others)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, or some of: {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=5, help="times that each contender works (default 5)")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder for the results (default %(default)s)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: expected one of {', '.join(NAMES)}")
    if options.rounds < 1:
        parser.error(f"--rounds: found {options.rounds}, expected at least 1")

    os.environ.update(QUIET)
    rows: list[Row] = []
    for name in options.names or NAMES:
        print(f"benchmarks: {name}", flush=True)
        rows += importlib.import_module(f"benchmarks.{name}").rows(options.rounds)
    print(write(rows, options.names, options.rounds, options.into).read_text(encoding="utf-8"))


def write(rows: list[Row], names: list[str], rounds: int, folder: Path) -> Path:
    """Write the results as JSON and as a table, named by date, machine, and `names` if not all; return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    circumstances = {"date": time.strftime("%Y-%m-%d"), **machine(), "rounds": rounds, **versions()}
    name = re.sub("[^a-z0-9]+", "-", circumstances["machine"].lower()).strip("-")
    name = "-".join([circumstances["date"], name, *names])
    results = {**circumstances, "rows": [dataclasses.asdict(row) for row in rows]}
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    facts = "".join(f"- {key}: {value}\n" for key, value in circumstances.items())
    table = folder / f"{name}.md"
    table.write_text(f"# Benchmarks\n\n{facts}\n{markdown(rows)}", encoding="utf-8")
    for row in rows:
        if str(growth.SLICES[-1]) in row.series:
            growth.draw(dict(row.series), folder / f"{name}-{growth.PICTURE}")
    return table


def machine() -> dict[str, Any]:
    """Return processor, cores, memory and load of this machine."""
    described = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*: (.*)", described)
    processor = found[1] if found else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {"machine": f"{processor}, {cores} cores", "memory": f"{memory:.0f} GiB", "load": os.getloadavg()[0]}


def versions() -> dict[str, str]:
    """Return the commit of this project, and the versions of Python and of the packages that are compared."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    known = {"commit": commit.stdout.strip(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            known[package] = "not installed"
    return known


if __name__ == "__main__":
    main()

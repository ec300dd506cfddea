"""How soon does the command line answer?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Lap, alternate
from benchmarks.table import Row, limit

COMMAND = "python -m benchmarks startup"


def rows(rounds: int) -> list[Row]:
    series = alternate({"mitoflow": show_help}, rounds)
    return [limit("`mitoflow --help`", series["mitoflow"], 0.5, COMMAND)]


def show_help(lap: Lap) -> None:
    command = [Path(sys.executable).with_name("mitoflow"), "--help"]
    while True:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lap(1)

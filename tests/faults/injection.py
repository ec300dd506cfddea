"""How a fault is repeated and counted, and the table of all faults.

Each test here injects one fault into real parts and ends with what an undisturbed run ends with. `fault` names
it and says how often it is tried: a few times in the short form, which is part of `make test`, and many times in the
long form, which `make test-faults` runs with ``FAULT_COUNT`` set. What is random comes from the fixture `chance`; its
seed is printed where a test fails, and ``FAULT_SEED`` gives it again.
"""

from __future__ import annotations

import os
import platform
import random
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: written by make test-faults -->\n", "<!-- end of table -->\n"

LONG = "FAULT_COUNT" in os.environ
COUNT = float(os.environ.get("FAULT_COUNT", "1"))
SEED = os.environ.get("FAULT_SEED") or os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(random.randrange(10**9))


def fault(what: str, *, long: int, short: int = 1) -> Callable[[Callable], Callable]:
    """Say what a test injects, and how often it is tried in the long and in the short form.

    ``what`` may name parameters of the test in braces.
    """
    often = max(1, round(long * COUNT)) if LONG else short
    only_long = [pytest.param(0, marks=pytest.mark.skip(reason="in the long form alone"))]

    def mark(test: Callable) -> Callable:
        return pytest.mark.fault(what)(pytest.mark.parametrize("attempt", range(often) if often else only_long)(test))

    return mark


def examples(long: int, short: int) -> int:
    """Return how many inputs one attempt of a fuzzer makes."""
    return long if LONG else short


@dataclass(eq=False)  # pytest hashes its plugins
class Table:
    """What became of every fault, collected by pytest's controller."""

    tried: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    lost: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    skipped: dict[str, str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if "fault" not in properties or (report.when != "call" and report.passed):
            return
        name = str(properties["fault"])
        if report.skipped:
            self.skipped[name] = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        elif report.when == "call":
            self.tried[name] += int(properties.get("tried", 1))
            self.lost[name] += report.failed
        else:
            self.tried[name] += report.when == "setup"
            self.lost[name] += 1

    def lines(self) -> list[str]:
        """Return the table in Markdown."""
        rows = ["| fault | tried | survived | lost |", "|---|---:|---:|---:|"]
        for name, tried in sorted(self.tried.items()):
            rows.append(f"| {name} | {tried} | {tried - self.lost[name]} | {self.lost[name]} |")
        tried, lost = sum(self.tried.values()), sum(self.lost.values())
        rows.append(f"| all | {tried} | {tried - lost} | {lost} |")
        for name, reason in self.skipped.items():
            rows.append(f"\nNot tried on this machine: {name} ({reason.removeprefix('Skipped: ')})")
        return rows

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.tried:
            terminalreporter.write_line("\n".join(["", *self.lines()]))
            if os.environ.get("FAULT_TABLE"):
                self._write(Path(os.environ["FAULT_TABLE"]))

    def _write(self, page: Path) -> None:
        cores = os.cpu_count()
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        where = f"{date}, commit {_commit()}, {platform.system()} {platform.machine()}, {_processor()}, {cores} cores"
        table = "\n".join([f"{where}; seed {SEED}, count {COUNT:g}.", "", *self.lines(), ""])
        text = page.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found[1] if found else platform.processor()

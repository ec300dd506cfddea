"""Write the table of mutants into a page: ``mutmut results --all true | python -m tests.mutants PAGE``."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

BEGIN, END = "<!-- table: written by make mutants -->\n", "<!-- end of mutants -->\n"
COUNTED = ("killed", "survived", "no tests", "timeout")
OTHER = "other"  # what mutmut says besides: suspicious, skipped, segfault, not checked


def table(results: Iterable[str]) -> list[str]:
    """Return the table in Markdown; of all mutants those count as killed that a test noticed."""
    found: dict[str, Counter[str]] = {}
    for line in results:
        if named := re.match(r"\s*([\w.]+?)\.[^.]*__mutmut_\d+: (.+)", line):
            status = named[2].strip()
            found.setdefault(named[1], Counter())[status if status in COUNTED else OTHER] += 1
    rows = {**found, "all": sum(found.values(), Counter())}
    columns = (*COUNTED, OTHER)
    lines = [f"| module | mutants | {' | '.join(columns)} | share killed |", "|---|" + "---:|" * (len(columns) + 2)]
    for name, counts in rows.items():
        total = counts.total()
        share = f"{100 * counts['killed'] / total:.1f} %"
        lines.append(f"| {name} | {total} | {' | '.join(str(counts[each]) for each in columns)} | {share} |")
    return lines


def write(page: Path, results: Iterable[str]) -> None:
    """Replace the table of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text("\n".join([f"{before}{BEGIN}", *table(results), "", f"{END}{after}"]), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.stdin)

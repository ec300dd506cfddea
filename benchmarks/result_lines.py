"""Results of a long measurement, as lines of JSON, so that it goes on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mitoflow.core import files

ROOT = Path(__file__).parents[1]


def path_of_results(name: str, project: Path | None) -> Path:
    """Return where the results of a benchmark lie: the published ones, or those of a project that is not this one."""
    if project is None or project.resolve() == ROOT:
        return ROOT / "benchmarks" / "results" / f"{name}.jsonl"
    return project / ".mitoflow" / "benchmarks" / f"{name}.jsonl"


class Results:
    """Lines of JSON, each a result with the key that says what was measured.

    Parameters
    ----------
    path
        The file; lines are appended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        # A line that was cut off is no result.
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("\n")]
        if lines and not lines[-1].endswith("\n"):
            files.write_text(path, "".join(lines[:-1]))

    def lacks(self, key: Mapping[str, Any]) -> bool:
        """Return whether there is no result with this key."""
        return not any(key.items() <= row.items() for row in self.rows)

    def add(self, key: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Append a result."""
        self.rows.append({**key, **found})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(self.rows[-1]) + "\n")

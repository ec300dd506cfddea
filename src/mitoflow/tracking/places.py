"""Where MLflow's store is, and the aliases in it; MLflow itself takes seconds to import."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mitoflow.core import workspace

CHAMPION, CHALLENGER = "champion", "challenger"  # aliases of versions


def uri(recorded: str | None = None) -> str:
    """Return the URI of the store.

    ``MLFLOW_TRACKING_URI`` comes first, then what a journal ``recorded``, and then SQLite in the main checkout. A
    relative SQLite path counts from there too, because ``dvc exp run --temp`` works in a copy that is thrown away.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI") or recorded or "sqlite:///mlflow.db"
    return re.sub(r"^sqlite:///(?!/)", f"sqlite:///{workspace.main_checkout()}/", given)


def file_of(place: str) -> Path | None:
    """Return the file of an SQLite store; None for another store."""
    path = place.removeprefix("sqlite:///")
    return Path(path) if path != place else None


def is_missing(place: str) -> bool:
    """Return whether the store is a SQLite file that does not exist yet; `store.client` would make it."""
    path = file_of(place)
    return path is not None and not path.is_file()

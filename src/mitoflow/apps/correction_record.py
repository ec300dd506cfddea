"""What the lineage of a mask says of corrections by hand, in whatever program they were made."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from datetime import UTC, datetime

from mitoflow.io.ome import CORRECTED, DRAWN


def with_correction(lineage: Mapping[str, str], where: str) -> dict[str, str]:
    """Return the lineage of a mask that was corrected by hand and is saved now.

    It has the program, the account that runs it and the time under `CORRECTED`, after earlier corrections. A mask
    without a lineage was not predicted, so the same is under `DRAWN`.

    Parameters
    ----------
    lineage
        That of the mask before; empty where it has none.
    where
        In which program, such as ``in napari 0.9.2``.
    """
    key = CORRECTED if lineage else DRAWN
    made = f"by hand, {where}, run by {_account()}, {datetime.now(UTC).isoformat(timespec='seconds')}"
    return {**lineage, key: f"{lineage[key]}; {made}" if key in lineage else made}


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a number may have no name
        return str(os.getuid())

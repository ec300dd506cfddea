"""What runs are called: stage and data, the DVC experiment, and the values that changed since the stage last ran."""

from __future__ import annotations

import os

from mitoflow.config import sections
from mitoflow.core import provenance

LONGEST = 3  # changed values in a name


def run_name(stage: str, data: str) -> str:
    """Return the name of a run of a stage, such as ``train epfl (slower): learning_rate 0.0005``.

    Parameters
    ----------
    stage, data
        The stage, and ``data.name``.
    """
    experiment = os.environ.get("DVC_EXP_NAME")
    recorded, present = (sections.dotted(each) for each in provenance.compared_params(stage))
    changed = {key.removeprefix(f"{stage}."): value for key, value in present.items() if recorded.get(key) != value}
    values = [f"{key} {value}" for key, value in changed.items()]
    if len(values) > LONGEST:
        values = [*values[:LONGEST], f"{len(values) - LONGEST} more"]
    name = f"{stage} {data} ({experiment})" if experiment else f"{stage} {data}"
    return f"{name}: {', '.join(values)}" if values else name

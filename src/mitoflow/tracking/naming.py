"""What runs are called: stage and data, the DVC experiment, and the values that changed since the stage last ran.

An evaluation has the values of its training in its name, too, and the version that it judges.
"""

from __future__ import annotations

import os
import re

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
    changed = {key: value for key, value in present.items() if recorded.get(key) != value}
    changed.pop("data.name", None)  # the name begins with it
    values = [f"{key.removeprefix(f'{stage}.')} {value}" for key, value in changed.items()]
    if len(values) > LONGEST:
        values = [*values[:LONGEST], f"{len(values) - LONGEST} more"]
    name = f"{stage} {data} ({experiment})" if experiment else f"{stage} {data}"
    return f"{name}: {', '.join(values)}" if values else name


def of_training(name: str, training: str) -> str:
    """Return the name of an evaluation with the values of its training.

    Parameters
    ----------
    name, training
        What `run_name` gave each of them, or what a user calls the training in MLflow.

    Examples
    --------
    >>> of_training("evaluate epfl (slower): tta 8", "train epfl (slower): depth 3")
    'evaluate epfl (slower): depth 3, tta 8'
    >>> of_training("evaluate epfl", "train epfl (slower): depth 3")
    'evaluate epfl of train epfl (slower): depth 3'
    """
    (what, _, own), (trained, _, values) = name.partition(": "), training.partition(": ")
    if what.partition(" ")[2] != trained.partition(" ")[2]:
        what = f"{what} of {trained}"
    return ": ".join(filter(None, (what, ", ".join(filter(None, (values, own))))))


def with_version(name: str, version: int) -> str:
    """Return the name of an evaluation with the version that it judges, in place of any other."""
    return f"{re.sub(r', version [0-9]+$', '', name)}, version {version}"

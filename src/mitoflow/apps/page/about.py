"""What the page says of its model before anybody uses it: what it learned from, and how good it is."""

from __future__ import annotations

import re
from typing import Any

from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference.trained_model import SETS, TrainedModel
from mitoflow.tracking import pretrained


def describe(model: TrainedModel) -> dict[str, Any]:
    """Return what is known of a model, as JSON can hold it.

    Returns
    -------
    description
        ``name``; ``warning``, empty where there is none; ``trained_on``, in words; ``sets``, of each test set its
        name, slices, and Dice with its 95 % interval; ``missed`` and ``wrong``, the shares of the mitochondrion pixels
        that it misses and of the pixels it marks that are something else, None where it was not evaluated;
        ``calibration``, on how many stacks of other tissue its expected Dice was measured, and what four of five lay
        within; ``limits``, those of the model card; ``lineage``.
    """
    measured, calibration = Evaluation.of(model), model.calibration
    sets = measured.sets.items() if measured else ()
    return {
        "name": model.name,
        "warning": model.warning,
        "trained_on": _trained_on(model),
        "sets": [
            {"name": name, "slices": len(each.counts), **each.interval("dice").as_dict("dice")} for name, each in sets
        ],
        "missed": 1 - measured.interval("recall").value if measured else None,
        "wrong": 1 - measured.interval("precision").value if measured else None,
        "calibration": {"stacks": calibration.stacks, "error": calibration.error} if calibration else None,
        "limits": _limits(model),
        "lineage": dict(model.lineage),
    }


def _trained_on(model: TrainedModel) -> str:
    if (model.folder / pretrained.LINEAGE).is_file():
        data = pretrained.Pretrained(model.folder).lineage["data"]
        return str(data.get("note") or data.get("name", ""))
    return model.origin.get("sets") or model.origin.get(SETS, "").replace("+", ", ")


def _limits(model: TrainedModel) -> list[str]:
    """Return the entries below "Limits" in the model card, without Markdown."""
    card = pretrained.card(model)
    section = card.read_text(encoding="utf-8").partition("\n## Limits\n")[2].partition("\n## ")[0] if card else ""
    entries = re.split(r"^- ", section, flags=re.MULTILINE)[1:]
    return [" ".join(entry.replace("-\n  ", "-").replace("`", "").split()) for entry in entries]

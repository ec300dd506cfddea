"""From slices to masks: the predictor, whole volumes in blocks, outputs that resume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mitoflow.inference.predictor import Predictor as Predictor


def __getattr__(name: str) -> Any:
    """Return `Predictor`, which imports much: models that mitoflow 0.1 registered import it from here."""
    if name == "Predictor":
        from mitoflow.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

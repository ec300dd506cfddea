"""What decides a fit, besides the patches."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a fit, besides the patches; `mitoflow.config.params` says what each means."""

    learning_rate: float
    depth: int
    augment_strength: float
    affine_fraction: float
    intensity_strength: float
    foreground_fraction: float
    orthoplanes: bool
    context: int
    context_step: int
    context_dropout: float
    base_width: int
    loss: str
    precision: Literal["float32", "mixed_bfloat16"]
    batch_size: int
    epochs: int
    patches_per_epoch: int
    patience: int
    seed: int
    network: str = "unet"


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain values, for fingerprints and lineage."""
    return dataclasses.asdict(recipe)

"""A trial of the study, on whatever machine it is fitted."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from mitoflow import __version__
from mitoflow.config.params import Recipe
from mitoflow.core import cluster
from mitoflow.data.patches import PatchStore
from mitoflow.errors import InputError
from mitoflow.training import fitting
from mitoflow.training.callbacks import Logs


@dataclass(frozen=True)
class Trial:
    """All of a trial but the values that are sampled; it can be sent to other machines.

    Attributes
    ----------
    patches
        The patch store, as an absolute path.
    digests
        Of the patch store, and of the code that fits: what makes trials comparable.
    shared
        The fields of the recipe that all trials have in common.
    """

    patches: Path
    digests: tuple[str, str]
    shared: dict[str, Any]

    @classmethod
    def of(cls, patches: Path, shared: dict[str, Any]) -> Trial:
        """Return the trial on the patch store and with the code that are here."""
        return cls(patches.absolute(), (PatchStore.open(patches).digest, fitting.code_digest()), shared)

    def recipe(self, values: dict[str, Any]) -> Recipe:
        """Return the recipe with the sampled values."""
        return Recipe(**values, **self.shared)

    def __call__(self, name: str, values: dict[str, Any], report: Callable[[int, Logs], None]) -> float:
        """Fit with `values` and return the best validation Dice; see `tuning.Objective`.

        Raises
        ------
        InputError
            The patches cannot be seen from this machine, or are others; or the code is another one.
        """
        cluster.refuse_unseen(self.patches)
        store = PatchStore.open(self.patches)
        for what, found, expected in zip(
            (self.patches, "mitoflow"), (store.digest, fitting.code_digest()), self.digests, strict=True
        ):
            if found != expected:
                remedy = f"use the same files and mitoflow {__version__} on all machines"
                raise InputError(what, f"{found[:8]} on {socket.gethostname()}", f"{expected[:8]} of the study", remedy)
        with cluster.alone:
            fitted = fitting.fit(
                store, self.recipe(values), callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=report)], title=name
            )
        return fitted.history[fitted.best_epoch]["val_dice"]

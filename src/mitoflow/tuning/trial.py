"""A trial of the study, on whatever machine it is fitted."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras

from mitoflow import __version__
from mitoflow.config.params import Recipe
from mitoflow.core import cluster, files, provenance
from mitoflow.data.patches import PatchStore
from mitoflow.data.slice_distance import SliceDistance
from mitoflow.errors import InputError
from mitoflow.models import unet
from mitoflow.training import fitting
from mitoflow.training.callbacks import Logs

EPOCH = 1000  # crops at most between two validations, and two checkpoints, of a trial
MEASURED = 32  # batches of the fit that shows how fast a machine is


@dataclass(frozen=True)
class Trial:
    """All that the trials of a study have in common; it can be sent to other machines.

    Attributes
    ----------
    patches
        The patch store, as an absolute path.
    digests
        Of the patch store, and of the code that fits: what makes trials comparable.
    shared
        The fields of the recipe that all trials have in common.
    initial
        The model that the trials start from, as an absolute path, in place of random weights.
    learned
        How far apart the slices are that `initial` learned from; see `fitting.fit`.
    """

    patches: Path
    digests: tuple[str, str]
    shared: dict[str, Any]
    initial: Path | None = None
    learned: SliceDistance | None = None

    @classmethod
    def of(
        cls,
        patches: Path,
        shared: dict[str, Any],
        initial: Path | None = None,
        learned: SliceDistance | None = None,
    ) -> Trial:
        """Return the trials on the patch store and with the code that are here."""
        digests = (PatchStore.open(patches).digest, fitting.code_digest())
        return cls(patches.absolute(), digests, shared, initial.absolute() if initial else None, learned)

    @property
    def digest(self) -> str:
        """Identifies what decides a fit besides the values and the crops."""
        initial = provenance.file_sha256(self.initial) if self.initial else None
        learned = asdict(self.learned) if self.learned else None
        return files.short_digest([self.shared, initial, learned, *self.digests])

    def recipe(self, values: dict[str, Any], crops: int = EPOCH, rung: int = 0) -> Recipe:
        """Return the recipe of a rung with those values: its schedule fits its crops, and its crops are new ones."""
        recipe = Recipe(**values, **self.shared)
        epochs = -(-crops // EPOCH)
        seed = (recipe.seed + rung) % 2**32
        return recipe.replace(epochs=epochs, patches_per_epoch=-(-crops // epochs), patience=epochs, seed=seed)

    def __call__(
        self, checkpoints: Path, number: int, values: dict[str, Any], crops: Sequence[int], check: Callable[[], None]
    ) -> list[Logs]:
        """Fit a trial for the crops of each rung and return the history of the last; see `halving.Objective`.

        In each rung the learning rate rises and falls to zero over its crops: warm restarts (Loshchilov and Hutter,
        "SGDR", ICLR 2017). So each score is that of a finished schedule, as of a training with as many crops, and a
        promoted trial continues from the weights of the rung before. They are in `checkpoints`, an absolute path; what
        lies there already is not fitted again.

        Raises
        ------
        InputError
            The patches cannot be seen from this machine, or are others; or the code is another one.
        """
        store = self._store()
        folder = checkpoints / f"trial-{number}"
        last, history = len(crops) - 1, []
        for rung, count in enumerate(crops):
            weights, epochs = folder / f"rung-{rung}.keras", folder / f"rung-{rung}"
            if rung < last and weights.exists():
                continue
            epochs.mkdir(parents=True, exist_ok=True)
            before = folder / f"rung-{rung - 1}.keras" if rung else self.initial
            with cluster.alone:
                fitted = fitting.fit(
                    store,
                    self.recipe(values, count, rung),
                    initial=unet.load_model(before) if before else None,
                    learned=self.learned,
                    checkpoints=epochs,
                    callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: check())],
                    title=f"trial {number + 1}, {sum(crops[: rung + 1])} crops",
                )
                unet.save_model(fitted.model, weights)
            history = fitted.history
        return history

    def crops_in(self, minutes: int, values: dict[str, Any]) -> int:
        """Measure how many crops this machine fits in that many minutes, with a short fit with `values`."""
        clock, recipe = _Clock(), self.recipe(values)
        recipe = recipe.replace(patches_per_epoch=MEASURED * recipe.batch_size)
        fitting.fit(self._store(), recipe, callbacks=[clock], title="measure")
        return max(1, round(60 * minutes * recipe.patches_per_epoch / clock.seconds))

    def _store(self) -> PatchStore:
        cluster.refuse_unseen(self.patches)
        store = PatchStore.open(self.patches)
        for what, found, expected in zip(
            (self.patches, "mitoflow"), (store.digest, fitting.code_digest()), self.digests, strict=True
        ):
            if found != expected:
                remedy = f"use the same files and mitoflow {__version__} on all machines"
                raise InputError(what, f"{found[:8]} on {socket.gethostname()}", f"{expected[:8]} of the study", remedy)
        return store


class _Clock(keras.callbacks.Callback):
    """Measures an epoch and its validation without the first batch, in which the network is compiled."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 0:
            self.started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds = time.monotonic() - self.started

"""Keras callbacks of every fit: its history and best weights, checkpoints, a progress bar."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from mitoflow.core import files, process

#: What an epoch ended with: loss, dice, val_loss, val_dice; with several sets also the val_dice_NAME of each.
Logs = dict[str, float]

DIGITS = 6  # of the logs


def best_epoch(history: list[Logs]) -> int:
    """Return the first epoch, counted from 0, with the highest validation Dice."""
    return int(np.argmax([logs["val_dice"] for logs in history]))


class BestEpoch(keras.callbacks.Callback):
    """Keeps the history and the weights of the best epoch; stops a fit whose validation Dice gets no better.

    It comes before other callbacks, which get the logs rounded as the history has them. The history decides everything:
    the best epoch and when to stop follow from it, also where it comes from a checkpoint.

    Parameters
    ----------
    epochs
        Epochs of the whole fit.
    patience
        Epochs without a better validation Dice after which it stops.

    Attributes
    ----------
    history
        The `Logs` of every epoch.
    weights
        Of the best epoch, as `Model.get_weights` returns them.
    """

    def __init__(self, epochs: int, patience: int) -> None:
        super().__init__()
        self.epochs, self.patience = epochs, patience
        self.history: list[Logs] = []
        self.weights: list[np.ndarray] = []

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or the last ones brought no better validation Dice."""
        done = len(self.history)
        return done >= self.epochs or (done > 0 and done - 1 - best_epoch(self.history) >= self.patience)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Round the logs, and keep what is to be kept."""
        for name, value in logs.items():
            logs[name] = round(float(value), DIGITS)
        self.history.append(dict(logs))
        if best_epoch(self.history) == epoch:
            self.weights = self.model.get_weights()
        self.model.stop_training = self.finished


class WeightAverage(keras.callbacks.Callback):
    """Gives the model, after each epoch, the mean of its weights over the last epochs; it trains on with its own.

    A mean lies in a wider optimum than the weights of an epoch, and often does better on images unlike those of the
    training (Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018; Cha et
    al., "SWAD", NeurIPS 2021). Here each epoch counts `1 - 1 / epochs` times as much as the one after it, as in a
    moving average whose bias towards the first epochs is corrected (Kingma and Ba, "Adam", ICLR 2015, section 3).
    It includes the statistics of the normalisation. This comes before all that measures or keeps the weights of an
    epoch.

    Parameters
    ----------
    epochs
        About how many of the last epochs count.

    Attributes
    ----------
    own
        The weights that the next epoch starts from, as `Model.get_weights` returns them; none before the first epoch.
    """

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.decay = 1 - 1 / epochs
        self.own: list[np.ndarray] = []
        self._mean: list[np.ndarray] = []

    def restore(self, own: list[np.ndarray], mean: list[np.ndarray]) -> None:
        """Go on after an epoch that ended with the model's `own` weights and their `mean`."""
        self.own, self._mean = own, mean

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Give the model its own weights back."""
        if self.own:
            self.model.set_weights(self.own)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Give the model the mean."""
        self.own = self.model.get_weights()
        share = np.float32((1 - self.decay) / (1 - self.decay ** (epoch + 1)))
        pairs = zip(self._mean or self.own, self.own, strict=True)
        self._mean = [mean + share * (now - mean) for mean, now in pairs]
        self.model.set_weights(self._mean)


class Validation(keras.callbacks.Callback):
    """Validates on each set by itself; of several sets, validation loss and Dice are the means of theirs.

    Keras' own validation counts the pixels of all sets together, so the largest set would choose the best epoch. This
    does after an epoch what Keras does, once for each set. It comes before `BestEpoch` and what else reads the logs.

    Parameters
    ----------
    sets
        The validation batches of each set by its name.
    """

    def __init__(self, sets: Mapping[str, keras.utils.PyDataset]) -> None:
        super().__init__()
        self.sets = sets

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add ``val_loss`` and ``val_dice``, and the ``val_dice_NAME`` of each of several sets, to the logs."""
        measured = {
            name: self.model.evaluate(batches, verbose=0, return_dict=True) for name, batches in self.sets.items()
        }
        for key in ("loss", "dice"):
            logs[f"val_{key}"] = float(np.mean([each[key] for each in measured.values()]))
        if len(measured) > 1:
            logs |= {f"val_dice_{name}": each["dice"] for name, each in measured.items()}


class ProgressBar(keras.callbacks.Callback):
    """Advances a bar batch by batch, and shows the epoch and its validation Dice."""

    def __init__(self, bar: tqdm) -> None:
        super().__init__()
        self.bar = bar

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Advance by a batch."""
        self.bar.update()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Show the epoch, counted from 1."""
        self.bar.set_postfix(epoch=epoch + 1, val_dice=f"{logs['val_dice']:.4f}", refresh=False)


class Checkpoints(keras.callbacks.Callback):
    """Writes a checkpoint after each epoch, from which an interrupted fit resumes.

    A checkpoint is ``epoch-N.npz``: the weights of the model; the state of the optimiser; where the weights are a mean,
    those that the next epoch starts from; the history until then and the number of threads; with zip's checksums. Only
    the last and the best epoch keep their files. It comes after the callbacks that report an epoch: where one of them
    ends the fit, the epoch has no checkpoint and is done again.

    Parameters
    ----------
    folder
        Where the checkpoints are.
    best
        What the fit keeps of its epochs.
    average
        What gives the model the mean of its weights; None where the fit takes no mean.
    """

    def __init__(self, folder: Path, best: BestEpoch, average: WeightAverage | None) -> None:
        super().__init__()
        self.folder, self.best, self.average = folder, best, average

    def restore(self, model: keras.Model) -> None:
        """Load the last checkpoint, if there is one, into a compiled model, its optimiser and `best`.

        Where the last one is damaged, it is the best one; where both are, the fit starts from the beginning. A line on
        stderr says so, and where another number of threads rounds otherwise than until then.
        """
        for epoch in sorted(self._epochs(), reverse=True):
            try:
                facts, state = self._read(epoch)
                history, threads = facts["history"], facts["threads"]
                _, best = self._read(best_epoch(history))
            except Exception as error:  # what damage raises depends on the byte
                line = f"mitoflow: {self._file(epoch)}: a damaged checkpoint ({error}); it is left out"
                tqdm.write(line, file=sys.stderr)
                continue
            if threads != process.threads():
                found = f"made with {threads} threads, and the fit goes on with {process.threads()}"
                remedy = f"TF_NUM_INTRAOP_THREADS={threads} prevents that"
                line = f"mitoflow: {self._file(epoch)}: {found}: the last bits of its weights may differ; {remedy}"
                tqdm.write(line, file=sys.stderr)
            variables, count = _state(model), len(model.weights)
            for variable, value in zip(variables, state[: len(variables)], strict=True):
                variable.assign(value)
            self.best.history, self.best.weights = history, best[:count]
            if self.average:
                self.average.restore(state[len(variables) :], state[:count])
            return

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the checkpoint, and remove those that are no longer needed."""
        state = [keras.ops.convert_to_numpy(variable) for variable in _state(self.model)]
        facts = json.dumps({"history": self.best.history, "threads": process.threads()})
        content = io.BytesIO()  # a zip that a full disk cuts short would complain on its own, in a traceback
        np.savez(content, np.array(facts), *state, *(self.average.own if self.average else []))
        with files.replacing(self._file(epoch)) as beside:
            beside.write_bytes(content.getbuffer())
        for earlier in set(self._epochs()) - {epoch, best_epoch(self.best.history)}:
            self._file(earlier).unlink(missing_ok=True)

    def _file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch}.npz"

    def _epochs(self) -> list[int]:
        return [int(file.stem.removeprefix("epoch-")) for file in self.folder.glob("epoch-*.npz")]

    def _read(self, epoch: int) -> tuple[dict[str, Any], list[np.ndarray]]:
        with np.load(self._file(epoch), allow_pickle=False) as arrays:
            facts, *state = (arrays[name] for name in arrays.files)
        return json.loads(str(facts)), state


def _state(model: keras.Model) -> list[Any]:
    return [*model.weights, *model.optimizer.variables]

"""Fit one U-Net: what `tune` and `train` both call."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from tqdm import tqdm

from mitoflow import augment, losses, unet, workspace
from mitoflow.patches import Patches, PatchStore
from mitoflow.volumes import to_unit

#: What an epoch ended with: loss, dice, val_loss, val_dice.
Logs = dict[str, float]

WARM_UP = 0.05  # share of the steps in which the learning rate rises to its value


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a fit, besides the patches; `mitoflow.params` says what each means."""

    learning_rate: float
    depth: int
    augment_strength: float
    base_width: int
    loss: Literal["bce", "bce_dice"]
    precision: Literal["float32", "mixed_bfloat16"]
    batch_size: int
    epochs: int
    patches_per_epoch: int
    patience: int
    seed: int


@dataclass(frozen=True)
class Fit:
    """A fitted model.

    Attributes
    ----------
    model
        The U-Net with the weights of the best epoch, not compiled.
    history
        The `Logs` of every epoch.
    """

    model: keras.Model
    history: list[Logs]

    @property
    def best_epoch(self) -> int:
        """The epoch with the highest validation Dice, counted from 0."""
        return best_epoch(self.history)


def best_epoch(history: list[Logs]) -> int:
    """Return the first epoch, counted from 0, with the highest validation Dice."""
    return int(np.argmax([logs["val_dice"] for logs in history]))


class TrainPatches(keras.utils.PyDataset):
    """Augmented training batches.

    Every patch is seen once before any is seen again. A batch depends on the seed, the epoch and its place in the
    epoch alone, so a resumed run sees what an undisturbed one would have seen; whoever trains sets `epoch`.

    A batch is images (N, size, size, 1) float32 in [0, 1] and masks (N, size, size, 1) float32 in {0, 1}.
    """

    def __init__(self, patches: Patches, bit_depth: int, recipe: Recipe) -> None:
        super().__init__()
        self.patches, self.bit_depth, self.recipe, self.epoch = patches, bit_depth, recipe, 0
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return -(-self.recipe.patches_per_epoch // self.recipe.batch_size)

    def __getitem__(self, step: int) -> tuple[Any, Any]:
        first = (self.epoch * len(self) + step) * self.recipe.batch_size
        rows = [self._row(first + i) for i in range(self.recipe.batch_size)]
        images, masks = batch(self.patches, rows, self.bit_depth)
        if self.recipe.augment_strength == 0:
            return images, masks
        rng = np.random.default_rng((self.recipe.seed, self.epoch, step))
        maps = augment.random_maps(len(rows), images.shape[1], self.recipe.augment_strength, rng)
        return augment.resample(images, masks, maps)

    def _row(self, place: int) -> int:
        turn, place = divmod(place, len(self.patches))
        return int(self._order(turn)[place])

    def _shuffled(self, turn: int) -> np.ndarray:
        return np.random.default_rng((self.recipe.seed, turn)).permutation(len(self.patches))


class ValidationPatches(keras.utils.PyDataset):
    """Validation batches, as they are, with weight 1 for owned pixels and 0 for the others."""

    def __init__(self, patches: Patches, bit_depth: int, batch_size: int) -> None:
        super().__init__()
        self.patches, self.bit_depth, self.batch_size = patches, bit_depth, batch_size

    def __len__(self) -> int:
        return -(-len(self.patches) // self.batch_size)

    def __getitem__(self, step: int) -> tuple[Any, Any, Any]:
        rows = np.arange(step * self.batch_size, min((step + 1) * self.batch_size, len(self.patches)))
        weights = self.patches.owned(rows)[..., None].astype(np.float32)
        return (*batch(self.patches, rows, self.bit_depth), weights)


def batch(patches: Patches, rows: Any, bit_depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Read patches: images (N, size, size, 1) float32 in [0, 1], masks (N, size, size, 1) float32 in {0, 1}."""
    images, masks = patches.images[rows], patches.masks[rows]
    return to_unit(images, bit_depth)[..., None], masks[..., None].astype(np.float32)


def fit(
    store: PatchStore,
    recipe: Recipe,
    *,
    checkpoints: Path | None = None,
    on_epoch: Callable[[int, Logs], None] | None = None,
    title: str = "train",
) -> Fit:
    """Fit a U-Net on the training patches and keep the weights with the best validation Dice.

    AdamW with a linear warm-up and a cosine decay of the learning rate (Loshchilov and Hutter, "Decoupled Weight Decay
    Regularization", ICLR 2019). It stops after `Recipe.patience` epochs without a better validation Dice.

    Parameters
    ----------
    store
        The patches.
    recipe
        How to fit.
    checkpoints
        Folder for a checkpoint after every epoch. Where it holds checkpoints of a run that was cut off, the fit goes
        on after the last whole epoch, and ends with the weights that it would have had undisturbed.
    on_epoch
        Called after each epoch with its number, counted from 0, and its logs; an exception ends the fit.
    title
        What the progress bar says.
    """
    prepare_backend(recipe)
    model = unet.build_unet(recipe.depth, recipe.base_width)
    train = TrainPatches(store.train, store.bit_depth, recipe)
    steps = len(train) * recipe.epochs
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=recipe.learning_rate * 0.01,
        decay_steps=steps,
        warmup_target=recipe.learning_rate,
        warmup_steps=round(steps * WARM_UP),
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule),
        loss=losses.segmentation_loss(recipe.loss),
        weighted_metrics=[losses.Dice()],
        jit_compile=keras.backend.backend() == "jax",
    )
    model.optimizer.build(model.trainable_variables)
    progress = _Progress(model, train, checkpoints, on_epoch, title)
    resumed_at = progress.resume()
    if not progress.finished:
        model.fit(
            train,
            validation_data=ValidationPatches(store.validation, store.bit_depth, recipe.batch_size),
            initial_epoch=resumed_at,
            epochs=recipe.epochs,
            shuffle=False,  # the batches are shuffled already; Keras would do it in another way after a resume
            callbacks=[progress],
            verbose=0,
        )
    fitted = unet.build_unet(recipe.depth, recipe.base_width)
    fitted.set_weights(progress.best_weights)
    return Fit(fitted, progress.history)


def prepare_backend(recipe: Recipe) -> None:
    """Set precision and seeds, free earlier models, and have TensorFlow compute the same thing twice."""
    keras.utils.clear_session()
    keras.config.set_dtype_policy(recipe.precision)
    keras.utils.set_random_seed(recipe.seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


class _Progress(keras.callbacks.Callback):
    """Progress bar, checkpoints, best weights and early stopping.

    The history decides everything: the best epoch and when to stop follow from it. A checkpoint is the weights and
    the optimiser's state in ``epoch-N.npz`` and then, as the act that makes it count, the history in ``history.json``;
    only the last and the best epoch keep their files.
    """

    def __init__(
        self,
        model: keras.Model,
        train: TrainPatches,
        checkpoints: Path | None,
        on_epoch: Callable[[int, Logs], None] | None,
        title: str,
    ) -> None:
        super().__init__()
        self.set_model(model)
        self.train, self.recipe, self.checkpoints, self.on_epoch = train, train.recipe, checkpoints, on_epoch
        self.history: list[Logs] = []
        self.best_weights: list[np.ndarray] = []
        self.bar = tqdm(total=len(train) * self.recipe.epochs, desc=title, unit="batch", mininterval=1.0)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or the last ones brought no better validation Dice."""
        done = len(self.history)
        return done >= self.recipe.epochs or (done > 0 and done - 1 - best_epoch(self.history) >= self.recipe.patience)

    def resume(self) -> int:
        """Load the last checkpoint, if there is one, and return the epoch to go on with."""
        if self.checkpoints is None or not (self.checkpoints / "history.json").exists():
            return 0
        self.history = json.loads((self.checkpoints / "history.json").read_text(encoding="utf-8"))
        done = len(self.history)
        for variable, value in zip(self._state(), self._read(done - 1), strict=True):
            variable.assign(value)
        self.best_weights = self._read(best_epoch(self.history))[: len(self.model.weights)]
        self.bar.update(done * len(self.train))
        return done

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # Keras' own hook of a dataset is also called once before the first epoch, when it looks at the first batches.
        self.train.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.bar.update()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        rounded = {name: round(float(value), 6) for name, value in (logs or {}).items()}
        self.history.append(rounded)
        self.bar.set_postfix(epoch=epoch + 1, val_dice=f"{rounded['val_dice']:.4f}", refresh=False)
        if best_epoch(self.history) == epoch:
            self.best_weights = self.model.get_weights()
        # Told before it counts: a resumed fit may tell its first epoch again, but none is left out.
        if self.on_epoch is not None:
            self.on_epoch(epoch, rounded)
        if self.checkpoints is not None:
            self._write(epoch)
        self.model.stop_training = self.finished

    def on_train_end(self, logs: Any = None) -> None:
        self.bar.close()

    def _state(self) -> list[Any]:
        return [*self.model.weights, *self.model.optimizer.variables]

    def _file(self, epoch: int) -> Path:
        assert self.checkpoints is not None
        return self.checkpoints / f"epoch-{epoch}.npz"

    def _read(self, epoch: int) -> list[np.ndarray]:
        with np.load(self._file(epoch)) as arrays:
            return [arrays[name] for name in arrays.files]

    def _write(self, epoch: int) -> None:
        with workspace.replacing(self._file(epoch)) as beside, beside.open("wb") as stream:
            np.savez(stream, *[keras.ops.convert_to_numpy(variable) for variable in self._state()])
        with workspace.replacing(self._file(epoch).with_name("history.json")) as beside:
            beside.write_text(json.dumps(self.history), encoding="utf-8")
        kept = {self._file(epoch), self._file(best_epoch(self.history))}
        for file in self._file(epoch).parent.glob("epoch-*.npz"):
            if file not in kept:
                file.unlink()


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain values, for fingerprints and lineage."""
    return dataclasses.asdict(recipe)


def code_digest() -> str:
    """Return a digest of the code that decides the outcome of a fit, so that no fit goes on with other code."""
    rooms = ("augment", "losses", "patches", "training", "unet", "volumes")
    return workspace.fingerprint(keras.backend.backend(), *(Path(__file__).with_name(f"{room}.py") for room in rooms))

"""Fit one network: what the stages `tune` and `train` both call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import keras
import numpy as np

from mitoflow.config.params import Recipe
from mitoflow.core import files
from mitoflow.core.progress import progress_bar
from mitoflow.data.patches import Patches, PatchStore
from mitoflow.data.slice_distance import SliceDistance
from mitoflow.errors import InputError
from mitoflow.models import losses, unet
from mitoflow.training.batches import TrainPatches, ValidationPatches, loaded
from mitoflow.training.callbacks import BestEpoch, Checkpoints, Logs, ProgressBar, Validation, WeightAverage, best_epoch

#: Where batches are computed: on the one device that the backend takes, or shared out to all GPUs of the machine. Each
#: of those holds the network; gradients, batch statistics, loss and metrics are those of the whole batch, so a fit is
#: the same but for rounding.
Strategy = Literal["none", "data_parallel"]

#: The code that decides the outcome of a fit, in the package; the dependencies of `train` in dvc.yaml are the same.
CODE = ("data/network_input.py", "data/patches.py", "data/slice_distance.py", "models", "training")

OF_CONTACTS = 2  # arrays of weights, the last ones, of the layer that predicts contacts
WARM_UP = 0.05  # share of the steps in which the learning rate rises to its value


@dataclass(frozen=True)
class Fit:
    """A fitted model.

    Attributes
    ----------
    model
        The U-Net with the weights of the best epoch, or with their mean over the epochs before it, not compiled.
    history
        The `Logs` of every epoch.
    """

    model: keras.Model
    history: list[Logs]

    @property
    def best_epoch(self) -> int:
        """The epoch with the highest validation Dice, counted from 0."""
        return best_epoch(self.history)


def fit(
    store: PatchStore,
    recipe: Recipe,
    *,
    initial: keras.Model | None = None,
    learned: SliceDistance | None = None,
    strategy: Strategy = "none",
    loaders: int = 0,
    checkpoints: Path | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    batches: Callable[[Patches, int, Recipe, int], TrainPatches] = TrainPatches,
    title: str = "train",
) -> Fit:
    """Fit a U-Net on the training patches and keep the weights with the best validation Dice.

    Of several sets it is the mean of their validation Dice, and a set without validation patches does not count. With
    `Recipe.average_epochs` above 1, the weights that are validated and kept are means; see `WeightAverage`.
    AdamW with a linear warm-up and a cosine decay of the learning rate (Loshchilov and Hutter, "Decoupled Weight Decay
    Regularization", ICLR 2019). It stops after `Recipe.patience` epochs without a better validation Dice.

    Parameters
    ----------
    store
        The patches.
    recipe
        How to fit.
    initial
        A U-Net to start from, in place of random weights: fine-tuning. It is of the recipe's depth, width and context.
    learned
        How far apart the slices are that `initial` learned from; without it those of the thinnest stack here are
        learned. In stacks with slices much farther apart, or unrelated ones, copies stand in for the neighbours.
    strategy
        Where the batches are computed: see `Strategy`.
    loaders
        How many processes make the batches: see `batches.loaded`. It changes no batch.
    checkpoints
        Folder for a checkpoint after every epoch. Where it holds checkpoints of a run that was cut off, the fit goes
        on after the last whole epoch, and ends with the weights that it would have had undisturbed; also where the
        strategy is another one now, but for rounding.
    callbacks
        What else is to happen during the fit. They run before the checkpoint of an epoch is written, so a resumed fit
        may repeat an epoch for them, but leaves none out.
    batches
        Makes the training batches from patches, bit depth, recipe and number of devices: `TrainPatches`, a class that
        inherits from it, or a function that returns one.
    title
        What the progress bar says.

    Raises
    ------
    InputError
        The recipe names an unknown loss or network, describes another U-Net than `initial`, or a batch that the devices
        cannot share.
    """
    make_loss = losses.LOSSES[recipe.loss]
    weights = [] if initial is None else initial.get_weights()
    prepare_backend(recipe)
    loss = make_loss()
    if recipe.contacts:
        loss = losses.OfMaskAndContacts(loss)
    elif store.train.is_partial or store.validation.is_partial:
        loss = losses.OfLabelledPixels(loss)
    if recipe.context:
        store = store.with_context_steps(recipe.context_step, learned or store.slices())
    with _sharing(strategy, recipe.batch_size) as devices:
        source = batches(store.train, store.bit_depth, recipe, devices)
        validation = {
            name: ValidationPatches(store.validation, name, store.bit_depth, recipe, devices)
            for name in store.validation.sets
        }
        model = _build(recipe)
        if weights:
            _take_over(model, weights)
        _compile(model, recipe, losses.OfWholeBatch(loss) if devices > 1 else loss, len(source))
    best = BestEpoch(recipe.epochs, recipe.patience)
    average = WeightAverage(recipe.average_epochs) if recipe.average_epochs > 1 else None
    called = [*([average] if average else []), Validation(validation), best, *callbacks]
    if checkpoints is not None:
        saving = Checkpoints(checkpoints, best, average)
        saving.restore(model)
        called.append(saving)
    done, total = len(best.history) * len(source), recipe.epochs * len(source)
    with progress_bar(initial=done, total=total, desc=title, unit="batch", mininterval=1.0) as bar:
        if not best.finished:
            with loaded(source, loaders) as train:
                starting = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: train.begin(epoch))
                model.fit(
                    train,
                    initial_epoch=len(best.history),
                    epochs=recipe.epochs,
                    shuffle=False,  # the batches are shuffled already; Keras would do it in another way after a resume
                    callbacks=[starting, *called, ProgressBar(bar)],
                    verbose=0,
                )
    fitted = _build(recipe)
    fitted.set_weights(best.weights)
    return Fit(fitted, best.history)


def _build(recipe: Recipe) -> keras.Model:
    model = unet.NETWORKS[recipe.network](recipe.depth, recipe.base_width, 2 * recipe.context + 1)
    return unet.with_contacts(model) if recipe.contacts else model


def _compile(model: keras.Model, recipe: Recipe, loss: keras.losses.Loss, steps: int) -> None:
    """Compile a model for a fit with that many `steps` in each epoch."""
    model.compile(
        optimizer=keras.optimizers.AdamW(WarmUpAndCosine(recipe.learning_rate, steps * recipe.epochs)),
        loss=loss,
        weighted_metrics=[losses.Dice()],
        jit_compile=keras.backend.backend() == "jax",
    )
    model.optimizer.build(model.trainable_variables)
    # Loss and metrics are built here. With other backends than TensorFlow `fit` would draw a batch for that, and serve
    # in the first epoch what threads have made by then, which may be batches of another one.
    side = 1 << recipe.depth
    channels = 2 if recipe.contacts else 1, model.output_shape[-1]
    masks, predicted = (np.zeros((1, side, side, count), np.float32) for count in channels)
    model.compute_loss(y=masks, y_pred=predicted)
    model.compute_metrics(None, masks, predicted)
    model.reset_metrics()


class WarmUpAndCosine(keras.optimizers.schedules.LearningRateSchedule):
    """A linear warm-up from a hundredth of a learning rate, then half a cosine.

    The rates are those of `keras.optimizers.schedules.CosineDecay`, read from a table: AdamW asks for the rate once for
    each variable, and two branches for each of them take TensorFlow a third of the time before the first step.

    Parameters
    ----------
    highest
        The rate at the end of the warm-up.
    steps
        Of the whole fit.
    """

    def __init__(self, highest: float, steps: int) -> None:
        step, warm_up = np.arange(steps + 1), round(steps * WARM_UP)  # after the last step callbacks may ask, too
        rising = 0.01 + 0.99 * step / max(1, warm_up)
        falling = 0.5 * (1 + np.cos(np.pi * (step - warm_up) / steps))
        self.rates = (highest * np.where(step < warm_up, rising, falling)).astype(np.float32)

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step, counted from 0."""
        return keras.ops.take(self.rates, step)


@contextmanager
def _sharing(strategy: Strategy, batch_size: int) -> Iterator[int]:
    """Have what is built in the block live on the devices of a strategy; yield how many they are."""
    if strategy == "none":
        yield 1
        return
    if keras.backend.backend() != "tensorflow":
        found, expected = f"{strategy} with KERAS_BACKEND={keras.backend.backend()}", "the backend tensorflow"
        raise InputError("machine.strategy", found, expected, "set it to none, or change the backend")
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if batch_size % len(devices):
        expected, remedy = f"a multiple of the {len(devices)} devices that share it", "change it"
        raise InputError("train.batch_size", batch_size, expected, remedy)
    if len(devices) == 1:
        yield 1
        return
    with tf.distribute.MirroredStrategy([device.name for device in devices]).scope():
        yield len(devices)


def _take_over(model: keras.Model, weights: list[np.ndarray]) -> None:
    """Give a model the weights of another one; contacts that only one of the two predicts are left out."""
    kept = model.get_weights()
    common = min(len(weights), len(kept))
    found, expected = ([array.shape for array in arrays[:common]] for arrays in (weights, kept))
    if found != expected or abs(len(weights) - len(kept)) not in (0, OF_CONTACTS):
        described = "another network, or one of other depth, width or context"
        remedy = "give train.network, train.depth, train.base_width and train.context the values of that model"
        raise InputError("train.init_from", described, "one like that of the recipe", remedy)
    model.set_weights([*weights[:common], *kept[common:]])


def prepare_backend(recipe: Recipe) -> None:
    """Set precision, seeds and threads, free earlier models, and have TensorFlow compute the same thing twice."""
    cv2.setNumThreads(1)  # batches are made in threads of Keras, and the other cores belong to the training step
    keras.utils.clear_session()
    keras.config.set_dtype_policy(recipe.precision)
    keras.utils.set_random_seed(recipe.seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def code_digest() -> str:
    """Return a digest of the code that decides the outcome of a fit, so that no fit resumes with other code.

    It is that of the modules in `CODE`, and of the versions of the backend, Keras, NumPy and OpenCV.
    """
    package = Path(__file__).parents[1]
    modules = [path for each in CODE for path in sorted((package / each).rglob("*.py")) or [package / each]]
    backend = keras.backend.backend()
    libraries = (sys.modules[backend], keras, np, cv2)
    return files.short_digest([backend, *(library.__version__ for library in libraries)], *modules)

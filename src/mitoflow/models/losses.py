"""What training minimises and what it watches: losses and metrics on the logits of the U-Net.

The U-Net ends in logits, float32 also under mixed precision, and not in probabilities: cross-entropy from logits
neither overflows nor loses its gradient where the network is sure, and logit >= 0 is probability >= 0.5.

All take truth ``(N, Y, X, 1)`` in {0, 1}, logits ``(N, Y, X, 1)``, and a ``sample_weight`` of ``(N, Y, X)`` or
``(N, Y, X, 1)`` in which pixels that must not count, such as reflected margins, are 0. Keras hands the weights to the
loss and to the ``weighted_metrics`` of ``Model.compile``, never to its ``metrics``.

A loss implements ``call``, as those of Keras do, with the reduction ``mean_with_sample_weight``. One that overrides
``__call__``, because it is no mean over pixels, divides by `unet.sharing_devices`, as Keras does for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from mitoflow.core.choices import Choices
from mitoflow.data.network_input import UNLABELLED
from mitoflow.models import unet

#: The losses that `train.loss` chooses from; called without arguments, each returns a new Keras loss.
LOSSES: Choices[Callable[[], keras.losses.Loss]] = Choices("params.yaml: train.loss")


@LOSSES.register("bce")
def binary_crossentropy() -> keras.losses.BinaryCrossentropy:
    """Return the mean cross-entropy of the pixels that count, from logits."""
    return keras.losses.BinaryCrossentropy(from_logits=True, reduction="mean_with_sample_weight", name="bce")


@LOSSES.register("bce_dice")
@keras.saving.register_keras_serializable("mitoflow")
class BinaryCrossentropyDice(keras.losses.Loss):
    """Binary cross-entropy plus 1 - soft Dice.

    Soft Dice is (2 sum(p g) + 1) / (sum(p^2) + sum(g^2) + 1) with probability p and truth g (Milletari et al. 2016,
    "V-Net"), where the sums run over the pixels of the whole batch: most patches hold few mitochondria or none, and a
    Dice of their own would be all or nothing. The ones keep a batch without mitochondria at a slope towards p = 0.
    """

    def __init__(self, name: str = "bce_dice", **config: Any) -> None:
        super().__init__(name=name, **config)
        self.crossentropy = binary_crossentropy()

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return the loss of a batch, a scalar."""
        # Not in `call`: Keras weighs the pixels of what `call` returns, and Dice of a batch is a single number.
        truth = ops.convert_to_tensor(y_true, self.dtype)
        logits = ops.convert_to_tensor(y_pred, self.dtype)
        weight = _weight(sample_weight, truth)
        probability = ops.sigmoid(logits)
        overlap = 2 * ops.sum(weight * probability * truth) + 1
        sizes = ops.sum(weight * ops.square(probability)) + ops.sum(weight * ops.square(truth)) + 1
        devices = unet.sharing_devices()
        return self.crossentropy(truth, logits, weight) + 1 / devices - overlap / sizes / devices


class OfLabelledPixels(keras.losses.Loss):
    """A loss of the pixels that somebody looked at: those of which the truth is not `network_input.UNLABELLED`."""

    def __init__(self, loss: keras.losses.Loss) -> None:
        super().__init__(name=loss.name)
        self.loss = loss

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return the loss of a batch, a scalar; 0 where nobody looked at any of its pixels."""
        truth = ops.convert_to_tensor(y_true, self.dtype)
        return self.loss(truth * _labelled(truth), y_pred, _weight(sample_weight, truth) * _labelled(truth))


class OfMaskAndContacts(keras.losses.Loss):
    """The loss of the mask plus that of the contacts, for a network with `unet.with_contacts`.

    Truth and logits are ``(N, Y, X, 2)``: the mask, and where two mitochondria touch. Pixels whose truth is
    `network_input.UNLABELLED` do not count: for the contacts these are the background, too.
    """

    def __init__(self, loss: keras.losses.Loss) -> None:
        super().__init__(name=loss.name)
        self.loss = OfLabelledPixels(loss)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return the loss of a batch, a scalar."""
        outputs = (slice(0, 1), slice(1, 2))
        mask, contacts = (self.loss(y_true[..., at], y_pred[..., at], sample_weight) for at in outputs)
        return mask + contacts


class OfWholeBatch(keras.losses.Loss):
    """A loss of the whole batch where `tf.distribute` shares it out to several devices.

    Each device gathers truth, logits and weights of all of them, a few megabytes, and computes the same number: what
    one device alone would have got, divided by the number of devices, since Keras sums up their gradients.
    """

    def __init__(self, loss: keras.losses.Loss) -> None:
        super().__init__(name=loss.name)
        self.loss = loss

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return the loss of the batch, a scalar."""
        import tensorflow as tf

        arrays = [y_true, y_pred] if sample_weight is None else [y_true, y_pred, sample_weight]
        if devices := tf.distribute.get_replica_context():  # there is none while Keras builds the model
            arrays = [
                tf.ensure_shape(devices.all_gather(tf.convert_to_tensor(array), axis=0), (None, *array.shape[1:]))
                for array in arrays
            ]
        return self.loss(*arrays)


@keras.saving.register_keras_serializable("mitoflow")
class Dice(keras.metrics.Metric):
    """2 TP / (2 TP + FP + FN) of all pixels since the last reset, where logit >= 0 predicts foreground; 0/0 is 1.

    Of a network with several output channels, such as one under deep supervision, the first is the segmentation, and of
    a truth with contacts, too. The counts are float32: whole numbers up to 2^24 pixels each, and to about 1e-7 of
    themselves beyond.
    """

    def __init__(self, name: str = "dice", **config: Any) -> None:
        super().__init__(name=name, **config)
        self.tp = self.add_variable((), "zeros", name="tp")
        self.fp = self.add_variable((), "zeros", name="fp")
        self.fn = self.add_variable((), "zeros", name="fn")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count the pixels of a batch."""
        truth = ops.convert_to_tensor(y_true, self.dtype)[..., :1]
        predicted = ops.cast(ops.convert_to_tensor(y_pred)[..., :1] >= 0, self.dtype)
        weight = _weight(sample_weight, truth) * _labelled(truth)
        self.tp.assign_add(ops.sum(weight * truth * predicted))
        self.fp.assign_add(ops.sum(weight * (1 - truth) * predicted))
        self.fn.assign_add(ops.sum(weight * truth * (1 - predicted)))

    def result(self) -> Any:
        """Return Dice in [0, 1]."""
        overlap = 2 * self.tp
        both = overlap + self.fp + self.fn
        return ops.where(both > 0, ops.divide_no_nan(overlap, both), 1.0)


def _labelled(truth: Any) -> Any:
    """Return 1 where the truth is known and 0 where it is `network_input.UNLABELLED`."""
    return ops.cast(ops.not_equal(truth, UNLABELLED), truth.dtype)


def _weight(sample_weight: Any, truth: Any) -> Any:
    """Return the weights in the shape of ``truth``, all 1 where there are none."""
    if sample_weight is None:
        return ops.ones_like(truth)
    return ops.reshape(ops.convert_to_tensor(sample_weight, truth.dtype), ops.shape(truth))

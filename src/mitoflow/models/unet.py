"""The U-Net."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from keras import layers

from mitoflow.core import files
from mitoflow.core.choices import Choices
from mitoflow.errors import InputError

#: The networks that `train.network` chooses from: functions of depth, base width and channels, as `build_unet` is.
NETWORKS: Choices[Callable[[int, int, int], keras.Model]] = Choices("params.yaml: train.network")
#: Adds the layers of one level to x, (N, Y, X, C), under names that begin with `name`; returns (N, Y, X, width).
Block = Callable[[Any, int, str], Any]

#: What archives name as the module of the layers here. Keras finds these by their registered names and imports no
#: module; with another name, equal models would have other digests than those that mitoflow 0.1 wrote.
MODULE = "mitoflow.unet"

MOMENTUM = 0.9  # of the moving statistics: the first epochs of a short trial must not be judged by their initial values


@keras.saving.register_keras_serializable(package="mitoflow")
class FusedBatchNormalization(layers.BatchNormalization):
    """Keras' batch normalisation, run by TensorFlow's fused kernel where TensorFlow is the backend.

    Keras composes the layer from several operations, which costs a U-Net on a CPU more than half of its training
    step; the fused kernel is one. The mathematics is Keras' own: the population variance enters the moving average,
    and the statistics are kept in float32. Other backends, and inputs without a batch of images, take Keras' path; so
    do devices that share a batch, whose statistics are those of the whole batch.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.synchronized = sharing_devices() > 1

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise (N, Y, X, C) over N, Y and X."""
        if keras.backend.backend() != "tensorflow" or mask is not None or self.synchronized:
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        normalise = bool(training) and self.trainable
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.convert_to_tensor(self.moving_mean),
            variance=tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=normalise,
        )
        if normalise:
            # The kernel reports the unbiased variance; Keras averages the population variance.
            count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], tf.float32)
            population = variance * (count - 1) / count
            self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1 - self.momentum))
            self.moving_variance.assign(self.moving_variance * self.momentum + population * (1 - self.momentum))
        return outputs


def sharing_devices() -> int:
    """Return how many devices share each batch of what is built now; see `training.Strategy`."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def convolve_twice(x: Any, width: int, name: str) -> Any:
    """Convolve (N, Y, X, C) twice to `width` feature maps, each time with normalisation and ReLU: a level's block."""
    for i in (1, 2):
        # The normalisation brings its own offset, so the convolution goes without a bias.
        convolve = layers.Conv2D(
            width, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_{i}"
        )
        x = convolve(x)
        x = FusedBatchNormalization(momentum=MOMENTUM, name=f"{name}_{i}_norm")(x)
        x = layers.ReLU(name=f"{name}_{i}_relu")(x)
    return x


@NETWORKS.register("unet")
def build_unet(depth: int, base_width: int, channels: int = 1, block: Block = convolve_twice) -> keras.Model:
    """Build a U-Net for patches of any size that is divisible by ``2**depth``.

    On each level two 3 x 3 convolutions with batch normalisation and ReLU; max pooling on the way down, transposed
    convolutions on the way up, and a skip connection between the two. Width doubles from level to level.

    Source: Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI
    2015, with same-padding in place of cropping.

    Parameters
    ----------
    depth
        Poolings on the way down.
    base_width
        Feature maps on the first level.
    channels
        Channels of the input.
    block
        What each level is made of, in place of two convolutions.

    Returns
    -------
    A model from (N, Y, X, channels) float in [0, 1] to (N, Y, X, 1) float32 logits.
    """
    inputs = keras.Input((None, None, channels), name="image")
    skips = []
    x = inputs
    for level in range(depth):
        x = block(x, base_width * 2**level, f"down{level}")
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)
    x = block(x, base_width * 2**depth, "bottom")
    for level in reversed(range(depth)):
        width = base_width * 2**level
        x = layers.Conv2DTranspose(width, 2, strides=2, name=f"up{level}_transpose")(x)
        x = layers.Concatenate(name=f"up{level}_skip")([skips[level], x])
        x = block(x, width, f"up{level}")
    logits = layers.Conv2D(1, 1, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="unet")


def reach(depth: int) -> int:
    """Return how many pixels to each side an output of the U-Net sees: half of its receptive field, rounded up.

    On level l, whose pixels are ``2**l`` wide, two 3 x 3 convolutions see 2 pixels further on the way down and 2 on the
    way up, and a pooling 1: ``5 * 2**l``, summed over the levels, and ``2 * 2**depth`` at the bottom; together
    ``7 * 2**depth - 5``.
    """
    return 7 * (1 << depth) - 5


def save_model(model: keras.Model, path: Path) -> None:
    """Write `model`, which was not compiled, to `path` (``.keras``): the same weights give the same bytes.

    Keras puts the time and memory addresses into the archive; here the time is always the same and the addresses are
    numbered in their order, so that equal models have equal digests.
    """
    with files.replacing(path) as beside:
        buffer = io.BytesIO()
        written = beside.with_name(f"{beside.name}.keras")
        try:
            model.save(written)
            with zipfile.ZipFile(written) as source, zipfile.ZipFile(buffer, "w") as target:
                for name in sorted(source.namelist()):
                    content = source.read(name)
                    if name == "metadata.json":
                        content = json.dumps({**json.loads(content), "date_saved": ""}, sort_keys=True).encode()
                    if name == "config.json":
                        content = _number_shared_objects(content).replace(__name__.encode(), MODULE.encode())
                    target.writestr(zipfile.ZipInfo(name), content)
            beside.write_bytes(buffer.getvalue())
        finally:
            written.unlink(missing_ok=True)


def _number_shared_objects(config: bytes) -> bytes:
    numbers: dict[bytes, int] = {}
    return re.sub(
        rb'(?<="shared_object_id": )\d+', lambda found: b"%d" % numbers.setdefault(found[0], len(numbers)), config
    )


def load_model(path: Path) -> keras.Model:
    """Read a model that `save_model` wrote; code inside the file is never run.

    Raises
    ------
    InputError
        The file is missing, no Keras model, or one that carries code (a lambda layer or an unknown class).
    """
    if not path.exists():
        raise InputError(path, "no such file", "a .keras model", "run `dvc repro train` or `dvc pull`")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises nearly anything for a broken archive
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(path, reason, "a U-Net saved by mitoflow", "train it again or take another file") from None

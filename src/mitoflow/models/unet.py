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
from mitoflow.core.keras_archive import REMEDY
from mitoflow.errors import InputError
from mitoflow.models import archives

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
    """Return how many devices share each batch of what is built now; see `mitoflow.training.fitting.Strategy`."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def _convolve(x: Any, width: int, size: int, name: str, strides: int = 1) -> Any:
    """Convolve (N, Y, X, C) to `width` feature maps, with normalisation and ReLU."""
    # The normalisation brings its own offset, so the convolution goes without a bias.
    convolve = layers.Conv2D(
        width, size, strides, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )
    x = convolve(x)
    x = FusedBatchNormalization(momentum=MOMENTUM, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def convolve_twice(x: Any, width: int, name: str) -> Any:
    """Convolve (N, Y, X, C) twice to `width` feature maps, each time with normalisation and ReLU: a level's block."""
    for i in (1, 2):
        x = _convolve(x, width, 3, f"{name}_{i}")
    return x


def _encode_and_decode(x: Any, poolings: int, base_width: int, block: Block) -> Any:
    """Return (N, Y, X, base_width) from (N, Y, X, C): all of a U-Net but for the logits."""
    skips = []
    for level in range(poolings):
        x = block(x, base_width * 2**level, f"down{level}")
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)
    x = block(x, base_width * 2**poolings, "bottom")
    for level in reversed(range(poolings)):
        width = base_width * 2**level
        x = layers.Conv2DTranspose(width, 2, strides=2, name=f"up{level}_transpose")(x)
        x = layers.Concatenate(name=f"up{level}_skip")([skips[level], x])
        x = block(x, width, f"up{level}")
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
    x = _encode_and_decode(inputs, depth, base_width, block)
    logits = layers.Conv2D(1, 1, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="unet")


@NETWORKS.register("unet_strided")
def build_strided_unet(depth: int, base_width: int, channels: int = 1, block: Block = convolve_twice) -> keras.Model:
    """Build a U-Net that works at half of the resolution, for patches of any size that is divisible by ``2**depth``.

    The first level of a U-Net takes more than half of its time. Here a convolution with a stride halves the sides
    before it and a transposed convolution doubles them after it, so that a network of twice the width takes less time
    than `build_unet`. No pixel is lost on the way: the 6 x 6 convolution of stride 2 is a 3 x 3 convolution of the
    pixels of each 2 x 2 square as channels, and the transposed convolution a 1 x 1 convolution to one such square.

    Source: Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
    Neural Network", CVPR 2016, for channels as sub-pixels.

    Parameters
    ----------
    depth
        How often the sides are halved: once by the stride, then by ``depth - 1`` poolings.
    base_width
        Feature maps at half of the resolution.
    channels, block
        As in `build_unet`.

    Returns
    -------
    A model from (N, Y, X, channels) float in [0, 1] to (N, Y, X, 1) float32 logits.
    """
    inputs = keras.Input((None, None, channels), name="image")
    x = _convolve(inputs, base_width, 6, "stem", strides=2)
    x = _encode_and_decode(x, depth - 1, base_width, block)
    logits = layers.Conv2DTranspose(1, 2, strides=2, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="unet_strided")


def with_contacts(model: keras.Model) -> keras.Model:
    """Return a network with a second logit for each pixel, (N, Y, X, 2): whether two mitochondria touch there.

    Both logits come from the same feature maps, each by a layer of its own of the same kind; the second one begins with
    random weights. The first one stays what it is.

    Parameters
    ----------
    model
        A network to (N, Y, X, 1) logits; it shares its layers with the new one.
    """
    last = model.output._keras_history.operation
    second = type(last).from_config(last.get_config() | {"name": "contact_logits"})
    logits = layers.Concatenate(name="mask_and_contacts", dtype="float32")([model.output, second(last.input)])
    return keras.Model(model.input, logits, name=model.name)


def without_contacts(model: keras.Model) -> keras.Model:
    """Return the part of a network of `with_contacts` that predicts the mask, and other networks as they are."""
    if model.output_shape[-1] == 1:
        return model
    return keras.Model(model.input, model.output._keras_history.operation.input[0], name=model.name)


def reach(depth: int) -> int:
    """Return how many pixels to each side an output of a network here sees at most: half of its receptive field.

    In `build_unet`, on level l, whose pixels are ``2**l`` wide, two 3 x 3 convolutions see 2 pixels further on the way
    down and 2 on the way up, and a pooling 1: ``5 * 2**l``, summed over the levels, and ``2 * 2**depth`` at the bottom;
    together ``7 * 2**depth - 5``. `build_strided_unet` sees 2 pixels less: twice the ``7 * 2**(depth - 1) - 5`` of the
    U-Net in it, and the 3 of its first convolution.
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
        The file is missing, no Keras model, one that carries code (a lambda layer or an unknown class), one that
        announces more than it holds, or a weight is not finite.
    """
    if not path.exists():
        raise InputError(path, "no such file", "a .keras model", "run `dvc repro train` or `dvc pull`")
    try:
        archives.require_bounded(path)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        _require_finite(model, path)
        return model
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Keras raises nearly anything for a broken archive
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(path, reason, "a U-Net saved by mitoflow", REMEDY) from None


def _require_finite(model: keras.Model, path: Path) -> None:
    """Raise `InputError` where a weight is NaN or infinite: every mask would be empty."""
    for weight in model.weights:
        if not bool(keras.ops.all(keras.ops.isfinite(keras.ops.cast(weight, "float32")))):
            remedy = "take an earlier model, or train again with a lower learning rate"
            raise InputError(path, f"weights that are no finite numbers ({weight.path})", "finite numbers", remedy)

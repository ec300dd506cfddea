"""The network of a model for programs that know nothing of mitoflow: plain Keras, and ONNX.

Both hold the network alone, in float32: (N, Y, X, 2 context + 1) grey values in [0, 1] in, the probability that a pixel
of the middle slice is mitochondrion out, (N, Y, X, 1) in [0, 1]. Where the settings say ``normalization: percentiles``,
0 and 1 are the 1st and the 99th percentile of the whole slice, constant areas left out; else 1 is the largest value of
``bit_depth``. Tiles, test-time augmentation, the median along z and the threshold are left to the program that runs it.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
from keras import layers

from mitoflow import __version__
from mitoflow.core import files
from mitoflow.data import network_input, phantom
from mitoflow.errors import InputError
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.models import unet

IMAGE, PROBABILITY = "image", "probability"  # the input and the output
OPSET = 17  # of 2022: programs bring older runtimes than the newest
TOLERANCE = 1e-4  # of a probability, between ONNX and Keras; the BioImage Model Zoo tolerates ten times as much

SIDE = 256  # pixels of the phantom slice along y and x, where the network takes that
DEPTH = 16  # slices of the phantom, without those that only stand beside others
SEED = 2  # data/ of the phantom has the pieces 0 and 1, so that no model has seen this one


@dataclass(frozen=True)
class Parity:
    """By how much a probability differs, at the most, in the slice that was compared.

    Attributes
    ----------
    converted
        Between ONNX and Keras, both in float32.
    trained
        Between ONNX and the model as it was trained, which may compute in 16 bits.
    """

    converted: float
    trained: float


def export_onnx(path: Path, predictor: Predictor) -> Parity:
    """Write a model as ONNX, once it was seen to predict what the model predicts.

    Parameters
    ----------
    path
        The file; what is there is replaced.
    predictor
        The model, on Keras, with its settings.

    Raises
    ------
    InputError
        Keras runs on another backend than TensorFlow, or ONNX predicts something else.
    """
    network = plain(predictor.model)
    with files.replacing(path) as beside:
        write_onnx(beside, network, predictor.settings)
        return compare(beside, network, predictor, phantom_slice(predictor.settings))


def plain(model: keras.Model) -> keras.Model:
    """Return the U-Net of a `Predictor` in float32, with probabilities for logits: any Keras reads it.

    They are those of mitochondrion; contacts are left out.
    """

    def translate(layer: layers.Layer) -> layers.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    model = unet.without_contacts(model)
    network = keras.models.clone_model(model, clone_function=translate)
    network.set_weights(model.get_weights())
    probability = layers.Activation("sigmoid", dtype="float32", name=PROBABILITY)(network.output)
    return keras.Model(network.input, probability, name=model.name)


def write_onnx(path: Path, network: keras.Model, settings: Settings) -> None:
    """Write what `plain` returned as ONNX, with the settings in the metadata; raises like `export_onnx`.

    N, Y and X are free, as long as Y and X are divisible by `Settings.divisor`. The batch normalisation is folded into
    the convolutions.
    """
    if (backend := keras.backend.backend()) != "tensorflow":
        remedy = "unset it for this command: a model may be trained on one and exported on the other"
        raise InputError("KERAS_BACKEND", backend, "tensorflow, whose graph is converted", remedy)
    signature = [keras.InputSpec(shape=network.input_shape, dtype="float32", name=IMAGE)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a check that Keras makes for NumPy 2
        network.export(str(path), format="onnx", input_signature=signature, opset_version=OPSET, verbose=False)
    converted = onnx.load(str(path))
    _name_tensors(converted.graph)
    converted.producer_name, converted.producer_version = "mitoflow", __version__
    converted.doc_string = (__doc__ or "").strip()
    metadata = {key: str(value) for key, value in dataclasses.asdict(settings).items()}
    onnx.helper.set_model_props(converted, metadata)
    onnx.checker.check_model(converted, full_check=True)
    path.write_bytes(converted.SerializeToString(deterministic=True))


def _name_tensors(graph: onnx.GraphProto) -> None:
    """Call the tensors and their axes by their names; the converter only numbers them."""
    (image,), (probability,) = graph.input, graph.output
    names = {image.name: IMAGE, probability.name: PROBABILITY}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in (image, probability):
        tensor.name = names[tensor.name]
        for axis, name in zip(tensor.type.tensor_type.shape.dim, "NYX", strict=False):  # the channels are a number
            axis.dim_param = name


def smallest_side(settings: Settings) -> int:
    """Return the smallest side that the network takes and of which something is left without the overlap."""
    return settings.divisor * (settings.overlap // settings.divisor + 1)


def phantom_slice(settings: Settings) -> np.ndarray:
    """Draw a slice with its neighbours, (1, Y, X, 2 context + 1) uint8 or uint16: grey values as a model expects them.

    It is synthetic, so that it may go wherever a model goes.
    """
    side = max(smallest_side(settings), SIDE // settings.divisor * settings.divisor)
    depth = DEPTH + 2 * settings.context * settings.context_step
    stack, _ = phantom.make_phantom((depth, side, side), SEED)
    near = network_input.neighbours(depth // 2, settings.context, settings.context_step, range(depth))
    images = [stack[z] for z in near]
    if settings.normalization == "percentiles":
        images = [network_input.stretched(image, *network_input.grey_range(image)) for image in images]
    grey = np.stack(images, axis=-1)[np.newaxis]
    if settings.bit_depth == 8:
        return np.asarray(grey)
    return np.asarray(grey.astype(np.uint32) * ((1 << settings.bit_depth) - 1) // 255, np.uint16)


def compare(path: Path, network: keras.Model, predictor: Predictor, images: np.ndarray) -> Parity:
    """Run an ONNX file and the model that it was made from on the same images.

    Parameters
    ----------
    path
        What `write_onnx` wrote.
    network
        What `plain` returned.
    predictor
        The U-Net as it was trained, with its settings.
    images
        (N, Y, X, 2 context + 1) uint8 or uint16.

    Raises
    ------
    InputError
        ONNX and Keras in float32 differ by more than `TOLERANCE`.
    """
    units = network_input.to_unit(images, predictor.settings.bit_depth)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (converted,) = session.run([PROBABILITY], {IMAGE: units})
    same = np.asarray(network.predict_on_batch(units))
    trained = predictor.patch_probabilities(images)[..., np.newaxis]
    parity = Parity(*(float(np.abs(converted - each).max()) for each in (same, trained)))
    if not parity.converted <= TOLERANCE:
        found = f"probabilities that differ from Keras by up to {parity.converted:.2g}"
        raise InputError(path, found, f"at most {TOLERANCE}", "export it with the versions in requirements-test.lock")
    return parity

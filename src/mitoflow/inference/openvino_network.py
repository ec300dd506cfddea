"""The network of a `.keras` file on OpenVINO, read without Keras.

Keras and TensorFlow take longer to import than OpenVINO takes to predict a slice, and on a CPU both predict at the same
speed (docs/performance.md). OpenVINO runs the layers that mitoflow's networks consist of; Keras runs any other network,
and says what is wrong with a file.
"""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from mitoflow.core import keras_archive, process
from mitoflow.inference.settings import Settings

if TYPE_CHECKING:
    import openvino

#: What a layer may be, by its class: other values of these keys would be another function.
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "InputLayer": {"dtype": "float32", "sparse": False, "ragged": False},
    "Conv2D": {"data_format": "channels_last", "dilation_rate": [1, 1], "groups": 1, "activation": "linear"},
    "FusedBatchNormalization": {"axis": -1, "center": True, "scale": True, "renorm": False},
    "ReLU": {"max_value": None, "negative_slope": 0.0, "threshold": 0.0},
    "MaxPooling2D": {"padding": "valid", "data_format": "channels_last"},
    "Conv2DTranspose": {
        "padding": "valid",
        "output_padding": None,
        "data_format": "channels_last",
        "dilation_rate": [1, 1],
        "activation": "linear",
    },
    "Concatenate": {"axis": -1},
}
IN_32_BITS, IN_16_BITS = "float32", "mixed_bfloat16"  # how the layers of a network compute


class UnknownNetworkError(Exception):
    """A network that is not made of the layers in `KNOWN`, or that does not fit its settings."""


class OpenVinoNetwork:
    """A network on the CPU.

    It computes in bfloat16 where it was trained to and the processor multiplies such numbers, and else in float32.

    Parameters
    ----------
    model
        From (N, Y, X, C) float32 to (N, Y, X, 1), or to (N, Y, X, 2) where it predicts contacts too.
    precision
        `IN_16_BITS` or `IN_32_BITS`.
    """

    def __init__(self, model: openvino.Model, precision: str) -> None:
        import openvino

        core = openvino.Core()
        has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        options = {
            "PERFORMANCE_HINT": "LATENCY",  # all threads share a batch
            "INFERENCE_PRECISION_HINT": "bf16" if precision == IN_16_BITS and has_bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": process.threads(),
            "ENABLE_CPU_PINNING": False,  # several processes may predict on this machine
        }
        self._compiled = core.compile_model(model, "CPU", options)

    def predict_on_batch(self, batch: np.ndarray) -> np.ndarray:
        """Return logits (N, Y, X, 1 or 2) float32 for (N, Y, X, C) float32 in [0, 1]; threads may call it."""
        request = self._compiled.create_infer_request()
        request.infer([np.ascontiguousarray(batch)])
        return np.array(request.get_output_tensor().data)


def read(path: Path, settings: Settings) -> OpenVinoNetwork:
    """Read a network that `mitoflow.models.unet.save_model` wrote.

    Raises
    ------
    Exception
        Any: the file is damaged, or what it holds is no U-Net of mitoflow with these settings.
    """
    # OpenVINO reports each import to its maker where it finds this package; a module that is None is not found.
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    archive = keras_archive.read(path)
    described = json.loads(archive.config)["config"]
    with h5py.File(io.BytesIO(archive.weights)) as file:
        layers = _layers(described["layers"], file)
    precisions = {layer.precision for layer in layers}
    if not precisions <= {IN_32_BITS, IN_16_BITS}:
        raise UnknownNetworkError(f"precisions {precisions}")
    (first,), (last,) = (_names(described[key]) for key in ("input_layers", "output_layers"))
    model = _build(layers, first, last)
    _require_fitting(model, settings)
    return OpenVinoNetwork(model, IN_16_BITS if IN_16_BITS in precisions else IN_32_BITS)


@dataclass(frozen=True)
class _Layer:
    """A layer as the archive describes it: its class and configuration, its weights and the layers before it."""

    kind: str
    config: Mapping[str, Any]
    weights: Sequence[np.ndarray]
    before: Sequence[str]

    @property
    def precision(self) -> str:
        """How it computes: the name of a policy of Keras."""
        policy = self.config["dtype"]
        return str(policy["config"]["name"] if isinstance(policy, dict) else policy)


def _layers(described: Sequence[Mapping[str, Any]], file: h5py.File) -> list[_Layer]:
    """Return the layers in their order; Keras names the groups of their weights by class and number."""
    layers, seen = [], Counter[str]()
    for each in described:
        kind, config = each["class_name"], each["config"]
        if kind not in KNOWN or any(config.get(key, value) != value for key, value in KNOWN[kind].items()):
            raise UnknownNetworkError(f"{kind} {config}")
        group = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
        number, seen[kind] = seen[kind], seen[kind] + 1
        stored = file.get(f"layers/{group}_{number}/vars" if number else f"layers/{group}/vars", {})
        weights = [np.asarray(stored[str(place)], np.float32) for place in range(len(stored))]
        if not all(np.isfinite(values).all() for values in weights):
            raise UnknownNetworkError(f"weights of {config['name']} that are no finite numbers")
        before = [name for node in each["inbound_nodes"] for name in _names(node["args"])]
        layers.append(_Layer(kind, config, weights, before))
    return layers


def _names(tensors: Sequence[Any]) -> list[str]:
    """Return the layers that tensors come from: ``[name, 0, 0]``, a description that has it, or a list of these."""
    match tensors:
        case [str(name), 0, 0]:
            return [name]
        case {"config": {"keras_history": history}}:
            return _names(history)
    return [name for each in tensors for name in _names(each)]


def _build(layers: Sequence[_Layer], first: str, last: str) -> openvino.Model:
    """Return the network from the layer called `first` to the one called `last`."""
    import openvino
    from openvino import opset13 as ops

    made: dict[str, Any] = {}  # (N, C, Y, X), as OpenVINO has axes
    images: dict[str, Any] = {}
    for layer in layers:
        name = layer.config["name"]
        if layer.kind == "InputLayer":
            *free, channels = layer.config["batch_shape"]
            if free != [None, None, None]:
                raise UnknownNetworkError(f"images of {free} pixels")
            images[name] = ops.parameter([-1, -1, -1, channels], np.float32)
            made[name] = ops.transpose(images[name], [0, 3, 1, 2])
        else:
            made[name] = _apply(layer, [made[each] for each in layer.before])
    return openvino.Model([ops.transpose(made[last], [0, 2, 3, 1])], [images[first]], "unet")


def _apply(layer: _Layer, inputs: Sequence[Any]) -> Any:
    """Return a layer of `KNOWN` applied to what comes from the layers before it."""
    from openvino import opset13 as ops

    config, weights = layer.config, layer.weights
    if layer.kind == "Concatenate":
        return ops.concat(inputs, 1)
    (x,) = inputs
    match layer.kind:
        case "FusedBatchNormalization":
            return ops.batch_norm_inference(x, *map(ops.constant, weights), config["epsilon"])
        case "ReLU":
            return ops.relu(x)
        case "MaxPooling2D":
            pooled = ops.max_pool(x, config["strides"], [1, 1], [0, 0], [0, 0], config["pool_size"])
            return pooled.output(0)  # the other one says where the largest values were
    kernel, *bias = weights
    filters = ops.constant(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
    if layer.kind == "Conv2D":
        pad = {"same": "same_upper", "valid": "valid"}[config["padding"]]
        x = ops.convolution(x, filters, config["strides"], [0, 0], [0, 0], [1, 1], auto_pad=pad)
    else:
        x = ops.convolution_backprop_data(x, filters, config["strides"], auto_pad="valid")
    return ops.add(x, ops.constant(bias[0].reshape(1, -1, 1, 1))) if config["use_bias"] else x


def _require_fitting(model: openvino.Model, settings: Settings) -> None:
    """Raise `UnknownNetworkError` unless a network maps slices with their neighbours to the logits of each pixel."""
    side = settings.divisor * math.ceil(settings.tile / settings.divisor)
    tile = model.clone()
    tile.reshape([1, side, side, 2 * settings.context + 1])
    if [*tile.output(0).shape] != [1, side, side, settings.outputs]:
        raise UnknownNetworkError(f"{tile.output(0).shape} for {side} x {side} pixels")

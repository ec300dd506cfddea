"""The network of a trained model on Keras."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from mitoflow.errors import InputError
from mitoflow.inference import model_files
from mitoflow.inference.settings import Settings
from mitoflow.models import unet


def read(path: Path, settings: Settings) -> keras.Model:
    """Read a network that predicts with these settings.

    Raises
    ------
    InputError
        The file is missing or broken, or the network is not of the kind that mitoflow trains.
    """
    model = unet.load_model(path)
    if found := _unlike(model, settings):
        channels, layer = 2 * settings.context + 1, f"{model_files.SETTINGS} of this model beside it"
        logits = f"logits (slices, y, x, {settings.outputs})"
        expected = f"a U-Net from (slices, y, x, {channels}) to {logits}, as its settings say"
        raise InputError(path, found, expected, f"put the {layer}, or train a model with mitoflow")
    return model


def prepared(model: keras.Model) -> keras.Model:
    """Return a network that predicts the same, faster."""
    folded = fold_normalization(model)
    # Compiling for XLA halves the speed of a U-Net on a CPU under TensorFlow.
    folded.jit_compile = keras.backend.backend() == "jax"
    return folded


def fold_normalization(model: keras.Model) -> keras.Model:
    """Return the same function with each batch normalisation as weights and bias of the convolution before it.

    Trained, a normalisation multiplies each feature map by a number and adds another one, which the convolution can do
    by itself, in one pass over memory less. The results agree to within rounding.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018, section 3.2.

    Parameters
    ----------
    model
        A functional model; it stays as it is. A normalisation is kept where it follows anything but a linear
        convolution that nothing else reads, or where it lacks gamma or beta.
    """

    def folds(norm: keras.Layer, before: Any) -> bool:
        is_linear = isinstance(before, layers.Conv2D) and before.activation is keras.activations.linear
        return is_linear and len(before._outbound_nodes) == 1 and norm.scale and norm.center

    norms = {
        before.name: norm
        for norm in model.layers
        if isinstance(norm, layers.BatchNormalization) and folds(norm, before := norm.input._keras_history.operation)
    }
    folded = {norm.name for norm in norms.values()}

    def copy(layer: keras.Layer) -> keras.Layer:
        bias = {"use_bias": True} if layer.name in norms else {}
        return type(layer).from_config(layer.get_config() | bias)

    def call(layer: keras.Layer, x: Any, *further: Any, **options: Any) -> Any:
        return x if layer.name in folded else layer(x, *further, **options)

    copied = keras.models.clone_model(model, clone_function=copy, call_function=call)
    for layer in model.layers:
        weights = layer.get_weights()
        if norm := norms.get(layer.name):
            gamma, beta, mean, variance = norm.get_weights()
            factor = gamma / np.sqrt(variance + norm.epsilon)
            kernel, bias = (*weights, 0.0)[:2]
            weights = [kernel * factor, (bias - mean) * factor + beta]
        if weights and layer.name not in folded:
            copied.get_layer(layer.name).set_weights(weights)
    return copied


def _unlike(model: keras.Model, settings: Settings) -> str | None:
    """Return what a network is where it is not one from slices with neighbours to logits for every pixel."""
    if not isinstance(model, keras.Model) or isinstance(model, keras.Sequential):
        return f"a network of the class {type(model).__name__}"
    channels, side = 2 * settings.context + 1, settings.divisor * math.ceil(settings.tile / settings.divisor)
    shapes = model.input_shape, model.output_shape
    if shapes != ((None, None, None, channels), (None, None, None, settings.outputs)):
        return f"a network from {shapes[0]} to {shapes[1]}"
    try:
        shape = model.compute_output_shape((1, side, side, channels))
    except ValueError:  # levels of different sizes meet
        return f"a network that takes no {side} x {side} pixels"
    if shape != (1, side, side, settings.outputs):
        return f"a network that makes {shape[1]} x {shape[2]} pixels of {side} x {side}"
    last = model.output._keras_history.operation
    if settings.contacts and not isinstance(last, layers.Concatenate):
        return f"a network whose logits come from one layer, a {type(last).__name__}"
    last = unet.without_contacts(model).output._keras_history.operation
    activation = getattr(last, "activation", keras.activations.linear)
    return None if activation is keras.activations.linear else f"a network that ends with {activation.__name__}"

"""A model as a package for the BioImage Model Zoo, with which ilastik, deepImageJ, QuPath and others run it.

Source: the model description 0.5 of the zoo, https://github.com/bioimage-io/spec-bioimage-io; the keys below are its.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from bioimageio.spec import (
    InvalidDescr,
    ModelDescr,
    ValidationContext,
    build_description,
    save_bioimageio_package_as_folder,
)
from PIL import Image

from mitoflow import __version__
from mitoflow.apps import onnx_export
from mitoflow.apps.onnx_export import IMAGE, OPSET, PROBABILITY, Parity
from mitoflow.core import files
from mitoflow.data import network_input
from mitoflow.errors import InputError
from mitoflow.evaluation import figures, metrics
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference.settings import Settings
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.models import unet
from mitoflow.tracking import pretrained

README = Path(__file__).with_name("modelzoo.md")

UNET = {
    "text": "O. Ronneberger, P. Fischer and T. Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, "
    "MICCAI 2015",
    "doi": "10.1007/978-3-319-24574-4_28",
}
#: What to cite besides, by the data that a model learned from.
DATA = {
    "epfl": {
        "text": "A. Lucchi, K. Smith, R. Achanta, G. Knott and P. Fua, Supervoxel-Based Segmentation of Mitochondria "
        "in EM Image Stacks with Learned Shape Features, IEEE TMI 31(2), 2012",
        "doi": "10.1109/TMI.2011.2171705",
    }
}


def write_package(folder: Path, model: TrainedModel, authors: Sequence[str], licence: str) -> Parity:
    """Write a package: the network as Keras and as ONNX, images to test it with, a cover and its documentation.

    All pictures and test images are drawn, none is acquired, so that no terms but those of the weights bind it.

    Parameters
    ----------
    folder
        What is there is replaced, once the package is whole and the zoo's own validation has passed it.
    model
        The model.
    authors
        Who trained it.
    licence
        Of the weights; an identifier of SPDX, https://spdx.org/licenses/.

    Raises
    ------
    InputError
        Like `mitoflow.apps.onnx_export.export_onnx`, and where the zoo does not take an author or the licence.
    """
    settings = model.predictor.settings
    network = onnx_export.plain(model.keras_predictor.model)
    images = onnx_export.phantom_slice(settings)
    probability = np.asarray(network.predict_on_batch(network_input.to_unit(images, settings.bit_depth)))
    with files.replacing(folder) as beside:
        beside.mkdir()
        unet.save_model(network, beside / "unet.keras")
        onnx_export.write_onnx(beside / "unet.onnx", network, settings)
        parity = onnx_export.compare(beside / "unet.onnx", network, model.keras_predictor, images)
        np.save(beside / "test_image.npy", images if settings.normalization == "range" else images.astype(np.float32))
        np.save(beside / "test_probability.npy", probability)
        draw_cover(beside / "phantom.png", images[0, ..., settings.context], probability[0, ..., 0], settings)
        document(beside / "README.md", model, settings, network.count_params(), parity)
        pictures = _copy_pictures(model, beside)
        content = describe(model, settings, network.count_params(), authors, licence)
        description = build_description(
            {**content, "attachments": [{"source": name} for name in pictures]},
            context=ValidationContext(root=beside),
        )
        if isinstance(description, InvalidDescr):
            remedy = "change --author or --licence"
            raise InputError(folder, description.get_reason(), "what the BioImage Model Zoo takes", remedy)
        save_bioimageio_package_as_folder(description, output_path=beside)
    return parity


def describe(
    model: TrainedModel, settings: Settings, parameters: int, authors: Sequence[str], licence: str
) -> dict[str, Any]:
    """Return the description of a package, as YAML holds it; see `write_package`."""
    sets = model.origin.get("params.data.name", "").split("+")
    return {
        "type": "model",
        "format_version": ModelDescr.implemented_format_version,
        "name": re.sub(r"[^\w+() -]+", " ", f"Mitochondria in EM slices ({model.name})", flags=re.ASCII),
        "description": "Marks mitochondria in slices of electron-microscopy stacks: a U-Net that sees a slice "
        f"{'with its neighbours ' if settings.context else ''}and returns a probability for each of its pixels.",
        "version": __version__,
        "authors": [{"name": author} for author in authors],
        "license": licence,
        "cite": [UNET, *(DATA[name] for name in sets if name in DATA)],
        "tags": [
            *("electron-microscopy", "mitochondria", "segmentation", "semantic-segmentation", "unet", "2d"),
            *("tensorflow", "keras", "onnx", "mitoflow"),
        ],
        "covers": [{"source": "phantom.png"}],
        "documentation": {"source": "README.md"},
        "inputs": [_describe_image(settings)],
        "outputs": [_describe_probability(settings)],
        "weights": {
            "keras_v3": {
                "source": "unet.keras",
                "keras_version": version("keras"),
                "backend": ["tensorflow", version("tensorflow")],
                "comment": "The trained network in float32, with layers of Keras only.",
            },
            "onnx": {"source": "unet.onnx", "opset_version": OPSET, "parent": "keras_v3"},
        },
        "config": {
            "bioimageio": {
                "architecture_type": "2D U-Net",
                "modality": "electron microscopy",
                "target_structure": ["mitochondria"],
                "task": "segmentation",
                "model_parameter_count": parameters,
            },
            "mitoflow": {"settings": dataclasses.asdict(settings), "origin": dict(model.origin)},
        },
    }


def _describe_image(settings: Settings) -> dict[str, Any]:
    top = (1 << settings.bit_depth) - 1
    is_range = settings.normalization == "range"
    stored = {"type": "uint8" if settings.bit_depth == 8 else "uint16", "range": [0, top]}
    size = {"min": onnx_export.smallest_side(settings), "step": settings.divisor}
    return {
        "id": IMAGE,
        "description": "grey values of a slice and its neighbours" if settings.context else "grey values",
        "axes": [
            {"type": "batch"},
            {"type": "space", "id": "y", "size": size},
            {"type": "space", "id": "x", "size": size},
            {
                "type": "channel",
                "channel_names": channel_names(settings),
                "description": "slices by ascending z; the first or last one stands in for one past the end",
            },
        ],
        "data": stored if is_range else {"type": "float32"},
        "preprocessing": [
            {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
            *([{"id": "scale_linear", "kwargs": {"gain": 1 / top}}] if is_range else _describe_percentiles()),
            {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
        ],
        "test_tensor": {"source": "test_image.npy"},
    }


def _describe_percentiles() -> list[dict[str, Any]]:
    """Return the stretch of each slice between two percentiles as the zoo has it: constant areas are not left out."""
    low, high = network_input.PERCENTILES
    kwargs = {"axes": ["y", "x"], "min_percentile": low, "max_percentile": high}
    return [{"id": "scale_range", "kwargs": kwargs}, {"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}}]


def _describe_probability(settings: Settings) -> dict[str, Any]:
    halo = {"halo": settings.overlap // 2} if settings.overlap else {}
    return {
        "id": PROBABILITY,
        "description": f"probability of mitochondrion; from {settings.threshold:.3f} on a pixel counts as one",
        "axes": [
            {"type": "batch"},
            {"type": "space", "id": "y", "size": {"tensor_id": IMAGE, "axis_id": "y"}, **halo},
            {"type": "space", "id": "x", "size": {"tensor_id": IMAGE, "axis_id": "x"}, **halo},
            {"type": "channel", "channel_names": ["mitochondrion"]},
        ],
        "data": {"type": "float32", "range": [0, 1]},
        "test_tensor": {"source": "test_probability.npy"},
    }


def channel_names(settings: Settings) -> list[str]:
    """Return what each channel of the input holds, such as ``z-1``, ``z`` and ``z+1``, or copies of ``z``."""
    near, step = range(-settings.context, settings.context + 1), settings.context_step
    return [(f"z{i * step:+d}" if step else f"z, copy {i + settings.context}") if i else "z" for i in near]


def document(path: Path, model: TrainedModel, settings: Settings, parameters: int, parity: Parity) -> None:
    """Write how to use the package, and the model card or, where the model has none, what is known of it."""
    found = pretrained.card(model)
    card = found.read_text(encoding="utf-8") if found else None
    pages = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = pages.from_string(README.read_text(encoding="utf-8")).render(
        model=model,
        settings=settings,
        channels=channel_names(settings),
        parameters=parameters,
        parity=parity,
        measured=Evaluation.of(model),
        scores=metrics.SCORES,
        card=card and re.sub("^#", "##", card, flags=re.MULTILINE),  # its headings below those of the page
    )
    path.write_text(text, encoding="utf-8")


def draw_cover(path: Path, image: np.ndarray, probability: np.ndarray, settings: Settings) -> None:
    """Draw a slice (Y, X) beside itself with its mitochondria tinted: twice as wide as high, as the zoo asks.

    ``image`` is uint8 or uint16, ``probability`` float32 in [0, 1].
    """
    grey = np.round(255 * network_input.to_unit(image, settings.bit_depth))[..., np.newaxis].repeat(3, axis=2)
    marked = (probability >= settings.threshold)[..., np.newaxis]
    tinted = np.where(marked, (grey + figures.MASK[0][:3]) / 2, grey)
    Image.fromarray(np.hstack([grey, tinted]).astype(np.uint8)).save(path, optimize=True)


def _copy_pictures(model: TrainedModel, folder: Path) -> list[str]:
    """Copy the pictures that the model card shows, and return their names."""
    card = pretrained.card(model)
    pictures = sorted(card.parent.glob("*.png")) if card else []
    for picture in pictures:
        shutil.copy(picture, folder)
    return [picture.name for picture in pictures]

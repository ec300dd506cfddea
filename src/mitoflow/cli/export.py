"""``mitoflow export``: a model in the formats of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mitoflow.cli._click import model_option
from mitoflow.cli._output import echo, shell_word
from mitoflow.errors import InputError

if TYPE_CHECKING:
    from mitoflow.apps.onnx_export import Parity


@click.command()
@click.option("--onnx", type=click.Path(path_type=Path), metavar="FILE", help="Write the network as ONNX.")
@click.option(
    "--bioimageio",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a package for the BioImage Model Zoo: ONNX, Keras, test images, documentation.",
)
@model_option
@click.option("--author", "authors", multiple=True, metavar="NAME", help="Who trained it; for the package.")
@click.option("--licence", default="MIT", show_default=True, metavar="SPDX", help="Of the weights; for the package.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier export wrote there.")
def export(
    onnx: Path | None, bioimageio: Path | None, wanted: str, authors: Sequence[str], licence: str, overwrite: bool
) -> None:
    """Write a model for other programs: ilastik, deepImageJ, QuPath.

    The model is the champion, or the pretrained one where no champion was trained on real tissue. They get the network
    alone, in float32; what `predict` does besides is left to them.
    """
    if not (onnx or bioimageio):
        raise click.UsageError("nothing to write: give --onnx FILE, --bioimageio DIR or both")
    for target, earlier in ((onnx, onnx), (bioimageio, bioimageio and bioimageio / "rdf.yaml")):
        if target and earlier and target.exists() and not (overwrite and earlier.is_file()):
            remedy = "take another name; --overwrite replaces an earlier export, and nothing else"
            raise InputError(target, "something that exists", "a new name", remedy)
    try:
        from mitoflow.apps import bioimageio_export, onnx_export
        from mitoflow.tracking import model_lookup
    except ModuleNotFoundError as error:
        remedy = "install them: `pip install -e .[export]`"
        raise InputError("mitoflow export", f"no {error.name}", "the libraries that it needs", remedy) from None
    model = model_lookup.find(wanted)
    if onnx:
        parity = onnx_export.export_onnx(onnx, model.keras_predictor)
        _report(onnx, model.name, parity)
    if bioimageio:
        parity = bioimageio_export.write_package(bioimageio, model, authors or ("The mitoflow authors",), licence)
        _report(bioimageio, model.name, parity)
        echo(f"next: KERAS_BACKEND=tensorflow bioimageio test {shell_word(bioimageio)}")


def _report(target: Path, model: str, parity: Parity) -> None:
    figures = f"{parity.converted:.1g} from Keras in float32 and by {parity.trained:.1g} from the model as trained"
    echo(f"{target}: {model}; probabilities on a drawn slice differ by at most {figures}")

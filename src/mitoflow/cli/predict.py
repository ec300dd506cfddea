"""Commands for masks: predict one, measure, compare and score them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from mitoflow.cli._click import instance_options, model_option
from mitoflow.cli._output import echo, print_table, shell_word
from mitoflow.errors import InputError


def _read_rescale(context: click.Context, option: click.Parameter, value: str) -> str | float:
    if value in ("auto", "none", "training"):
        return value
    try:
        return float(value)
    except ValueError:
        raise InputError("--rescale", value, "auto, none, training or a ratio such as 0.5", "give one") from None


rescale_option = click.option(
    "--rescale",
    metavar="auto|none|training|RATIO",
    default="auto",
    show_default=True,
    callback=_read_rescale,
    help="auto finds the best scale, none leaves slices as they are, training gives them the pixel size of training, "
    "and RATIO resizes them along y and x.",
)


@click.command()
@click.argument("source", metavar="INPUT")
@click.argument("output", type=click.Path(path_type=Path))
@model_option
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="In place of the model's.")
@click.option("--tta", is_flag=True, help="Average over all symmetries of a tile: better, and up to 8 times as long.")
@click.option("--probability", is_flag=True, help="Write OUTPUT_probability too, float32 in [0, 1].")
@click.option("--instances", is_flag=True, help="Write OUTPUT_instances too: each mitochondrion with its own label.")
@click.option("--table", type=click.Path(path_type=Path), metavar="FILE", help="Measure each mitochondrion: CSV.")
@instance_options
@click.option("--overlay", type=click.Path(path_type=Path), metavar="FILE", help="Draw contours on a few slices: PNG.")
@click.option("--roi", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Predict this part alone.")
@rescale_option
@click.option(
    "--neighbours",
    type=click.Choice(["auto", "none", "all"]),
    default="auto",
    show_default=True,
    help="Neighbouring slices: by how far apart they are, none, or as in training.",
)
@click.option("--voxel-size", metavar="Z,Y,X", help="Nanometres, in place of what INPUT says.")
@click.option("--fill-missing", is_flag=True, help="Take missing chunks of a Zarr, N5 or HDF5 for empty ones.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Predict with N processes of this machine.")
@click.option("--dask", metavar="ADDRESS", help="Predict on the workers of a Dask scheduler, such as tcp://host:8786.")
def predict(source: str, output: Path, voxel_size: str | None, wanted: str | None, **options: Any) -> None:
    """Write the mask of a stack, or of each image in a folder.

    INPUT is a TIFF of one page or many, an MRC, a DM3 or DM4, a dataset of an HDF5 (FILE.h5/NAME), a folder or quoted
    glob of slices, an OME-Zarr or an N5; OUTPUT ends with .tif, .ome.tif or .ome.zarr. Where OUTPUT is a folder, each
    file of INPUT is predicted by itself: files that are done are skipped, and summary.csv lists all. The model is the
    champion, or the pretrained one where no champion was trained on real tissue. A command that was interrupted resumes
    when it is given again.
    """
    from mitoflow.config import params
    from mitoflow.inference import collection, prediction
    from mitoflow.inference.request import Request
    from mitoflow.io import spacing
    from mitoflow.tracking import model_lookup

    known = spacing.parse(voxel_size) if voxel_size else None
    criteria = params.load_instances({key: options.pop(key) for key in params.Instances.model_fields})
    request = Request(source, output, spacing=known, criteria=criteria, **options)
    model = model_lookup.find(wanted)

    def notify(line: str) -> None:
        echo(line, err=True)

    if collection.is_folder(output):
        outcomes = collection.predict_each(request, model, notify)
        if lost := sum(bool(each.error) for each in outcomes):
            found, summary = f"{lost} of {len(outcomes)} files without a mask", output / collection.SUMMARY
            raise InputError(output, found, "a mask for each", f"{summary} says why; give the command again for these")
        echo(f"{output}: masks of {len(outcomes)} files by {model.name}; {output / collection.SUMMARY} lists them")
        return
    prediction.predict(request, model, notify)
    echo(f"{output}: mask by {model.name}; its origin: `mitoflow lineage {shell_word(output)}`")


@click.command()
@click.argument("source", metavar="INPUT")
@click.argument("output", type=click.Path(path_type=Path), required=False)
@click.option(
    "-n", "--boxes", "count", type=click.IntRange(min=1), default=4, show_default=True, help="How many boxes."
)
@model_option
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="In place of the model's.")
@rescale_option
@click.option("--voxel-size", metavar="Z,Y,X", help="Nanometres, in place of what INPUT says.")
@click.option("--fill-missing", is_flag=True, help="Take missing chunks of a Zarr, N5 or HDF5 for empty ones.")
def suggest(
    source: str, output: Path | None, count: int, wanted: str | None, voxel_size: str | None, **options: Any
) -> None:
    """Name the boxes of a stack to label next.

    INPUT is as in `predict`. These are the boxes on which the model disagrees most with itself when their images are
    turned and mirrored, spread over the stack. The folder OUTPUT, NAME_suggested without it, gets their images and
    their predicted masks, to be corrected and given to `mitoflow data add`, and a picture.
    """
    from mitoflow.inference import correction
    from mitoflow.inference.request import Request
    from mitoflow.io import spacing
    from mitoflow.tracking import model_lookup

    known = spacing.parse(voxel_size) if voxel_size else None
    folder = output or Path(f"{correction.stem_of(source)}_suggested")
    request = Request(source, folder, spacing=known, **options)
    model = model_lookup.find(wanted)
    boxes = correction.suggest(request, count, model, lambda line: echo(line, err=True))
    rows = [
        [str(number), str(box.slice), f"{box.y0}:{box.y1}", f"{box.x0}:{box.x1}", f"{box.disagreement:.4f}", box.file]
        for number, box in enumerate(boxes, start=1)
    ]
    print_table(["box", "slice", "y", "x", "disagreement", "file"], rows)
    shown, images, masks = (
        shell_word(folder / name) for name in (correction.PICTURE, correction.IMAGES, correction.MASKS)
    )
    echo(f"{shown}: the boxes with the contours by {model.name}, and where it disagrees with itself")
    echo(f"next: correct {masks}, then mitoflow data add --name NAME --images {images} --masks {masks} --unrelated")


@click.command()
@click.argument("labels")
@click.option("--image", metavar="FILE", help="The image: adds grey values, and the voxel size where LABELS has none.")
@click.option("--regions", metavar="FILE", help="Labels of regions, such as cells: adds a table with a row for each.")
@click.option("--table", type=click.Path(path_type=Path), metavar="FILE", help="CSV, in place of LABELS.csv.")
@click.option("--voxel-size", metavar="Z,Y,X", help="Nanometres, in place of what the files say.")
@instance_options
@click.option("--overwrite", is_flag=True, help="Replace tables that exist.")
def measure(labels: str, table: Path | None, voxel_size: str | None, **options: Any) -> None:
    """Measure the mitochondria of any mask or labels.

    LABELS is a TIFF, an MRC, a DM3 or DM4, a dataset of an HDF5 (FILE.h5/NAME), an OME-Zarr or N5, or a folder or
    quoted glob of slices. Each value besides 0 is a mitochondrion; where there is one value only, touching mitochondria
    are separated at their necks. Sums over the stack go to a table that ends with _totals.csv.
    """
    from mitoflow.config import params
    from mitoflow.evaluation import measuring
    from mitoflow.io import spacing

    criteria = params.load_instances({key: options.pop(key) for key in params.Instances.model_fields})
    measured = measuring.measure_file(
        labels,
        written := table or measuring.table_of(labels),
        criteria=criteria,
        spacing=spacing.parse(voxel_size) if voxel_size else None,
        notify=lambda line: echo(line, err=True),
        **options,
    )
    echo(f"{written}: {measured.summary}")


@click.command()
@click.argument("sheet", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace what an earlier comparison wrote there.")
def groups(sheet: Path, output: Path, overwrite: bool) -> None:
    """Compare conditions by tables of mitochondria.

    SHEET is a CSV with the columns table, condition and animal: a table that `predict` or `measure` wrote, and whose it
    is; animal is what was sampled independently, such as an animal or a cell. The folder OUTPUT gets one table of all
    mitochondria, one of all animals, the differences from the first condition with 95 % intervals, and a figure.
    """
    from mitoflow.evaluation import groups as comparison

    differences = comparison.compare_groups(sheet, output, overwrite=overwrite)
    rows = [
        [each.measure, each.condition, f"{each.mean:.3g}", f"{each.reference_mean:.3g}", each.interval]
        for each in differences
    ]
    print_table(["measure", "condition", "mean", "reference", "difference"], rows)


@click.command()
@click.argument("prediction")
@click.argument("truth")
@click.option("--voxel-size", metavar="Z,Y,X", help="Nanometres, in place of what the files say.")
@instance_options
def score(prediction: str, truth: str, voxel_size: str | None, **options: float | None) -> None:
    """Compare a mask, or labels, with one that was drawn."""
    from mitoflow.config import params
    from mitoflow.evaluation import scoring
    from mitoflow.io import spacing

    known = spacing.parse(voxel_size) if voxel_size else None
    criteria = params.load_instances(options)
    scores = scoring.score(prediction, truth, criteria, known, lambda line: echo(line, err=True))
    rows = [
        [name, str(value) if isinstance(value, int) else "" if math.isnan(value) else f"{value:.4f}"]
        for name, value in scores.items()
    ]
    print_table([], rows)

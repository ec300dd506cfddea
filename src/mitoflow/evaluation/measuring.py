"""Measure the mitochondria of a mask or of labels in a file, whatever tool wrote it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitoflow.config.params import Instances
from mitoflow.core.progress import progress_bar
from mitoflow.data.masks import NOT_LOOKED_AT
from mitoflow.errors import InputError
from mitoflow.inference.outputs import refuse_existing
from mitoflow.inference.request import beside, refuse_foreign
from mitoflow.instances.label_files import Labelled, is_mask, read_labels, read_mitochondria
from mitoflow.instances.labelling import label_instances, measure_labels
from mitoflow.instances.morphometry import Measurements
from mitoflow.instances.separation import fewest_voxels
from mitoflow.io import hdf5, n5, remote, volumes
from mitoflow.io.blocks import full_box
from mitoflow.io.spacing import (
    Spacing,
    as_warnings,
    known_voxel_size,
    name_unknown,
    replace_stated,
    warn_of_other_size,
)

NEEDED = "give --voxel-size, or --image with an image that states it"


def measure_file(
    source: str,
    table: Path,
    *,
    criteria: Instances,
    image: str | None = None,
    regions: str | None = None,
    spacing: Spacing | None = None,
    overwrite: bool = False,
    notify: Callable[[str], object] = lambda _: None,
) -> Measurements:
    """Measure the mitochondria of a file, and write the tables.

    Where the file has one value besides 0, it is a mask, which is taken apart as `mitoflow predict --instances` does.
    Where it has several, each is the label of a mitochondrion, also where its parts do not touch; labels that are too
    small do not count. If the mask has voxels that nobody looked at (128), only the box that was looked at is measured,
    as if the stack ended there. Files are read into memory.

    Parameters
    ----------
    source
        See `mitoflow.instances.label_files.read_labels`.
    table
        A CSV of the mitochondria; ``TABLE_totals.csv`` is written beside it, and ``TABLE_regions.csv`` with `regions`.
    criteria
        What counts as a mitochondrion.
    image
        The image of the same size: adds the grey values of each mitochondrion, and the voxel size where the labels do
        not state it.
    regions
        Labels of regions of interest of the same size, such as cells.
    spacing
        The voxel size, in place of what the files state.
    overwrite
        Whether tables that mitoflow wrote are replaced.
    notify
        Called with each note for the user, one line each.

    Raises
    ------
    InputError
        A file cannot be read, or has another size than the labels; what was looked at is no box; a table exists, or is
        no CSV, or with `overwrite` mitoflow did not write it.
    """
    totals, of_regions = (beside(table, what) for what in ("totals", "regions"))
    _require_free([table, totals, *([of_regions] if regions else [])], overwrite=overwrite)
    labelled = read_mitochondria(source, notify)
    voxels, stated = labelled.voxels, labelled.spacing
    grey = None
    if image is not None:
        grey, of_image = _read_image(image, notify if spacing is None else lambda _: None)
        _require_shape(image, grey, source, voxels)
        if not spacing:
            warn_of_other_size(of_image, image, stated, source, as_warnings(notify))
        stated = {**of_image, **stated}
    areas = None
    if regions is not None:
        areas, _ = read_labels(regions, notify)
        _require_shape(regions, areas, source, voxels)
    box = _require_box(labelled, source, notify)
    voxels, grey, areas = voxels[box], None if grey is None else grey[box], None if areas is None else areas[box]
    known = replace_stated(stated, spacing, source, notify)
    voxel_size = known_voxel_size(known, len(voxels))
    if voxel_size is None:
        notify(f"note: {source}: {name_unknown(known)} is unknown, so sizes are in voxels alone; {NEEDED}")
    coarse: list[int] = []
    fewest = fewest_voxels(criteria, voxels.shape, voxel_size)
    if is_mask(voxels):
        labels = np.zeros(voxels.shape, np.uint32)
        coarse = label_instances(voxels, labels, criteria, known, lambda _: None)
        voxels, fewest = labels, 0
    with progress_bar(desc="measure", unit="mitochondrion") as bar:
        measured = measure_labels(
            voxels, known, coarse=coarse, fewest=fewest, image=grey, regions=areas, advance=bar.update
        )
    if measured.left_out:
        limit = f"below {fewest} voxels: left out; --smallest-um3 0 and --smallest-voxels 0 keep all"
        notify(f"note: {source}: labels {limit} ({measured.left_out})")
    measured.write(table)
    measured.write_totals(totals)
    if areas is not None:
        measured.write_regions(of_regions)
    return measured


def _require_free(tables: Sequence[Path], *, overwrite: bool) -> None:
    """Raise `InputError` where the first of the tables is no CSV in a folder, or one of them may not be written."""
    table = tables[0]
    if table.suffix.lower() != ".csv":
        raise InputError("--table", table, "a name that ends with .csv", "choose such a name")
    if not table.parent.is_dir():
        raise InputError(table, "no such folder", "a place to write to", "make the folder first")
    if overwrite:
        refuse_foreign(tables)
    else:
        refuse_existing(table, tables)


def _require_box(labelled: Labelled, source: str, notify: Callable[[str], object]) -> tuple[slice, ...]:
    """Return the box that was looked at, which is all where nothing says otherwise; raises `InputError` for no box.

    Mitochondria between parts that nobody looked at are of unknown number and size.
    """
    box = full_box(labelled.looked_at)
    if box is None:
        found = f"{NOT_LOOKED_AT}, which nobody looked at, between parts that were looked at"
        remedy = "correct all slices, or cut out one of these parts"
        raise InputError(source, found, "a stack, or a box in it, where all was looked at", remedy)
    if not labelled.looked_at.all():
        place = ", ".join(f"{axis} {part.start}:{part.stop}" for axis, part in zip("zyx", box, strict=True))
        notify(f"note: {source}: the box that was looked at is measured ({place}), and places count from its corner")
    return box


def table_of(source: str) -> Path:
    """Return the name of the table of a file: ``cell.csv`` for ``cell.ome.zarr``, beside it."""
    path, _ = hdf5.split(Path(source)) or n5.split(Path(source)) or (Path(source), "")
    if (path.is_dir() and not volumes.is_chunked(path)) or set(source) & set("*?[") or remote.is_url(source):
        expected = "a name for the table of several files or of one on a server"
        raise InputError("--table", "no name", expected, "give --table NAME.csv")
    return path.with_name(f"{path.name.removesuffix(path.suffix).removesuffix('.ome')}.csv")


def _read_image(source: str, notify: Callable[[str], object]) -> tuple[NDArray[Any], Spacing]:
    volume = volumes.open_volume(source, notify=notify)
    whole = (0, volume.shape[1], 0, volume.shape[2])
    return np.stack([volume.read(z, whole) for z in range(volume.shape[0])]), volume.spacing


def _require_shape(path: str, found: NDArray[Any], source: str, labels: NDArray[Any]) -> None:
    if found.shape != labels.shape:
        sizes = [" x ".join(map(str, each.shape)) for each in (found, labels)]
        raise InputError(path, f"{sizes[0]} voxels", f"{sizes[1]}, as in {source}", "name the file of this stack")

"""The napari writer: corrected labels keep their voxel size and their lineage; `napari.yaml` declares it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import napari
import numpy as np

from mitoflow.apps.correction_record import with_correction
from mitoflow.core import files
from mitoflow.errors import InputError
from mitoflow.inference.jobs import DEPTH
from mitoflow.inference.request import refuse_foreign
from mitoflow.io import ome
from mitoflow.io.spacing import Spacing


def write_labels(path: str, data: Any, attributes: Mapping[str, Any]) -> list[str]:
    """Save a labels layer as `mitoflow predict` saves a mask, and return the file.

    The scale of the layer is the voxel size where its units are lengths. The lineage is that of the mask that was
    opened, with this correction: see `mitoflow.apps.correction_record`.

    Parameters
    ----------
    path
        A TIFF or an OME-Zarr by its ending, a TIFF without one; an earlier output of mitoflow is replaced.
    data
        ``(Y, X)`` or ``(Z, Y, X)`` integers of 0 to 2**32 - 1, or a pyramid of them.
    attributes
        Those of the layer, by napari's names.

    Raises
    ------
    InputError
        The layer has other axes or values, the name has another ending, or mitoflow did not write what is there.
    """
    target = Path(path) if Path(path).suffix else Path(f"{path}.tif")
    if not (ome.is_tiff(target) or ome.is_zarr(target)):
        expected = "a name that ends with .tif, .ome.tif or .ome.zarr"
        raise InputError(target, f"the ending {target.suffix}", expected, "choose such a name")
    refuse_foreign([target], keep_corrections=False)  # napari has asked, and corrections are saved again and again
    voxels = _stored(data[0] if attributes["multiscale"] else data, attributes["name"])
    axes, scale = "zyx"[-voxels.ndim :], attributes["scale"]
    description = ome.Description(
        axes,
        voxel_size(scale, attributes["units"]),
        tuple(start / side for start, side in zip(attributes["translate"], scale, strict=True)),
        with_correction(attributes["metadata"].get(ome.LINEAGE, {}), f"in napari {napari.__version__}"),
    )
    with files.replacing(target) as beside:
        if ome.is_tiff(target):
            ome.write_tiff(beside, voxels, description)
        else:
            ome.create_multiscale(beside, voxels.shape, voxels.dtype, DEPTH)[:] = voxels
            ome.finish_multiscale(beside, description)
    return [str(target)]


def voxel_size(scale: Sequence[float], units: Sequence[Any]) -> Spacing:
    """Return nanometres of a voxel along the axes of which a layer, (Y, X) or (Z, Y, X), has units of length."""
    return {
        axis: float((side * unit).to("nanometer").magnitude)
        for axis, side, unit in zip("zyx"[-len(scale) :], scale, units, strict=True)
        if unit.is_compatible_with("nanometer")
    }


def _stored(data: Any, name: str) -> np.ndarray:
    """Return the voxels of a layer with a type of which mitoflow writes files."""
    if data.ndim not in (2, 3):
        found = f"a layer of shape {tuple(data.shape)}"
        raise InputError(name, found, "labels of axes (Y, X) or (Z, Y, X)", "select another layer")
    voxels = np.asarray(data)
    if voxels.dtype in (np.uint8, np.uint16, np.uint32):
        return voxels
    low, high = int(voxels.min()), int(voxels.max())
    if low < 0 or high >= 2**32:
        raise InputError(name, f"labels from {low} to {high}", "labels from 0 to 4294967295", "give them other numbers")
    return voxels.astype(np.uint32)

"""The napari reader: stacks open at their scale, and outputs of mitoflow as labels; `napari.yaml` declares it."""

from collections.abc import Callable
from typing import Any

import dask.array
import numpy as np
from napari.types import LayerDataTuple
from napari_builtins.io import napari_get_reader

from mitoflow.errors import InputError
from mitoflow.io import n5, ome, remote, volumes

ReadLayers = Callable[[Any], list[LayerDataTuple]]


def reader(path: str | list[str]) -> ReadLayers | None:
    """Return the function that reads a file; that of napari where it is no stack that mitoflow reads."""
    if isinstance(path, str):
        try:
            volumes.open_volume(path)
        except InputError:
            pass
        else:
            return lambda chosen: [read(str(chosen))]
    found: ReadLayers | None = napari_get_reader(path)
    return found


def _as_dask(image: n5.N5Image) -> dask.array.Array:
    """Return an N5 as an array of which a block is read when it is looked at."""

    def read_block(block_info: dict[Any, Any]) -> np.ndarray:
        return image.read(tuple(slice(*bounds) for bounds in block_info[None]["array-location"]))

    shape, dtype = image.array.shape, image.array.dtype
    chunks = dask.array.core.normalize_chunks(image.array.chunks, shape)
    return dask.array.map_blocks(read_block, chunks=chunks, dtype=dtype, meta=np.empty((0,) * len(shape), dtype))


def read(path: str) -> LayerDataTuple:
    """Return a stack as a layer, with its scale in nanometres along the axes of which the voxel size is known.

    Masks and instances of `mitoflow predict` become labels, which can be painted: their voxels are in memory, (Y, X) or
    (Z, Y, X) with the values of the file. What else is in a Zarr or N5, also on a server, stays there until it is
    looked at.

    Raises
    ------
    InputError
        The stack cannot be read.
    """
    volume, file = volumes.open_volume(path), remote.locate(path)
    lineage = ome.read_lineage(file) if ome.has_lineage(file) else {}
    kind = "labels" if ome.are_labels(lineage, volume.dtype) else "image"
    image = volumes.open_folder(file) if isinstance(volume, volumes.FolderVolume) else None
    if kind == "image" and image and volume.axes == image.axes:
        voxels: Any = image.array
        if isinstance(image, n5.N5Image):
            voxels = _as_dask(image)
    else:
        whole = (0, volume.shape[1], 0, volume.shape[2])
        voxels = np.stack([volume.read(z, whole) for z in range(volume.shape[0])])
        voxels = voxels if volume.axes == "zyx" else voxels[0]
    scale = [volume.spacing.get(axis, 1.0) for axis in volume.axes]
    attributes = {
        "name": file.name.partition(".")[0],
        "scale": scale,
        "translate": [start * side for start, side in zip(volume.origin, scale, strict=True)],
        "units": ["nanometer" if axis in volume.spacing else "pixel" for axis in volume.axes],
        "metadata": {ome.LINEAGE: lineage} if lineage else {},
    }
    return voxels, attributes, kind

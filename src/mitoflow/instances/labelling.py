"""The instances of a whole image: labelled and measured block by block, whatever array holds them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import zarr

from mitoflow.config.params import Instances
from mitoflow.instances import morphometry
from mitoflow.instances.morphometry import Measurements
from mitoflow.instances.separation import Separation
from mitoflow.io import ome
from mitoflow.io.blocks import Region, Shape, shape_of
from mitoflow.io.spacing import Spacing, known_voxel_size

BLOCK: Shape = (32, ome.CHUNK, ome.CHUNK)  # voxels of a block in which instances are labelled
Voxels = zarr.Array[Any] | np.ndarray


def label_instances(
    mask: Voxels,
    labels: Voxels,
    criteria: Instances,
    spacing: Spacing,
    advance: Callable[[int], object],
    contacts: Voxels | None = None,
) -> list[int]:
    """Give each mitochondrion of a mask a label, block by block.

    Parameters
    ----------
    mask
        (Z, Y, X) or (Y, X), 0 for background.
    labels
        Of the same shape; they are written here. See `mitoflow.instances.separation.Separation.write`.
    criteria
        Smallest size and neck.
    spacing
        See `mitoflow.io.spacing.Spacing`; without one of the axes, voxels are counted.
    advance
        Called with the number of voxels that were just labelled.
    contacts
        Of the same shape, 0 but where two mitochondria touch; None where that is not known.

    Returns
    -------
    coarse
        The labels of those that were separated on a coarser grid.
    """

    def write(region: Region, named: np.ndarray) -> None:
        labels[region[-labels.ndim :]] = named.reshape(named.shape[-labels.ndim :])
        advance(named.size)

    shape = _shape(mask)
    voxel_size = known_voxel_size(spacing, shape[0])
    separation = Separation(
        lambda region: _read(mask, region) > 0,
        shape,
        criteria=criteria,
        voxel_size=voxel_size,
        block=BLOCK,
        contacts=None if contacts is None else lambda region: _read(contacts, region) > 0,
    )
    return separation.write(write)


def measure_labels(
    labels: Voxels,
    spacing: Spacing,
    *,
    coarse: Collection[int] = (),
    fewest: int = 0,
    image: Voxels | None = None,
    regions: Voxels | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Measurements:
    """Measure the mitochondria of labels, (Z, Y, X) or (Y, X); see `mitoflow.instances.morphometry.measure`.

    ``image`` and ``regions`` have the shape of ``labels``.
    """
    shape = _shape(labels)
    return morphometry.measure(
        lambda region: _read(labels, region),
        shape,
        voxel_size=known_voxel_size(spacing, shape[0]),
        coarse=coarse,
        fewest=fewest,
        read_image=None if image is None else lambda region: _read(image, region),
        read_regions=None if regions is None else lambda region: _read(regions, region),
        block=BLOCK,
        advance=advance,
    )


def _shape(array: Voxels) -> Shape:
    z, y, x = (1, *array.shape)[-3:]
    return z, y, x


def _read(array: Voxels, region: Region) -> np.ndarray:
    return np.asarray(array[region[-array.ndim :]]).reshape(shape_of(region))

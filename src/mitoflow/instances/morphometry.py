"""Each mitochondrion of a labelled volume as a row: how large, of what shape, where; and how many there are.

``docs/table.md`` has the formula, the unit and the source of each column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mitoflow.core.files import write_csv
from mitoflow.instances.boundaries import crofton_lengths, crofton_weights, feret_diameters
from mitoflow.instances.label_sums import LabelSums, Read, Reals, Regions, grey_values
from mitoflow.instances.separation import LARGEST_BOX
from mitoflow.instances.skeletons import Skeleton, measure_skeleton
from mitoflow.io.blocks import BLOCK, Grid, Shape, grown_box, shape_of
from mitoflow.io.spacing import NM2_PER_UM2, NM3_PER_UM3, Size

NM_PER_UM: Final = 1e3

CENTRELINE: Final = ("skeleton_length_um", "branches", "end_points", "diameter_um", "nearest_um")
#: The columns that say how large a mitochondrion is and of what shape: of a volume, and of a single slice.
VOLUME_MEASURES: Final = (
    *("volume_um3", "surface_um2", "sphericity", "elongation", "complexity_index"),
    *CENTRELINE,
)
SLICE_MEASURES: Final = (
    *("area_um2", "perimeter_um", "circularity", "aspect_ratio", "feret_max_um", "feret_min_um"),
    *CENTRELINE,
)
#: Columns by which each table is known: of mitochondria, of the sums over a stack, and of regions.
TABLES: Final = (
    {"label", "touches_border"},
    {"touching_border", "why_blank"},
    {"region", "region_um3"},
    {"region", "region_um2"},
)
LONGEST_HEADER: Final = 10_000  # characters


def is_table(path: Path) -> bool:
    """Return whether a file is one of the tables that `Measurements` writes."""
    try:
        with path.open(encoding="utf-8") as stream:
            names = set(stream.readline(LONGEST_HEADER).strip().split(","))
    except (OSError, ValueError):
        return False
    return any(known <= names for known in TABLES)


@dataclass(frozen=True)
class Measurements:
    """The mitochondria of a volume, in order of their labels.

    Properties that are a column of the table have its name, with the unit, and are ``(n,)`` arrays in which NaN is what
    cannot be known; `why_blank` has the reasons. A mitochondrion that the border of the volume cuts is measured as far
    as it is seen: sizes are those of this part, to which the cut adds no surface, and shapes are NaN.

    Attributes
    ----------
    shape
        ``(Z, Y, X)`` of the volume.
    voxel_size
        (z, y, x) in nm, or None where it is unknown.
    sums
        Their sizes, places and surfaces in voxels.
    skeletons, feret
        The centreline of each and, in a single slice, its Feret diameters ``(n, 2)``, in nm, in voxels where the voxel
        size is unknown; None and NaN where it fills the volume or its bounding box is above `LARGEST_BOX`.
    coarse
        Labels that were separated on a coarser grid, as `mitoflow.instances.separation.Separation.write` returns them.
    grey
        The mean and the standard deviation of their grey values, each (n,), where an image is given.
    regions
        The regions of interest, where they are given.
    left_out
        How many labels are too small to count.
    """

    shape: Shape
    voxel_size: Size | None
    sums: LabelSums
    skeletons: list[Skeleton | None]
    feret: Reals
    coarse: frozenset[int] = frozenset()
    grey: tuple[Reals, Reals] | None = None
    regions: Regions | None = None
    left_out: int = 0

    @property
    def is_slice(self) -> bool:
        """Whether the volume is a single slice, whose mitochondria have areas and no volumes."""
        return self.shape[0] == 1

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of `SLICE_MEASURES` or `VOLUME_MEASURES`."""
        return SLICE_MEASURES if self.is_slice else VOLUME_MEASURES

    @property
    def _size(self) -> Reals:
        return np.array(self.voxel_size or (math.nan,) * 3)

    @property
    def volume_um3(self) -> Reals:
        """Voxels times their volume."""
        volume: Reals = self.sums.voxels * self._size.prod() / NM3_PER_UM3
        return volume

    @cached_property
    def surface_um2(self) -> Reals:
        """By `crofton_weights`."""
        if self.voxel_size is None:
            return np.full(len(self.sums.labels), np.nan)
        surface: Reals = self.sums.crossings @ crofton_weights(self.voxel_size) / NM2_PER_UM2
        return surface

    @property
    def sphericity(self) -> Reals:
        """The surface of a ball of the same volume over the surface (Wadell 1935); 1 for a ball."""
        with np.errstate(divide="ignore"):
            return self._uncut(np.pi ** (1 / 3) * (6 * self.volume_um3) ** (2 / 3) / self.surface_um2)

    @property
    def elongation(self) -> Reals:
        """The longest over the second longest axis of the ellipsoid with the same moments, from 1 on.

        As in the Insight Toolkit (Lehmann 2007, "Label object representation and manipulation with ITK"): a disc is
        not elongated.
        """
        return self._ratio_of_axes([0, 1, 2])

    @property
    def complexity_index(self) -> Reals:
        """The mitochondrial complexity index, surface^3 / (16 pi^2 volume^2); 0.72 for a ball.

        Vincent et al. 2019, "Quantitative 3D mapping of the human skeletal muscle mitochondrial network", Cell Reports
        26.
        """
        return self._uncut(self.surface_um2**3 / (16 * np.pi**2 * self.volume_um3**2))

    @property
    def area_um2(self) -> Reals:
        """Pixels times their area."""
        area: Reals = self.sums.voxels * self._size[1:].prod() / NM2_PER_UM2
        return area

    @cached_property
    def perimeter_um(self) -> Reals:
        """By `crofton_lengths`."""
        if self.voxel_size is None:
            return np.full(len(self.sums.labels), np.nan)
        perimeter: Reals = self.sums.crossings @ crofton_lengths(self.voxel_size[1:]) / NM_PER_UM
        return perimeter

    @property
    def circularity(self) -> Reals:
        """The form factor, 4 pi area / perimeter^2; 1 for a disc."""
        with np.errstate(divide="ignore"):
            return self._uncut(4 * np.pi * self.area_um2 / self.perimeter_um**2)

    @property
    def aspect_ratio(self) -> Reals:
        """The longer over the shorter axis of the ellipse with the same moments, from 1 on."""
        return self._ratio_of_axes([1, 2])

    @property
    def feret_max_um(self) -> Reals:
        """The greatest of the diameters of `feret_diameters`."""
        return self._uncut(self._in_um(self.feret[:, 0]))

    @property
    def feret_min_um(self) -> Reals:
        """The least of the diameters of `feret_diameters`."""
        return self._uncut(self._in_um(self.feret[:, 1]))

    @property
    def skeleton_length_um(self) -> Reals:
        """See `Skeleton`, as the next three."""
        return self._in_um(self._of_skeletons("length"))

    @property
    def branches(self) -> Reals:
        """How many the centreline has."""
        return self._of_skeletons("branches")

    @property
    def end_points(self) -> Reals:
        """How many the centreline has."""
        return self._of_skeletons("ends")

    @property
    def diameter_um(self) -> Reals:
        """The mean along the centreline."""
        return self._in_um(self._of_skeletons("diameter"))

    @cached_property
    def nearest_um(self) -> Reals:
        """The distance from its centroid to the nearest other one; NaN where there is no other."""
        if self.voxel_size is None or len(self.sums.labels) < 2:
            return np.full(len(self.sums.labels), np.nan)
        places = self.sums.centroid * self._size
        distances, _ = cKDTree(places).query(places, k=2)
        return np.asarray(distances)[:, 1] / NM_PER_UM

    def _of_skeletons(self, name: str) -> Reals:
        return np.array([getattr(each, name) if each else math.nan for each in self.skeletons], np.float64)

    def _in_um(self, lengths: Reals) -> Reals:
        """Return lengths in nm as micrometres; without a voxel size they would be of voxels."""
        return np.asarray(lengths / NM_PER_UM if self.voxel_size else lengths * np.nan)

    def _ratio_of_axes(self, axes: list[int]) -> Reals:
        if self.voxel_size is None:
            return np.full(len(self.sums.labels), np.nan)
        size = self._size[axes]
        within_voxels = np.diag(size**2 / 12)  # a voxel is no point: without it a row of voxels would have no width
        covariance = self.sums.covariance[:, axes][:, :, axes]
        squares: Reals = np.linalg.eigvalsh(covariance * np.outer(size, size) + within_voxels)
        return self._uncut(np.sqrt(squares[:, -1] / squares[:, -2]))

    def _uncut(self, values: Reals) -> Reals:
        return np.where(self.touches_border, np.nan, values)

    @property
    def touches_border(self) -> NDArray[np.bool_]:
        """``(n,)``: the border of the volume may cut it. A single slice has no border along z."""
        return self._touches_first() | self._touches_last()

    def _touches_first(self) -> NDArray[np.bool_]:
        touches: NDArray[np.bool_] = ((self.sums.first == 0) & (np.array(self.shape) > 1)).any(1)
        return touches

    def _touches_last(self) -> NDArray[np.bool_]:
        ends = np.array(self.shape) - 1
        touches: NDArray[np.bool_] = ((self.sums.last == ends) & (ends > 0)).any(1)
        return touches

    @property
    def why_blank(self) -> list[str]:
        """Why measures of each are NaN; empty where none is."""
        reasons: list[str] = []
        for cut, skeleton in zip(self.touches_border, self.skeletons, strict=True):
            stated = {
                "voxel size unknown": self.voxel_size is None,
                "cut by the border": cut,
                f"no centreline: above {LARGEST_BOX // 10**6} million voxels, or no background": skeleton is None,
                "no other mitochondrion": len(self.sums.labels) == 1,
            }
            reasons.append("; ".join(reason for reason, holds in stated.items() if holds))
        return reasons

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of the table by name, each (n,): places in voxels from 0 on, and flags 0 or 1."""
        sums, axes = self.sums, "yx" if self.is_slice else "zyx"
        boxes = {"centroid": sums.centroid, "first": sums.first, "last": sums.last}
        grey = dict(zip(("grey_mean", "grey_sd"), self.grey, strict=True)) if self.grey else {}
        return {
            "label": sums.labels,
            **({"region": self.regions.of} if self.regions else {}),
            "area_pixels" if self.is_slice else "volume_voxels": sums.voxels,
            **{name: getattr(self, name) for name in self.measures},
            **grey,
            **({} if self.is_slice else {"slices": sums.last[:, 0] - sums.first[:, 0] + 1}),
            **{f"{what}_{axis}_voxel": at[:, "zyx".index(axis)] for what, at in boxes.items() for axis in axes},
            "touches_border": self.touches_border.astype(int),
            "coarse": np.isin(sums.labels, list(self.coarse)).astype(int),
            "why_blank": self.why_blank,
        }

    @property
    def totals(self) -> dict[str, Any]:
        """Sums over the volume, with units in their names, and why one is NaN.

        The density leaves out what touches the last slice, row or column, and counts what touches the first ones:
        where volumes lie side by side each mitochondrion is in just one of them. To count all of them gives too many,
        the more so the smaller the volume (Howard et al. 1985, "Unbiased estimation of particle density in the tandem
        scanning reflected light microscope", Journal of Microscopy 138). Where there are some and none is left to
        count, the density is NaN: the volume is too small for an estimate.
        """
        number, counted = len(self.sums.labels), int((~self._touches_last()).sum())
        size, reasons = self._extent(math.prod(self.shape)), []
        if self.voxel_size is None:
            reasons.append("voxel size unknown")
        if number and not counted:
            reasons.append("no density: all reach the last slice, row or column")
        density = counted / size if counted or not number else math.nan
        what, fraction, per, extent = self._names
        return {
            what: number,
            "touching_border": int(self.touches_border.sum()),
            "coarse": len(self.coarse),
            fraction: float(self.sums.voxels.sum()) / math.prod(self.shape),
            per: density,
            f"stack_{extent}": size,
            "why_blank": "; ".join(reasons),
        }

    @property
    def summary(self) -> str:
        """How many there are, how densely, and what share they take, in one line."""
        totals, number = self.totals, len(self.sums.labels)
        what, fraction, per, _ = self._names
        unit, whole = ("square micrometre", "area") if self.is_slice else ("cubic micrometre", "volume")
        one = "profile" if self.is_slice else "mitochondrion"
        density = totals["why_blank"] or f"{totals[per]:.3g} per {unit}"
        return f"{number} {one if number == 1 else what}, {density}; {totals[fraction]:.2%} of the {whole}"

    @property
    def _names(self) -> tuple[str, str, str, str]:
        """What is counted, the name of its share, of its density, and the unit of a volume or an area."""
        if self.is_slice:
            return "profiles", "area_fraction", "profiles_per_um2", "um2"
        return "mitochondria", "volume_fraction", "density_per_um3", "um3"

    def _extent(self, voxels: int) -> float:
        """Return a number of voxels in µm³, or of pixels of a single slice in µm²; NaN where it is unknown."""
        sides, unit = (self._size[1:], NM2_PER_UM2) if self.is_slice else (self._size, NM3_PER_UM3)
        return float(voxels * sides.prod() / unit)

    @property
    def region_rows(self) -> list[dict[str, float]]:
        """For each region of interest how many mitochondria it has, and the median of each of `measures` in it.

        A mitochondrion belongs to the region that has most of its voxels. The fraction is that of the region's voxels.
        """
        if not self.regions:
            return []
        values, rows = {name: getattr(self, name) for name in self.measures}, []
        what, fraction, per, extent = self._names
        for name, voxels, mitochondrial in zip(
            self.regions.labels.tolist(), self.regions.voxels.tolist(), self.regions.mitochondrial.tolist(), strict=True
        ):
            inside, size = self.regions.of == name, self._extent(voxels)
            rows.append(
                {
                    "region": name,
                    what: int(inside.sum()),
                    fraction: mitochondrial / voxels,
                    per: int(inside.sum()) / size,
                    f"region_{extent}": size,
                    **{f"median_{each}": median(column[inside]) for each, column in values.items()},
                }
            )
        return rows

    def write(self, path: Path) -> None:
        """Write the mitochondria as CSV."""
        columns = [column.tolist() if isinstance(column, np.ndarray) else column for column in self.columns.values()]
        write_csv(path, tuple(self.columns), (map(written, row) for row in zip(*columns, strict=True)))

    def write_totals(self, path: Path, judgement: str = "") -> None:
        """Write the totals as CSV of one row, which ends with the `judgement` of the mask that they come from."""
        _write_rows(path, [{**self.totals, "judgement": judgement}])

    def write_regions(self, path: Path) -> None:
        """Write `region_rows` as CSV."""
        _write_rows(path, self.region_rows)


def median(values: Reals) -> float:
    """Return the median of those that are no NaN; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = tuple(rows[0]) if rows else ("region",)
    write_csv(path, names, (map(written, row.values()) for row in rows))


def written(value: float | str) -> str:
    """Return a value as tables have it: nothing for NaN and infinity."""
    if isinstance(value, int | str):
        return str(value)
    return f"{value:.6g}" if math.isfinite(value) else ""


def measure(
    read: Read,
    shape: Shape,
    *,
    voxel_size: Size | None = None,
    coarse: Collection[int] = (),
    fewest: int = 0,
    read_image: Read | None = None,
    read_regions: Read | None = None,
    block: Shape = BLOCK,
    advance: Callable[[int], object] = lambda _: None,
) -> Measurements:
    """Measure each label of a volume, one block or one bounding box in memory at a time.

    Parameters
    ----------
    read
        Returns the labels ``(Z, Y, X)`` of a region, unsigned integers: 0 is background, gaps are allowed.
    shape
        ``(Z, Y, X)`` of the volume.
    voxel_size
        (z, y, x) in nm, or None where it is unknown.
    coarse
        Labels to mark in the table.
    fewest
        Labels of fewer voxels are left out.
    read_image
        Returns the grey values ``(Z, Y, X)`` of a region.
    read_regions
        Returns the labels of the regions of interest ``(Z, Y, X)`` of a region, as `read` does those of mitochondria.
    block
        ``(Z, Y, X)`` in voxels.
    advance
        Called with 1 for each mitochondrion that was measured.
    """
    grid = Grid(shape, block)
    found = LabelSums.of(read, grid)
    sums = found.where(found.voxels >= fewest)
    skeletons, feret = _measure_boxes(read, shape, sums, voxel_size or (1.0, 1.0, 1.0), advance)
    return Measurements(
        shape,
        voxel_size,
        sums,
        skeletons,
        feret,
        frozenset(coarse),
        grey_values(read, read_image, grid, sums.labels) if read_image else None,
        Regions.count(read, read_regions, grid, sums.labels) if read_regions else None,
        len(found.labels) - len(sums.labels),
    )


def _measure_boxes(
    read: Read, shape: Shape, sums: LabelSums, size: Size, advance: Callable[[int], object]
) -> tuple[list[Skeleton | None], Reals]:
    """Return `skeletons` and `feret` of `Measurements`, with the box around one label in memory at a time."""
    skeletons: list[Skeleton | None] = []
    feret = np.full((len(sums.labels), 2), math.nan)
    boxes = zip(sums.labels.tolist(), sums.first.tolist(), sums.last.tolist(), strict=True)
    for row, (name, first, last) in enumerate(boxes):
        box = grown_box(first, [at + 1 for at in last], shape)
        fits = math.prod(shape_of(box)) <= LARGEST_BOX
        component = read(box) == name if fits else np.ones((1, 1, 1), bool)
        has_border = not component.all()
        skeletons.append(measure_skeleton(component, size) if has_border else None)
        if has_border and shape[0] == 1:
            feret[row] = feret_diameters(component[0], size[1:])
        advance(1)
    return skeletons, feret

"""What is asked of a prediction: the stack, the part of it, and the files to write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mitoflow.config.params import Instances
from mitoflow.errors import InputError
from mitoflow.inference import outputs
from mitoflow.inference.model_input import NEIGHBOURS
from mitoflow.inference.parts import Part
from mitoflow.io import ome, png
from mitoflow.io.spacing import Spacing
from mitoflow.io.volumes import Volume

ENDINGS = (".ome.tif", ".ome.tiff", ".ome.zarr")
LARGEST_CHANGE = 8  # of the pixel size, when slices are resampled

#: See `Request.rescale`.
Rescale = float | Literal["auto", "none", "training"]


@dataclass(frozen=True)
class Request:
    """What to predict, how, and where to.

    Attributes
    ----------
    source
        The stack; see `mitoflow.io.volumes.open_volume`.
    output
        Where the mask goes: 255 for mitochondrion, 0 for background; a TIFF or a Zarr by its ending.
    threshold
        Probability from which a voxel is mitochondrion, in place of the one that the model comes with.
    tta
        Whether the mean over all eight symmetries of a tile is predicted.
    probability
        Whether the probability, float32 in [0, 1], goes to a file beside the mask too, ``NAME_probability``.
    contacts
        Whether a mask of where two mitochondria touch goes to a file beside the mask too, ``NAME_contacts``; only for a
        model that knows it. `mitoflow.inference.prediction.write_outputs` takes it for masks that are made later.
    instances
        Whether each mitochondrion gets a label of its own, in a file beside the mask, ``NAME_instances``: uint32, and
        in a TIFF uint16 where that is enough, which Fiji shows. See `mitoflow.instances.separation`.
    table
        A CSV of the mitochondria, with the sums over the stack in ``TABLE_totals`` beside it; see
        `mitoflow.instances.morphometry`.
    criteria
        What counts as a mitochondrion, for instances and table.
    overlay
        A picture of a few slices with the contours of the mask.
    roi
        The part to predict, as ``z0:z1,y0:y1,x0:x1`` in voxels with the ends excluded; it gets the values that a
        prediction of the whole stack gives it.
    rescale
        What is done to the slices before the network sees them: resampled to the pixel size of training (``training``),
        enlarged by a ratio (0.5 gives half as many pixels along y and x), nothing (``none``), or what
        `mitoflow.inference.adaptation.adapt` finds (``auto``).
    neighbours
        Which neighbouring slices are used: see `mitoflow.inference.model_input.decide`.
    spacing, fill_missing
        See `mitoflow.io.volumes.open_volume`.
    overwrite
        Whether outputs that exist are replaced.
    workers
        Processes of this machine that predict; without it this one does.
    dask
        The address of a Dask scheduler, whose workers predict. They must see the files under the same paths.
    name
        What the lineage calls the input, in place of the name of its file.
    """

    source: str
    output: Path
    threshold: float | None = None
    tta: bool = False
    probability: bool = False
    contacts: bool = False
    instances: bool = False
    table: Path | None = None
    criteria: Instances = field(default_factory=Instances)
    overlay: Path | None = None
    roi: str | None = None
    rescale: Rescale = "auto"
    neighbours: str = "auto"
    spacing: Spacing | None = None
    fill_missing: bool = False
    overwrite: bool = False
    workers: int | None = None
    dask: str | None = None
    name: str | None = None

    @property
    def images(self) -> dict[str, Path]:
        """Where each image goes; the mask, which comes last, says that all is there."""
        wanted = {"probability": self.probability, "contacts": self.contacts, "instances": self.instances}
        return {
            **{name: beside(self.output, name) for name, is_wanted in wanted.items() if is_wanted},
            "mask": self.output,
        }

    @property
    def tables(self) -> dict[str, Path]:
        """Where each table goes."""
        return {"mitochondria": self.table, "totals": beside(self.table, "totals")} if self.table else {}

    @property
    def outputs(self) -> list[Path]:
        """All files that are written."""
        return [*self.images.values(), *self.tables.values(), *([self.overlay] if self.overlay else [])]

    def require_valid(self) -> None:
        """Raise `InputError` where a value is out of range, or two exclude each other."""
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputError("--threshold", self.threshold, "a probability between 0 and 1", "change it")
        if not isinstance(self.rescale, str) and not 1 / LARGEST_CHANGE <= self.rescale <= LARGEST_CHANGE:
            expected = f"a ratio from 1/{LARGEST_CHANGE} to {LARGEST_CHANGE}"
            raise InputError("--rescale", self.rescale, expected, "change it")
        if self.neighbours not in NEIGHBOURS:
            raise InputError("--neighbours", self.neighbours, f"one of {', '.join(NEIGHBOURS)}", "change it")
        if self.dask and self.workers:
            raise InputError("--workers", "--dask too", "one of them", "leave out --workers: the scheduler has its own")

    def require_outputs(self, inputs: Sequence[Path]) -> None:
        """Refuse outputs that cannot be written, or that exist.

        Parameters
        ----------
        inputs
            The files that are read.

        Raises
        ------
        InputError
            A name has the wrong ending, its folder is missing, it is that of an input, or it exists; with `overwrite`,
            only where mitoflow did not write it, or it may be corrected by hand.
        """
        if not (ome.is_tiff(self.output) or ome.is_zarr(self.output)):
            expected = "a name that ends with .tif, .ome.tif or .ome.zarr"
            raise InputError("OUTPUT", self.output, expected, "choose such a name")
        if self.overlay and self.overlay.suffix.lower() != ".png":
            raise InputError("--overlay", self.overlay, "a name that ends with .png", "choose such a name")
        if self.table and self.table.suffix.lower() != ".csv":
            raise InputError("--table", self.table, "a name that ends with .csv", "choose such a name")
        for path in self.outputs:
            if not path.parent.is_dir():
                raise InputError(path, "no such folder", "a place to write to", "make the folder first")
            if any(file == path.resolve() or path.resolve() in file.parents for file in inputs):
                raise InputError(path, "the input", "a name of its own", "choose another output")
        if self.overwrite:
            refuse_foreign(self.outputs)
        else:
            outputs.refuse_existing(self.output, self.outputs)


def _is_table(path: Path) -> bool:
    from mitoflow.instances import morphometry  # imports much of SciPy, which a mask does not need

    return morphometry.is_table(path)


def refuse_foreign(
    paths: Iterable[Path], is_table: Callable[[Path], bool] = _is_table, *, keep_corrections: bool = True
) -> None:
    """Raise `InputError` where something exists that mitoflow did not write, going by what it says itself.

    With `keep_corrections` it does so too where an image may be corrected by hand. `is_table` says whether a CSV is an
    earlier output.
    """
    known = {".csv": is_table, ".png": png.is_overlay}
    for path in paths:
        kind = path.suffix.lower()
        if not path.exists():
            continue
        if not ((path.is_file() or path.is_dir()) and known.get(kind, ome.has_lineage)(path)):
            found = "something that mitoflow did not write"
        elif (other := ome.foreign_file(path)) is not None:
            found = f"{other} in it, which mitoflow did not write"
        elif keep_corrections and kind not in known and not ome.is_as_written(path):
            found = "what is or may be corrected by hand"
        else:
            continue
        expected = "an earlier output that nobody changed"
        raise InputError(path, found, expected, "choose another name, or move it away yourself")


def beside(path: Path, what: str) -> Path:
    """Return where something goes that belongs to a file: ``cell_probability.ome.zarr`` beside ``cell.ome.zarr``."""
    endings = next((each for each in ENDINGS if path.name.lower().endswith(each)), path.suffix)
    stem = path.name[: len(path.name) - len(endings)]
    return path.with_name(f"{stem}_{what}{path.name[len(stem) :]}")


def parse_roi(text: str | None, volume: Volume) -> Part:
    """Return the part of a stack that ``z0:z1,y0:y1,x0:x1`` means, without z for a slice; all of it for None.

    A start or end that is left out is that of the stack.

    Raises
    ------
    InputError
        It is written in another way, or does not lie within the stack.
    """
    lengths = volume.shape[-len(volume.axes) :]
    limits = [(0, length) for length in lengths]
    if text is not None:
        expected = ",".join(f"{axis}0:{axis}1" for axis in volume.axes)
        within = ", ".join(f"{axis} up to {length}" for axis, length in zip(volume.axes, lengths, strict=True))
        try:
            ends = [[end.strip() for end in side.split(":")] for side in text.split(",")]
            limits = [
                (int(start or 0), int(stop or length)) for (start, stop), length in zip(ends, lengths, strict=True)
            ]
        except ValueError:
            raise InputError("--roi", text, expected, f"give voxels: {within}") from None
        if not all(0 <= start < stop <= length for (start, stop), length in zip(limits, lengths, strict=True)):
            raise InputError("--roi", text, f"a part of the stack: {within}", "count from 0, the end excluded")
    (z0, z1), (y0, y1), (x0, x1) = [(0, 1), *limits][-3:]
    return Part(range(z0, z1), (y0, y1, x0, x1))

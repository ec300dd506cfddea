"""What the page keeps of a stack: the upload, the probabilities, the corrections, and the files made from them."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from mitoflow import __version__
from mitoflow.apps.correction_record import with_correction
from mitoflow.apps.page import tiles
from mitoflow.apps.page.strokes import Stroke
from mitoflow.config import params
from mitoflow.core import files
from mitoflow.data.fingerprint import INVERTED
from mitoflow.data.masks import NOT_LOOKED_AT
from mitoflow.inference import prediction
from mitoflow.inference.jobs import as_mask
from mitoflow.inference.request import Request
from mitoflow.io import ome, volumes
from mitoflow.io.spacing import Spacing
from mitoflow.io.volumes import Volume

VERSIONS = 8  # thresholds and corrections of which the files are kept

State = Literal["uploading", "waiting", "predicting", "done", "failed", "cancelled"]
#: Where a stack comes from: files that were uploaded, drawn on the spot, or another stack with its contrast inverted.
Origin = Literal["files", "drawn", "inverted"]
#: Files that are made of a mask; ``training`` is the mask of the corrected slices, for `mitoflow data add`.
Kind = Literal["mask", "training", "instances", "table", "totals", "overlay"]
Layer = Literal["image", "probability", "instances"]


@dataclass(frozen=True)
class Upload:
    """A file that a browser sends: its name, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Mask:
    """Which mask of a stack is meant.

    Attributes
    ----------
    threshold
        Probability from which a voxel is mitochondrion.
    strokes
        The corrections that count, in their order.
    """

    threshold: float
    strokes: tuple[Stroke, ...] = ()


class Result:
    """A stack on the page, from its upload to its files.

    Parameters
    ----------
    key
        Its name in addresses; who knows it may see the stack.
    name
        What its user calls it.
    folder
        Where everything that belongs to it is kept.
    uploads
        The files that are sent.
    spacing
        The voxel size where its user gave one.
    origin
        Where it comes from.
    """

    def __init__(
        self, key: str, name: str, folder: Path, uploads: list[Upload], spacing: Spacing | None, origin: Origin
    ) -> None:
        self.key, self.name, self.folder, self.uploads = key, name, folder, uploads
        self.spacing, self.origin = spacing, origin
        self.state: State = "uploading" if origin == "files" else "waiting"
        self.error, self.notes = "", list[str]()
        self.voxels = self.voxels_done = 0
        self.began = self.touched = time.monotonic()
        self.strokes: tuple[Stroke, ...] = ()
        self.image: Volume
        self.probability: zarr.Array[Any]
        self.contacts: zarr.Array[Any] | None = None
        self.description: ome.Description
        self._greys: dict[int, tuple[float, float]] = {}
        self._writing: dict[Path, threading.Lock] = {}
        self.input.mkdir(parents=True)

    @property
    def input(self) -> Path:
        """The folder of the uploaded files."""
        return self.folder / "input"

    @property
    def source(self) -> Path:
        """What is predicted: the file, the folder of slices, or the inverted copy."""
        if self.origin == "inverted":
            return self.folder / "inverted.ome.zarr"
        return self.input / self.uploads[0].name if len(self.uploads) == 1 else self.input

    @property
    def is_unfinished(self) -> bool:
        """Whether there is more to come."""
        return self.state in ("uploading", "waiting", "predicting")

    def cancel(self) -> None:
        """Stop what is under way; a prediction ends when it is next asked to go on."""
        if self.is_unfinished:
            self.state = "cancelled"

    def plain(self, text: str) -> str:
        """Return a message with the name of the stack, or of its file, in place of where the server keeps it."""
        several = len(self.uploads) > 1
        places = {f"{self.source}/": "", str(self.source): self.name} if several else {str(self.source): self.name}
        for place, name in {**places, f"{self.input}/": ""}.items():
            text = text.replace(place, name)
        return text

    def complete(self, image: Volume, images: Mapping[str, Path]) -> None:
        """Take over what `prediction.predict` wrote of a stack; see `Request.images`."""
        self.image, self.probability = image, ome.open_multiscale(images["probability"]).array
        self.contacts = ome.open_multiscale(images["contacts"]).array if "contacts" in images else None
        lineage = ome.read_lineage(images["mask"])
        self.description = ome.Description(image.axes, image.spacing, image.origin, lineage)
        self.state = "done"

    def status(self) -> dict[str, Any]:
        """Return what a browser shows of it, as JSON can hold it."""
        done = self.voxels_done / self.voxels if self.voxels_done else 0
        took = time.monotonic() - self.began
        left = took * (1 / done - 1) if done and took > 1 and self.state == "predicting" else None
        return {
            "key": self.key,
            "name": self.name,
            "origin": self.origin,
            "state": self.state,
            "done": min(1, done),
            "seconds_left": left,
            "error": self.error,
            "notes": self.notes,
            "stack": self._stack() if self.state == "done" else None,
        }

    def _stack(self) -> dict[str, Any]:
        lineage = self.description.lineage
        return {
            "shape": self.image.shape,
            "spacing": self.image.spacing,
            "levels": tiles.levels(self.image.shape),
            "tile": tiles.TILE,
            "threshold": self.threshold,
            "is_inverted": INVERTED in lineage.get("differs", ""),
            "judgement": lineage.get("judgement", ""),
            "strokes": [stroke.as_dict() for stroke in self.strokes],
        }

    @property
    def threshold(self) -> float:
        """The threshold at which `mitoflow predict` makes the mask: it is in no way rounded."""
        return float(self.description.lineage["threshold"])

    def plane(self, z: int, mask: Mask) -> NDArray[np.uint8]:
        """Return a slice of a mask, (Y, X) uint8: 255 for mitochondrion, 0 for background."""
        probability = np.asarray(self.probability[(z, ...) if self.probability.ndim == 3 else ...])
        plane = as_mask(probability, mask.threshold)
        for stroke in mask.strokes:
            if stroke.z == z:
                stroke.draw(plane)
        return plane

    def _plane_for_training(self, z: int, mask: Mask) -> NDArray[np.uint8]:
        """Return a slice of a mask that was corrected there, and else one that nobody looked at."""
        plane = self.plane(z, mask)
        return plane if any(stroke.z == z for stroke in mask.strokes) else np.full_like(plane, NOT_LOOKED_AT)

    def tile(self, layer: Layer, z: int, place: tuple[int, int, int], mask: Mask) -> bytes:
        """Return the voxels of a tile, row by row.

        Parameters
        ----------
        layer
            ``image`` is uint8, as it is shown; ``probability`` is float32 in [0, 1]; ``instances`` is uint32, 0 for
            background; little-endian.
        z
            The slice.
        place
            Level, row and column; see `mitoflow.apps.page.tiles`.
        mask
            Whose instances.
        """
        box, step = tiles.box(self.image.shape, *place), 1 << place[0]
        rows, columns = slice(box[0], box[1], step), slice(box[2], box[3], step)
        if layer == "probability":
            array = self.probability
            return np.asarray(array[(z, rows, columns)[-array.ndim :]], "<f4").tobytes()
        if layer == "instances":
            labels = volumes.StackVolume([volumes.open_file(self.file("instances", mask), is_mask=True)])
            return np.asarray(labels.read(z, box)[::step, ::step], "<u4").tobytes()
        if z not in self._greys:
            self._greys[z] = tiles.grey_range(self.image, z)
        return tiles.shown(self.image.read(z, box), self._greys[z], place[0]).tobytes()

    def file(self, kind: Kind, mask: Mask) -> Path:
        """Return a file as `mitoflow predict` writes it of this mask; it is made the first time.

        Raises
        ------
        InputError
            It cannot be written.
        """
        strokes = [stroke.as_dict() for stroke in mask.strokes]
        version = self.folder / "versions" / files.short_digest([repr(mask.threshold), strokes])
        is_counted, is_to_train = kind in ("instances", "table", "totals"), kind == "training"
        folder = version / ("counted" if is_counted else "training" if is_to_train else "mask")
        what = "training" if is_to_train else "corrected" if strokes else "mitochondria"
        stem = f"{Path(self.name).stem.removesuffix('.ome')}_{what}"
        request = Request(
            str(self.source),
            folder / f"{stem}.tif",
            instances=is_counted,
            table=folder / f"{stem}.csv" if is_counted else None,
            overlay=None if is_counted or is_to_train else folder / f"{stem}.png",
            criteria=params.load_instances(),
        )
        made = {**request.images, "overlay": request.overlay, "table": request.table, **request.tables}
        path = made.get(kind) or request.output
        with self._writing.setdefault(folder, threading.Lock()):  # masks don't wait for instances
            if not path.exists():
                self._forget_versions(version.parent)
                folder.mkdir(parents=True, exist_ok=True)
                self._write(request, mask, self._plane_for_training if is_to_train else self.plane)
        return path

    def _write(self, request: Request, mask: Mask, plane: Callable[[int, Mask], NDArray[np.uint8]]) -> None:
        lineage = {**self.description.lineage, "threshold": str(mask.threshold)}
        if mask.strokes:
            where = f"in {len(mask.strokes)} strokes on the page of mitoflow {__version__}"
            lineage = with_correction(lineage, where)
        planes = (plane(z, mask) for z in range(self.image.shape[0]))
        description = replace(self.description, lineage=lineage)
        needed = self.contacts if request.instances else None
        contacts = None if needed is None else self._contacts(needed, mask)
        prediction.write_outputs(request, planes, self.image, description, lambda _: None, contacts)

    def _contacts(self, contacts: zarr.Array[Any], mask: Mask) -> Iterator[NDArray[np.uint8]]:
        """Yield the contacts of each slice, (Y, X): none where a mask was painted, which joins what it touches."""
        for z in range(self.image.shape[0]):
            plane = np.asarray(contacts[(z, ...) if contacts.ndim == 3 else ...])
            for stroke in mask.strokes:
                if stroke.z == z and not stroke.erases:
                    replace(stroke, erases=True).draw(plane)
            yield plane

    def _forget_versions(self, folder: Path) -> None:
        """Remove the files of the masks that were asked for longest ago."""
        known = []
        for version in folder.glob("*"):
            with suppress(FileNotFoundError):  # another request removes it
                known.append((version.stat().st_mtime, version))
        for _, version in sorted(known)[: 1 - VERSIONS]:
            shutil.rmtree(version, ignore_errors=True)

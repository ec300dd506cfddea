"""MRC stacks, as IMOD and SerialEM write them: an array without compression behind a header.

The format: Cheng et al., "MRC2014: Extensions to the MRC format header for electron cryo-microscopy and tomography",
Journal of Structural Biology 192, 2015. What IMOD adds to it: https://bio3d.colorado.edu/imod/doc/mrc_format.txt
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mitoflow.errors import InputError
from mitoflow.io.spacing import Spacing, Warn, in_nanometres
from mitoflow.io.tiff import Array, Stack

ENDINGS = (".mrc", ".mrcs", ".rec", ".st", ".ali", ".map")
HEADER = 1024  # bytes
#: In bytes 152 and 156: that IMOD wrote the file, and the flag that its bytes have a sign. Bytes of other programs have
#: one, unless the smallest and largest value in the header say that none is negative: older files are like that.
IMOD_STAMP, IMOD_SIGNED = 1146047817, 1
VOLUMES = range(401, 631)  # "space groups" of several volumes in one file


def is_mrc(path: Path) -> bool:
    """Return whether a path has the name of an MRC file."""
    return path.suffix.lower() in ENDINGS


@dataclass(frozen=True)
class _Rows:
    """The array in the file, whose first row is the lowest one, as IMOD and Bio-Formats show it."""

    start: int
    stored: np.dtype[Any]
    shape: tuple[int, int, int]

    def read(self, path: Path, z: int, shape: tuple[int, int]) -> Array:
        # Only what is used of the slice is read. The map is released again, so that resident memory does not grow.
        return np.asarray(np.memmap(path, self.stored, "r", self.start, self.shape)[z, ::-1])


def open_mrc(path: Path) -> Stack:
    """Open an MRC file of any type of real numbers, one slice or many.

    Its first row is the top one, as in programs that show MRC files, and as `tif2mrc` and `mrc2tif` of IMOD convert.

    Raises
    ------
    InputError
        The file is missing, no MRC, truncated, longer than its header says, of complex numbers, has several volumes, or
        its columns, rows and slices are not along x, y and z.
    """
    header, stored = _read_header(path)
    shape = (int(header.nz), int(header.ny), int(header.nx))
    if min(shape) < 1:
        raise InputError(path, f"an array of shape {shape}", "at least one voxel", "export the stack again")
    if int(header.ispg) in VOLUMES:
        raise InputError(path, "several volumes in one file", "one stack", "save each as a file")
    if (order := (int(header.mapc), int(header.mapr), int(header.maps))) not in ((1, 2, 3), (0, 0, 0)):
        found = f"columns, rows and slices along the axes {', '.join(map(str, order))}"
        raise InputError(path, found, "1, 2, 3, which are x, y and z", "export the stack with its axes in this order")
    if stored.kind not in "uif":
        raise InputError(
            path, f"{stored} voxels", "integers or floating-point numbers", "save the image as 8- or 16-bit"
        )
    start = HEADER + int(header.nsymbt)
    of_slice, size = shape[1] * shape[2] * stored.itemsize, path.stat().st_size
    needed = start + shape[0] * of_slice
    if start < HEADER or needed > size:
        found = f"a truncated file ({shape[0]} slices need {needed} bytes, it has {size})"
        raise InputError(path, found, "a whole MRC", "copy or export the file again")
    if more := (size - needed) // of_slice:
        expected = f"{shape[0]}, as its header says"
        raise InputError(path, f"{shape[0] + more} slices in the file", expected, "export the stack again")
    return Stack(path, shape, stored.newbyteorder("="), _Rows(start, stored, shape))


def read_spacing(path: Path, warn: Warn = lambda _: None) -> Spacing:
    """Return the voxel size that the header states.

    Programs write 1 angstrom along each axis where they know none. `warn` is as in `mitoflow.io.spacing.in_nanometres`.

    Raises
    ------
    InputError
        The file is missing or no MRC.
    """
    header, _ = _read_header(path)
    sides = {axis: float(header.cella[axis]) / max(1, int(header[f"m{axis}"])) for axis in "zyx"}
    if set(sides.values()) == {1.0}:
        return {}
    return in_nanometres({axis: (side, "angstrom") for axis, side in sides.items()}, path, warn)


def _read_header(path: Path) -> tuple[Any, np.dtype[Any]]:
    """Return the header, a record with the names of MRC2014, and the type of the voxels in the file."""
    from mrcfile import utils
    from mrcfile.dtypes import HEADER_DTYPE

    try:
        with path.open("rb") as stream:
            head = stream.read(HEADER)
    except FileNotFoundError:
        raise InputError(path, "no such file", "an MRC stack", "check the path") from None
    remedy = "export the stack as MRC or TIFF"
    if len(head) < HEADER or head[208:211] != b"MAP":
        raise InputError(path, f"no MRC but a file that begins with {head[:4]!r}", "an MRC stack", remedy)
    header = np.frombuffer(head, HEADER_DTYPE).view(np.recarray)[0]
    try:
        order = utils.byte_order_from_machine_stamp(header.machst)
        header = np.frombuffer(head, HEADER_DTYPE.newbyteorder(order)).view(np.recarray)[0]
        stored = np.dtype(utils.dtype_from_mode(header.mode)).newbyteorder(order)
    except ValueError as error:
        raise InputError(path, f"an MRC that cannot be read ({error})", "an MRC stack", remedy) from None
    stamp, flags = np.frombuffer(head, f"{order}i4", 2, 152).tolist()
    if stored == np.int8 and (flags & IMOD_SIGNED == 0 if stamp == IMOD_STAMP else 0 <= header.dmin <= header.dmax):
        stored = np.dtype(np.uint8)
    return header, stored

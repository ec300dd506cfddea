"""The results that are kept: by number, by bytes, and for a day."""

from __future__ import annotations

import math
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mitoflow.apps.page.results import Origin, Result, Upload
from mitoflow.errors import InputError
from mitoflow.io import gatan, hdf5, mrc, ome
from mitoflow.io.spacing import Spacing

ENDINGS = (*ome.TIFF_ENDINGS, ".png", *mrc.ENDINGS, *gatan.ENDINGS, *hdf5.ENDINGS)  # of the files that may be uploaded

KEPT, MOST_BYTES, LONGEST = 20, 2**35, 24 * 3600  # results, bytes of all of them together, and seconds
UNFINISHED = 16  # results that are uploaded, wait or are predicted
IDLE = 3600  # seconds without a byte, after which an upload counts as given up
MOST_FILES, LONGEST_NAME = 10_000, 200  # files of an upload, and bytes of a name


class BusyError(Exception):
    """Too much is waiting; it says so as one line."""


class GoneError(Exception):
    """There is no such result, or it is not kept any more; it says so as one line."""


class Shelf:
    """The results that are kept; the oldest ones make room for new ones.

    Parameters
    ----------
    folder
        Where they are.
    largest
        Bytes of an upload.
    """

    def __init__(self, folder: Path, largest: int) -> None:
        self._folder, self._largest = folder, largest
        self._results: dict[str, Result] = {}

    def __iter__(self) -> Iterator[Result]:
        return iter([*self._results.values()])

    def add(self, name: str, uploads: list[Upload], spacing: Spacing | None, origin: Origin = "files") -> Result:
        """Make room for a stack.

        Raises
        ------
        InputError
            A name is none of an image, or the files are too many or too large.
        BusyError
            Too many others are unfinished.
        """
        self._require_valid(name, uploads)
        self._forget(max(1, sum(each.size for each in uploads)))
        if sum(each.is_unfinished for each in self) >= UNFINISHED:
            raise BusyError(f"{UNFINISHED} stacks are waiting; try it again later")
        key = secrets.token_urlsafe(12)
        result = self._results[key] = Result(key, name, self._folder / key, uploads, spacing, origin)
        return result

    def find(self, key: str) -> Result:
        """Return a result; raises `GoneError` where it is not kept."""
        self._forget(0)
        result = self._results.get(key)
        if result is None:
            raise GoneError("this result is gone: the page keeps the last ones, for a day, until it is stopped")
        result.touched = time.monotonic()
        return result

    def remove(self, key: str) -> None:
        """Forget a result where there is one; if it is being predicted, it stops as soon as it can."""
        result = self._results.pop(key, None)
        if result is None:  # another request removed it
            return
        result.cancel()
        shutil.rmtree(result.folder, ignore_errors=True)

    def _require_valid(self, name: str, uploads: list[Upload]) -> None:
        names = [each.name for each in uploads]
        if not 0 < len(uploads) <= MOST_FILES:
            raise InputError(name, f"{len(uploads)} files", f"1 to {MOST_FILES}", "choose them anew")
        for each in (name, *names):
            is_plain = Path(each).name == each and not each.startswith(".") and each.isprintable()
            if not is_plain or len(each.encode()) > LONGEST_NAME:
                raise InputError(each, "no plain name", f"one of up to {LONGEST_NAME} bytes", "rename the file")
        for each in names:
            if Path(each).suffix.lower() not in ENDINGS:
                found = f"the ending {Path(each).suffix or 'of none'}"
                raise InputError(each, found, "a TIFF, PNG, MRC, DM3, DM4 or HDF5", "save it as TIFF")
        if doubled := {each for each in names if names.count(each) > 1}:
            raise InputError(min(doubled), "two files of that name", "a name for each", "rename one of them")
        if (size := sum(each.size for each in uploads)) > self._largest:
            remedy = "use `mitoflow predict`, which takes stacks of any size"
            raise InputError(name, f"{math.ceil(size / 2**20)} MiB", f"at most {self._largest // 2**20}", remedy)

    def _forget(self, needed: int) -> None:
        """Remove results that are too old, and the oldest ones until there is room for one more of so many bytes.

        For 0 bytes no room is made.
        """
        now = time.monotonic()
        for each in self:
            limit = {"uploading": IDLE, "waiting": math.inf, "predicting": math.inf}.get(each.state, LONGEST)
            if now - each.touched > limit:
                self.remove(each.key)
        finished = [each for each in self if not each.is_unfinished]
        sizes = {each.key: _size(each.folder) for each in self} if needed else {}
        while finished and needed and (len(self._results) >= KEPT or sum(sizes.values()) + needed > MOST_BYTES):
            oldest = min(finished, key=lambda each: each.touched)
            finished.remove(oldest)
            sizes.pop(oldest.key, None)
            self.remove(oldest.key)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

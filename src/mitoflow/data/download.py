"""Files from the web that take long enough to be interrupted."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests

from mitoflow.core.progress import progress_bar
from mitoflow.errors import InputError

ATTEMPTS = 5  # in a row that bring nothing
TIMEOUT = (10, 60)  # seconds to connect, and between two blocks
BLOCK = 1 << 16


def fetch(url: str, folder: Path) -> Path:
    """Download a file into ``folder`` unless it is there, with a progress bar, and return its path.

    An interrupted download is resumed.

    Raises
    ------
    InputError
        The server cannot be reached, does not have the file or lets go of it again and again.
    """
    pooch.get_logger().setLevel("WARNING")  # it logs the hash of each file without a recorded one
    name = urlsplit(url).path.rpartition("/")[2]
    return Path(pooch.retrieve(url, known_hash=None, fname=name, path=folder, downloader=_download_resumably))


def _download_resumably(url: str, output: str, _: object) -> None:
    """Download for pooch, which would start again from nothing; this resumes ``NAME.part`` beside ``output``."""
    part = Path(output).with_name(urlsplit(url).path.rpartition("/")[2] + ".part")
    part.touch()
    in_vain = 0
    while in_vain < ATTEMPTS:
        before = part.stat().st_size
        try:
            _download_rest(url, part)
        except requests.HTTPError as error:
            raise InputError(url, error, "the file", "try later, or give a local copy with --from") from None
        except requests.RequestException as error:
            in_vain = 0 if part.stat().st_size > before else in_vain + 1
            trouble = error
        else:
            part.replace(output)
            return
    found = f"{part.stat().st_size / 1e6:.1f} MB and then no connection ({trouble})"
    remedy = "run it again to resume, or give a local copy with --from"
    raise InputError(url, found, "the whole file", remedy)


def _download_rest(url: str, part: Path) -> None:
    start = part.stat().st_size
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            if response.headers.get("Content-Range", "").endswith(f"/{start}"):
                return
            part.write_bytes(b"")
            raise requests.ConnectionError("the file on the server has become shorter")
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = progress_bar(desc=part.stem, initial=start, total=total, unit="B", unit_scale=True)
        with bar, part.open("ab" if start else "wb") as stream:
            for block in response.iter_content(BLOCK):
                stream.write(block)
                bar.update(len(block))

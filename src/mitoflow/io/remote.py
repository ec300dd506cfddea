"""Folders on servers: ``https://...`` and ``s3://BUCKET/...``, of which blocks are read as they are needed.

Credentials come from the environment or from the files of the AWS command line, never from the address.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore

from mitoflow.errors import InputError

SCHEMES = ("s3", "https", "http")
CONNECT, ANSWER = 10, 60  # seconds that a server has for a connection, and for the next bytes
KEPT = 2**28  # bytes of files that are kept: a prediction reads most of them several times
REFUSALS = (401, 403)  # HTTP


def is_url(source: str) -> bool:
    """Return whether a source is on a server."""
    return source.partition("://")[0] in SCHEMES and "://" in source


@dataclass(frozen=True)
class Url:
    """A folder on a server, which is joined with names as a path is."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text.rstrip('/')}/{name}")

    @property
    def path(self) -> PurePosixPath:
        """The server or bucket, and the folders in it."""
        return PurePosixPath("/", *self.text.partition("://")[2].split("/"))

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.name

    @property
    def stem(self) -> str:
        """The name of the folder without its ending."""
        return self.path.stem

    @property
    def parent(self) -> Url:
        """The folder that it is in."""
        return Url(self.text.rstrip("/").rpartition("/")[0])

    def open(self) -> RemoteStore:
        """Return the folder to read from; the server is not asked yet.

        Raises
        ------
        InputError
            The address has a name, a password or a query, or a package is missing.
        """
        parts = urlsplit(self.text)
        if parts.username or parts.password or parts.query or parts.fragment:
            where = f"{parts.scheme}://{parts.hostname}{parts.path}"
            remedy = "set them in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            raise InputError(where, "credentials or a query in the address", "the address alone", remedy)
        try:
            files, place = fsspec.url_to_fs(self.text, asynchronous=True, **_options(parts.scheme))
        except ImportError as error:
            remedy = "install it: pip install 'mitoflow[s3]'"
            raise InputError(self.text, f"no package for s3:// ({error})", "s3fs", remedy) from None
        return RemoteStore(fs=files, path=place, read_only=True)

    def state(self) -> list[Any]:
        """Return what identifies the folder: its address, and in an object store the digest of all names and versions.

        An HTTP server lists no folders, so there it is the address alone.

        Raises
        ------
        InputError
            The server does not answer, or refuses.
        """
        if not self.text.startswith("s3://"):
            return [self.text]
        try:
            files, place = fsspec.url_to_fs(self.text, use_listings_cache=False)
            found = files.find(place, detail=True)
        except Exception as error:
            raise _refused(self.text, error) from None
        lines = sorted(f"{name} {about['size']} {about.get('ETag')}" for name, about in found.items())
        return [self.text, len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()]


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "s3":
        return {"config_kwargs": {"connect_timeout": CONNECT, "read_timeout": ANSWER}}
    import aiohttp

    async def refuse_redirection(response: aiohttp.ClientResponse) -> None:
        """Refuse a redirection to nowhere: aiohttp would take its text for the file."""
        if 300 <= response.status < 400:
            raise OSError(f"HTTP status {response.status} without another address")

    timeout = aiohttp.ClientTimeout(None, sock_connect=CONNECT, sock_read=ANSWER)
    return {"client_kwargs": {"timeout": timeout, "raise_for_status": refuse_redirection}}


#: Where a file or a folder is.
Location = Path | Url


def open_store(place: Location) -> Store:
    """Open a folder, on this machine or on a server, as Zarr reads it."""
    return place.open() if isinstance(place, Url) else LocalStore(place, read_only=True)


def locate(source: str) -> Location:
    """Return the address, or the path, that a source is."""
    return Url(source) if is_url(source) else Path(source)


class RemoteStore(FsspecStore):
    """A folder on a server as Zarr reads it: what was read last is kept, and what the server refuses is one line.

    Parameters
    ----------
    options
        See `zarr.storage.FsspecStore`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._kept: OrderedDict[str, Buffer] = OrderedDict()  # the last used comes last
        self._bytes = 0

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a file or a part of it, and None where there is none.

        Raises
        ------
        InputError
            The server does not answer, refuses, or sends more than the part.
        """
        asked = f"{key} {byte_range}"
        if asked in self._kept:
            self._kept.move_to_end(asked)
            return self._kept[asked]
        found = await self._ask(key, prototype, byte_range)
        if found is not None and asked not in self._kept:  # another request may have brought it meanwhile
            self._kept[asked] = found
            self._bytes += len(found)
            while self._bytes > KEPT:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return found

    async def _ask(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        where = str(self.fs.unstrip_protocol(f"{self.path}/{key}"))
        try:
            found = await super().get(key, prototype, byte_range)
        except Exception as error:
            raise _refused(where, error) from None
        longest = None
        if isinstance(byte_range, RangeByteRequest):
            longest = byte_range.end - byte_range.start
        elif isinstance(byte_range, SuffixByteRequest):
            longest = byte_range.suffix
        if found is not None and longest is not None and len(found) > longest:
            remedy = "copy the image to this machine or to another server"
            raise InputError(where, "a server that sends whole files alone", "parts of files, as shards need", remedy)
        return found


def _refused(where: str, error: Exception) -> InputError:
    """Return the error of a server as one that a user can correct."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, PermissionError) or getattr(error, "status", None) in REFUSALS or "Credentials" in text:
        remedy = "set credentials in the environment, or FSSPEC_S3_ANON=true for a public bucket"
        return InputError(where, f"a server that refuses ({text})", "the right to read", remedy)
    remedy = "check the address and the network, and give the command again: `predict` continues"
    return InputError(where, f"no answer that can be used ({text})", "a server that answers", remedy)

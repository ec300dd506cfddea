"""Checks of the objects in DVC's cache, or in a remote that is a folder, against the hashes in their names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mitoflow.errors import InputError


@dataclass(frozen=True)
class Damage:
    """An object whose content does not have the hash in its name.

    Attributes
    ----------
    path
        Of the object, in which ``files/md5/c1/93497a...`` has the MD5 ``c193497a...``.
    found
        The MD5 that it has.
    names
        The files, relative to the folders under DVC that hold them, whose content it was; empty where no folder does.
    listings
        The objects that list these folders.
    """

    path: Path
    found: str
    names: tuple[str, ...]
    listings: tuple[Path, ...]

    def __str__(self) -> str:
        names = f" ({', '.join(self.names)})" if self.names else ""
        return f"{self.path}{names}: found MD5 {self.found}, expected {_name(self.path)}"

    def delete(self) -> None:
        """Delete the object and the listings that name it: DVC assumes that every file in a listing exists."""
        for path in (self.path, *self.listings):
            path.unlink(missing_ok=True)


def damaged(store: Path) -> Iterator[Damage]:
    """Hash every object of a cache or remote, and yield those that differ from the hash in their name.

    Raises
    ------
    InputError
        The folder holds no objects.
    """
    objects = sorted(path for path in store.glob("files/md5/??/*") if not path.name.endswith(".tmp"))
    if not objects:
        raise InputError(store, "no objects of DVC", "its cache, or a remote that is a folder", "check the path")
    listed = list(_listed(objects))
    for path in objects:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "md5").hexdigest()
        if found != _name(path).removesuffix(".dir"):
            names = {name for _, digest, name in listed if digest == _name(path)}
            listings = {listing for listing, digest, _ in listed if digest == _name(path)}
            yield Damage(path, found, tuple(sorted(names)), tuple(sorted(listings)))


def _name(path: Path) -> str:
    return path.parent.name + path.name


def _listed(objects: list[Path]) -> Iterator[tuple[Path, str, str]]:
    """Yield what the listings of folders, which are objects too, say: the listing, and the MD5 and name of a file."""
    for listing in objects:
        if listing.name.endswith(".dir"):
            try:
                entries = [(entry["md5"], entry["relpath"]) for entry in json.loads(listing.read_bytes())]
            except (ValueError, KeyError, TypeError):  # it is damaged itself
                continue
            yield from ((listing, digest, name) for digest, name in entries)

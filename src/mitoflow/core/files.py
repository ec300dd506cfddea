"""Files that are written whole or not at all, read with errors of one line, and hashed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from mitoflow.errors import InputError

LARGEST_YAML = 2**20  # bytes of a file
MOST_VALUES = 10**5  # keys and values in it, with those that aliases repeat
MERGE = "tag:yaml.org,2002:merge"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` and rename it to ``path`` when the block ends well.

    A file or a folder may be written there. Readers of ``path`` see the old content or the complete new one. If the
    block raises, ``path`` keeps its content and the new one is removed. Files that a killed process left beside
    ``path`` are removed by the next process of the same machine that writes it; those of other machines, which may
    share the folder, are kept, because nothing here shows whether their processes still run.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = temporary(path, "new")
    _remove_stale(path)
    try:
        yield beside
        if path.is_dir():
            # A folder cannot be renamed over another one; between two renames neither is there, but only for a moment.
            old = temporary(path, "old")
            try:
                path.replace(old)
                beside.replace(path)
            except BaseException:
                if not path.exists():
                    old.replace(path)
                raise
            _remove(old)
        else:
            beside.replace(path)
    finally:
        _remove(beside)


def temporary(path: Path, kind: str) -> Path:
    """Return the temporary name beside ``path`` that this process uses for the ``new`` or the ``old`` content."""
    return path.parent / f".{path.name}.{_machine()}-{os.getpid()}.{kind}"


@cache
def _machine() -> str:
    """Return an identifier of this machine, or container: processes of different ones may have equal numbers."""
    facts = [os.uname().nodename]
    with suppress(OSError):
        facts.append(Path("/etc/machine-id").read_text(encoding="utf-8"))
    with suppress(OSError):
        facts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:8]


def _remove_stale(path: Path) -> None:
    """Remove what processes of this machine that are no more, or this one before, left beside ``path``.

    An old folder comes back where a process was killed before the new one had its name.
    """
    ours = re.compile(rf"\.{re.escape(path.name)}\.{_machine()}-(\d+)\.(new|old)")
    for stale in path.parent.iterdir():
        if (found := ours.match(stale.name)) and not _is_another(int(found[1])):
            if found[2] == "old" and not path.exists():
                stale.replace(path)
            else:
                _remove(stale)


def _is_another(process: int) -> bool:
    """Return whether another process with that number runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_no_pipe(path: Path) -> None:
    """Raise `InputError` where a path is a pipe, a socket or a device, of which reading may wait forever."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # whoever opens it says why it cannot be read
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        remedy = "save the image in a file first, and name that file"
        raise InputError(path, "a pipe or a device", "a file", remedy)


def file_digest(*paths: Path) -> str:
    """Return the SHA-256 of the contents of ``paths``, as hexadecimal; folders count with every file in them.

    Names count relative to the folder, so a folder keeps its digest when it moves.
    """
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def short_digest(settings: object, *files: Path) -> str:
    """Return 16 hexadecimal digits that change with `settings` (anything JSON can hold) or the content of `files`."""
    text = json.dumps(settings, sort_keys=True) + "".join(file_digest(file) for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_yaml(path: Path, remedy: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Read a YAML file of keys and values, which has at least `keys`.

    Raises
    ------
    InputError
        There is no such file, or it is something else; `remedy` is its last part.
    """
    try:
        if path.stat().st_size > LARGEST_YAML:
            raise InputError(path, f"{path.stat().st_size} bytes", f"at most {LARGEST_YAML}", remedy)
        yaml = YAML(typ="safe", pure=True)
        tree = yaml.compose(path.read_text(encoding="utf-8"))
        _require_plain(path, tree, remedy)
        values = yaml.constructor.construct_document(tree) if tree else None
    except FileNotFoundError:
        raise InputError(path, "no such file", "YAML", remedy) from None
    except (YAMLError, ValueError, RecursionError) as error:  # also "+_", which looks like a number
        raise InputError(path, error, "YAML", remedy) from None
    return _with_keys(path, values, remedy, keys)


def _require_plain(path: Path, tree: Node | None, remedy: str) -> None:
    """Refuse merge keys (<<) and too many values: both let a short file fill the memory.

    The value of an alias counts each time that it is repeated, and it may contain itself.
    """
    pending, count = [tree], 1
    while pending:
        node = pending.pop()
        inner: list[Node] = []
        if isinstance(node, MappingNode):
            if any(key.tag == MERGE for key, _ in node.value):
                raise InputError(path, "a merge key (<<)", "plain keys and values", "write out what it stands for")
            inner = [*chain.from_iterable(node.value)]
        elif isinstance(node, SequenceNode):
            inner = node.value
        count += len(inner)
        if count > MOST_VALUES:
            raise InputError(path, f"more than {MOST_VALUES} keys and values", "fewer, without aliases", remedy)
        pending += inner


def read_json(path: Path, remedy: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Read a JSON file of keys and values; see `read_yaml`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(path, "no such file", "JSON", remedy) from None
    except (ValueError, RecursionError) as error:
        raise InputError(path, error, "JSON", remedy) from None
    return _with_keys(path, values, remedy, keys)


def _with_keys(path: Path, values: Any, remedy: str, keys: Iterable[str]) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise InputError(path, type(values).__name__, "keys with values", remedy)
    for key in keys:
        if key not in values:
            raise InputError(f"{path}: {key}", "no such key", "a value", remedy)
    return values


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write keys and values to a JSON file, in their order."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table with a header.

    Text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(names)
        table.writerows([_no_formula(cell) for cell in row] for row in rows)


def _no_formula(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    with suppress(ValueError):
        float(cell)
        return cell
    return f"'{cell}"


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    """Write keys and values to a YAML file, in their order."""
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as stream:
        YAML().dump(values, stream)

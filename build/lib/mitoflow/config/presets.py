"""Values for ``params.yaml`` that fit a dataset, written into it without touching anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node

from mitoflow.config import params
from mitoflow.core import workspace
from mitoflow.errors import InputError

PRESETS = Path(__file__).with_name("presets.yaml")


@dataclass(frozen=True)
class Value:
    """A scalar of a YAML text: its source, quotes included, and where that stands."""

    source: str
    start: int
    end: int


def apply(path: Path, preset: str, *, name: str, mask_rule: str) -> dict[str, tuple[str, str]]:
    """Write a preset into ``params.yaml``; comments, order, and every other byte stay.

    Parameters
    ----------
    path
        The file.
    preset
        A section of ``presets.yaml``: ``phantom``, ``epfl`` or ``imported``.
    name, mask_rule
        What ``data.name`` and ``data.mask_rule`` become.

    Returns
    -------
    The keys that changed, dotted, each with its old and its new value.

    Raises
    ------
    InputError
        As in `change`.
    """
    values = {key: value.source for key, value in scalars(PRESETS.read_text(encoding="utf-8"), preset).items()}
    return change(path, values | {"data.name": _quoted(name), "data.mask_rule": mask_rule})


def names() -> dict[str, str]:
    """Return the presets, each with what is said about it beside its name."""
    lines = PRESETS.read_text(encoding="utf-8").splitlines()
    sections = (line.partition("#") for line in lines if line[:1].isalnum())
    return {section.strip().removesuffix(":"): about.strip() for section, _, about in sections}


def choose(path: Path, preset: str) -> dict[str, tuple[str, str]]:
    """Write a preset into ``params.yaml`` and leave the section ``data`` as it is; otherwise as `apply`.

    Raises
    ------
    InputError
        There is no such preset, or as in `change`.
    """
    if preset not in names():
        raise InputError("preset", preset, f"one of {', '.join(names())}", "see `mitoflow preset`")
    values = {key: value.source for key, value in scalars(PRESETS.read_text(encoding="utf-8"), preset).items()}
    return change(path, {key: value for key, value in values.items() if not key.startswith("data.")})


def change(path: Path, values: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Write values, as YAML spells them, to dotted keys of ``params.yaml``; return as `apply` does.

    Raises
    ------
    InputError
        The file lacks a key, is not valid, or is not with the new values. It stays as it was.
    """
    workspace.read_yaml(path, "git has the file as it was")
    text = path.read_bytes().decode()
    present = scalars(text)
    missing = next((key for key in values if key not in present), None)
    if missing:
        raise InputError(f"{path}: {missing}", "no such key", "one to change", "add it, or mend its spelling")
    changed = {key: value for key, value in values.items() if present[key].source != value}
    if changed:
        with workspace.replacing(path) as beside:
            beside.write_bytes(edited(text, changed).encode())
            try:
                params.load(beside)
            except InputError as error:
                where = error.where.replace(str(beside), str(path))
                raise InputError(where, error.found, error.expected, error.remedy) from None
    return {key: (present[key].source, value) for key, value in changed.items()}


def scalars(text: str, section: str = "") -> dict[str, Value]:
    """Return the scalars of a YAML text, or of one of its sections, by their dotted keys."""
    root: Node = YAML(typ="safe", pure=True).compose(text)
    everything = dict(_walk(root, "", text))
    prefix = f"{section}." if section else ""
    return {key.removeprefix(prefix): value for key, value in everything.items() if key.startswith(prefix)}


def _walk(node: Node, key: str, text: str) -> Iterator[tuple[str, Value]]:
    if isinstance(node, MappingNode):
        for name, child in node.value:
            yield from _walk(child, f"{key}.{name.value}" if key else name.value, text)
    else:
        start, end = node.start_mark.index, node.end_mark.index
        yield key, Value(text[start:end], start, end)


def edited(text: str, values: Mapping[str, str]) -> str:
    """Return a YAML text with other values for some dotted keys; a comment after a value keeps its column.

    YAML libraries write a document anew and lose what they do not model; this replaces the values where they stand.
    """
    present = scalars(text)
    for key in sorted(values, key=lambda key: present[key].start, reverse=True):
        old, new, rest = present[key], values[key], text[present[key].end :]
        spaces = len(rest) - len(rest.lstrip(" "))
        if rest[spaces : spaces + 1] == "#":
            rest = " " * max(1, spaces + len(old.source) - len(new)) + rest[spaces:]
        text = text[: old.start] + new + rest
    return text


def _quoted(name: str) -> str:
    """Return a YAML scalar that reads as the text ``name``, with quotes where it needs them."""
    return name if YAML(typ="safe", pure=True).load(name) == name else json.dumps(name)

"""Values for ``params.yaml`` that fit a dataset, written into it without touching anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node

from mitoflow.config import params
from mitoflow.config.sections import dotted
from mitoflow.core import files
from mitoflow.errors import InputError

PRESETS = Path(__file__).with_name("presets.yaml")


@dataclass(frozen=True)
class Value:
    """A scalar of a YAML text: its source, quotes included, and where that stands."""

    source: str
    start: int
    end: int


def names() -> dict[str, str]:
    """Return the presets, each with what it is for."""
    return {name: preset["about"] for name, preset in _presets().items()}


def load(preset: str) -> params.Params:
    """Return the parameters of a preset: the defaults, and what the preset says in their place.

    Raises
    ------
    InputError
        There is no such preset.
    """
    if preset not in (known := _presets()):
        raise InputError("preset", preset, f"one of {', '.join(known)}", "see `mitoflow preset`")
    differences = {section: values for section, values in known[preset].items() if section != "about"}
    return params.Params.model_validate(_updated(params.Params().model_dump(by_alias=True), differences))


def apply(path: Path, preset: str, **data: str) -> dict[str, tuple[str, str]]:
    """Write a preset into ``params.yaml``; comments, order, and every other byte stay.

    Every key is written, so that nothing stays of a preset that was there before, but for four sections:
    ``instances``, ``registry`` and ``machine`` stay as they are, and of ``data`` only what is given here is written.

    Parameters
    ----------
    path
        The file.
    preset
        A section of ``presets.yaml``.
    data
        The key ``name`` of the section ``data``, with its value; none to keep it.

    Returns
    -------
    The keys that changed, dotted, each with its old and its new value.

    Raises
    ------
    InputError
        There is no such preset, or as in `change`.
    """
    kept = {"data", "instances", "registry", "machine"}
    values = load(preset).model_dump(by_alias=True, exclude=kept) | {"data": data}
    return change(path, {key: _spelled(value) for key, value in dotted(values).items()})


def change(path: Path, values: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Write values, as YAML spells them, to dotted keys of ``params.yaml``; return as `apply` does.

    Raises
    ------
    InputError
        The file lacks a key, is not valid, or is not with the new values. It stays as it was.
    """
    files.read_yaml(path, "git has the file as it was")
    text = path.read_bytes().decode()
    present = scalars(text)
    missing = next((key for key in values if key not in present), None)
    if missing:
        raise InputError(f"{path}: {missing}", "no such key", "one to change", "add it, or correct its spelling")
    changed = {key: value for key, value in values.items() if present[key].source != value}
    if changed:
        with files.replacing(path) as beside:
            beside.write_bytes(edited(text, changed).encode())
            try:
                params.load(beside)
            except InputError as error:
                where = error.where.replace(str(beside), str(path))
                raise InputError(where, error.found, error.expected, error.remedy) from None
    return {key: (present[key].source, value) for key, value in changed.items()}


def scalars(text: str) -> dict[str, Value]:
    """Return the scalars of a YAML text by their dotted keys."""
    root: Node = YAML(typ="safe", pure=True).compose(text)
    return dict(_walk(root, "", text))


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


def _presets() -> dict[str, dict[str, Any]]:
    return files.read_yaml(PRESETS, "install mitoflow again")


def _updated(values: dict[str, Any], differences: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested sections with other values for some keys."""
    deeper = {key: _updated(values[key], each) for key, each in differences.items() if isinstance(each, dict)}
    return {**values, **differences, **deeper}


def _spelled(value: object) -> str:
    """Return a value as YAML spells it; a text has quotes where it would read as something else."""
    if isinstance(value, str) and YAML(typ="safe", pure=True).load(value) == value:
        return value
    return json.dumps(value)

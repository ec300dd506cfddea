"""docs/parameters.md names every parameter, as config and dvc.yaml have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mitoflow.config import params, presets
from mitoflow.config.sections import dotted

ROOT = Path(__file__).parents[2]
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def test_the_document_of_parameters_is_that_of_the_models() -> None:
    text = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    assert [row[:3] + row[4:5] for row in rows] == list(expected())
    assert all(meaning for *_, meaning in rows)


def expected() -> Iterator[list[str]]:
    """Yield key, default, values and stages of each parameter, in the order of params.yaml."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    schema = params.Params.model_json_schema()
    defaults = dotted(params.Params().model_dump(by_alias=True))
    for key in presets.scalars((ROOT / "params.yaml").read_text(encoding="utf-8")):
        readers = [
            name for name, stage in stages.items() if any(f"{key}.".startswith(f"{p}.") for p in stage["params"])
        ]
        default = defaults.pop(key)
        shown = default if isinstance(default, str) else json.dumps(default)
        yield [f"`{key}`", f"`{shown}`", described(field(schema, key), schema), ", ".join(readers) or "none"]
    assert not defaults, "params.yaml lacks keys"


def field(schema: dict[str, Any], key: str) -> dict[str, Any]:
    found = schema
    for name in key.split("."):
        found = resolved(found, schema)["properties"][name]
    return found


def resolved(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part


def described(part: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return the allowed values of a JSON schema, as the document writes them."""
    match part:
        case {"anyOf": choices}:
            return " or ".join(described(choice, schema) for choice in choices)
        case {"enum": names}:
            return ", ".join(f"`{name}`" for name in names)
        case {"const": name}:
            return f"`{name}`"
        case {"type": "boolean"}:
            return "`false`, `true`"
        case {"type": "string"}:
            return "text"
        case {"type": "array", "items": items}:
            return f"list: {described(items, schema)}"
        case {"type": kind}:
            bounds = ", ".join(f"{sign} {part[bound]:g}" for bound, sign in BOUNDS.items() if bound in part)
            return f"{kind} {bounds}".replace("4.29497e+09", "2^32")
    raise ValueError(part)

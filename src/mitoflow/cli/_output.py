"""What commands print: tables, JSON for other programs, and changes of ``params.yaml``."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from mitoflow.errors import printable


def echo(line: str = "", *, err: bool = False) -> None:
    """Print a line; control characters in names from elsewhere become escapes."""
    click.echo(printable(line), err=err)


def shell_word(path: Path | str) -> str:
    """Return a path as a word of a command that a person copies into a shell."""
    text = f"./{path}" if str(path).startswith("-") else str(path)
    if text.isprintable():
        return shlex.quote(text)
    # `echo` prints control characters as escapes, which Bash and Zsh understand in this kind of quotes alone.
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    return character if character.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns of equal width, without a header where it is empty."""
    lines = [header, *rows] if header else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


json_option = click.option("--json", "as_json", is_flag=True, help="JSON, for other programs.")


def print_json(found: object) -> None:
    """Print values as JSON: dataclasses as objects with their fields, times in ISO 8601."""
    click.echo(json.dumps(found, indent=2, default=_plain))


def _plain(value: Any) -> object:
    return value.isoformat() if isinstance(value, datetime) else asdict(value)


def print_changes(changes: Mapping[str, tuple[Any, Any]]) -> None:
    """Print the keys of ``params.yaml`` that changed, with their old and new values."""
    for key, (old, new) in changes.items():
        echo(f"params.yaml: {key} {old} -> {new}")

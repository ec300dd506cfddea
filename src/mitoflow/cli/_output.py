"""What commands print: tables, and changes of ``params.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from mitoflow.errors import printable


def echo(line: str = "", *, err: bool = False) -> None:
    """Print a line; control characters in names from elsewhere become escapes."""
    click.echo(printable(line), err=err)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns of equal width, without a header where it is empty."""
    lines = [header, *rows] if header else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_changes(changes: Mapping[str, tuple[Any, Any]]) -> None:
    """Print the keys of ``params.yaml`` that changed, with their old and new values."""
    for key, (old, new) in changes.items():
        echo(f"params.yaml: {key} {old} -> {new}")

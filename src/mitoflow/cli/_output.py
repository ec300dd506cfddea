"""What commands print: tables, scores with their intervals, and changes of ``params.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mitoflow.evaluation.bootstrap import Interval


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns of equal width, without a header where it is empty."""
    lines = [header, *rows] if header else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_changes(changes: Mapping[str, tuple[Any, Any]]) -> None:
    """Print the keys of ``params.yaml`` that changed, with their old and new values."""
    for key, (old, new) in changes.items():
        click.echo(f"params.yaml: {key} {old} -> {new}")


def format_score(score: Interval | None) -> str:
    """Return ``value [low, high]``; an empty string for a score that is missing."""
    return f"{score.value:.4f} [{score.low:.4f}, {score.high:.4f}]" if score else ""

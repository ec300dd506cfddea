"""A hook of MkDocs: puts the `--help` text of every command into the page of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from mitoflow.cli import mitoflow

MARK = "<!-- help texts -->"
WIDTH = 80  # characters of a line, as in a terminal


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark in a page, if it has one."""
    return markdown.replace(MARK, "\n".join(_sections(mitoflow, None)))


def _sections(command: click.Command, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(
        command, info_name=command.name, parent=parent, max_content_width=WIDTH, terminal_width=WIDTH
    )
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            if subcommand:
                yield from _sections(subcommand, context)

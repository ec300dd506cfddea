"""What several commands share: their order in ``--help`` and the option ``--model``."""

from __future__ import annotations

import click

model_option = click.option(
    "--model", "wanted", metavar="MODEL", help="A version, an alias, a run, a .keras file or pretrained."
)


class OrderedGroup(click.Group):
    """A group that lists its commands in the order in which they were added, not by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)

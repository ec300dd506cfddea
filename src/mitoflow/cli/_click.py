"""What several commands share: their order in ``--help``, the option ``--model``, and those of instances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

model_option = click.option(
    "--model", "wanted", metavar="MODEL", help="A version, an alias, a run, a .keras file or pretrained."
)


class NumberRange(click.FloatRange):
    """A range of numbers; ``nan``, which no comparison excludes, and ``inf`` are in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; a usage error where it is none, or out of the range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no number.", param, ctx)
        return number


def instance_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each key of the section ``instances`` of params.yaml."""
    options = (
        click.option(
            "--smallest-um3",
            type=NumberRange(min=0),
            metavar="SIZE",
            help="Smaller objects do not count, in cubic micrometres; in place of params.yaml, as the next two.",
        ),
        click.option(
            "--smallest-voxels",
            type=click.IntRange(min=0),
            metavar="N",
            help="The same where the voxel size is unknown, in voxels.",
        ),
        click.option(
            "--neck",
            type=NumberRange(0, 1, max_open=True),
            metavar="RATIO",
            help="Split an object where it is thinner than RATIO times the thinner part; 0 splits nothing.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


class OrderedGroup(click.Group):
    """A group that lists its commands in the order in which they were added, not by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)

"""Commands for the champion, the registered model that the others use: promote, roll back, list the history."""

from __future__ import annotations

import click

from mitoflow.cli._output import echo, json_option, print_json, print_table
from mitoflow.errors import InputError


@click.command()
@click.argument("version", type=click.IntRange(min=1))
@click.option("--force", is_flag=True, help="Whatever the gate says; recorded with who and why, so it needs a reason.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the history.")
def promote(version: int, force: bool, reason: str) -> None:
    """Make VERSION the champion, if promotion.yaml allows it."""
    if force and not reason:
        raise click.UsageError("--force needs --reason TEXT")
    from mitoflow.tracking import registry

    verdict = registry.promote(version, force=force, reason=reason)
    if not verdict.promoted:
        expected = "a version that beats the champion" if verdict.champion else "a version that passes the gate"
        remedy = "give --force and --reason to promote it all the same"
        raise InputError(f"version {version}", verdict.reason, expected, remedy)
    echo(f"version {version} is the champion: {verdict.reason}")
    for check in verdict.checks:
        echo(str(check))


@click.command()
@click.option("--reason", default="", metavar="TEXT", help="Why, for the history.")
def rollback(reason: str) -> None:
    """Make the previous champion the champion again."""
    from mitoflow.tracking import registry

    before, now = registry.rollback(reason)
    echo(f"version {now} is the champion again, in place of {before}")


@click.command()
@json_option
def history(as_json: bool) -> None:
    """List who made which version the champion, and why."""
    from mitoflow.tracking import registry

    promotions = registry.history()
    if as_json:
        print_json(promotions)
        return
    rows = [
        [
            str(entry.number),
            f"{entry.when.astimezone():%Y-%m-%d %H:%M}",
            entry.who,
            f"{entry.over or 'none'} -> {entry.version}",
            entry.how if entry.counts else "too late",
            entry.why,
        ]
        for entry in promotions
    ]
    if rows:
        print_table(["number", "when", "who", "champion", "how", "why"], rows)
    else:
        echo("no promotions yet: `dvc repro` makes a version, and the gate decides about it")

"""The command that restores what a version was made from."""

from __future__ import annotations

from pathlib import Path

import click

from mitoflow.cli._output import echo, shell_word
from mitoflow.errors import InputError


@click.command()
@click.argument("version")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
def checkout(version: str, folder: Path | None) -> None:
    """Restore code, data and parameters of VERSION.

    VERSION is a number or an alias. FOLDER becomes a git worktree with the commit of the version, the changes that were
    not committed then, the data, and the version that its training started from, if any; `dvc repro` in it trains the
    version again. Without FOLDER it is beside this checkout.
    """
    from mitoflow.tracking import registry, version_checkout

    number = registry.find_version(version)
    if number is None:
        raise InputError("VERSION", version, "a number or an alias", "`mitoflow models` lists them")
    here = Path.cwd()
    restored = version_checkout.check_out(number, folder or here.with_name(f"{here.name}-version-{number}"))
    changed = " with the changes that were not committed" if restored.changed else ""
    echo(f"{restored.project}: version {number}, commit {restored.commit[:8]}{changed}")
    if restored.initial:
        echo(f"its training starts from {restored.initial}, which train.init_from in its params.yaml names")
    if restored.threads:
        echo(f"the same weights, bit for bit, need {restored.threads} threads: TF_NUM_INTRAOP_THREADS")
    follow = f"cd {shell_word(restored.project)} && make repro"
    echo(f"next: {follow}, which installs the locked dependencies of that version")

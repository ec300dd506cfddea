"""``mitoflow data``: datasets into ``data/``, and damage in DVC's cache."""

from __future__ import annotations

import inspect
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mitoflow.cli._click import OrderedGroup
from mitoflow.cli._output import print_changes, print_table
from mitoflow.errors import InputError

if TYPE_CHECKING:
    from mitoflow.data.installing import Installed

MASK_RULES = click.Choice(["auto", "nonzero", "half"])


class DatasetGroup(OrderedGroup):
    """Has a command for each registered dataset, before those that are added to it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        from mitoflow.data.datasets import DATASETS

        return [*DATASETS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of this name."""
        from mitoflow.data.datasets import DATASETS

        return _dataset_command(cmd_name) if cmd_name in DATASETS else super().get_command(ctx, cmd_name)


def _dataset_command(name: str) -> click.Command:
    from mitoflow.data.datasets import DATASETS

    dataset = DATASETS[name]
    unless = "Do nothing where data/ holds files; never replace another dataset."
    options = [click.Option(["--if-missing"], is_flag=True, help=unless)]
    if dataset.files:
        instead = f"Take {', '.join(dataset.files)} from DIR."
        path = click.Path(path_type=Path)
        options.insert(0, click.Option(["--from", "source"], type=path, metavar="DIR", help=instead))
    return click.Command(name, params=[*options], callback=partial(_install, name), help=inspect.getdoc(dataset))


def _install(name: str, if_missing: bool, source: Path | None = None) -> None:
    from mitoflow.data import installing

    installed = installing.install_named(name, source, if_missing=if_missing)
    if installed:
        _report(installed)
    else:
        click.echo("data/ holds files: nothing to do")


@click.group(cls=DatasetGroup)
def data() -> None:
    """Put a dataset into data/, under DVC.

    The preset that fits it goes into params.yaml. What is there now stays in DVC's cache, and the command
    that brings it back is printed.
    """


@data.command("import")
@click.option("--images", multiple=True, required=True, metavar="PATH", help="EM images, 8- or 16-bit TIFF.")
@click.option("--masks", multiple=True, required=True, metavar="PATH", help="Their masks.")
@click.option("--test-images", multiple=True, metavar="PATH", help="Images that test, and never train.")
@click.option("--test-masks", multiple=True, metavar="PATH", help="Their masks.")
@click.option("--consecutive", is_flag=True, help="The files are the slices of one stack, in the order of their names.")
@click.option("--mask-rule", type=MASK_RULES, default="auto", show_default=True, help="Values that are mitochondrion.")
@click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.25,
    show_default=True,
    help="Share of each stack that tests, at its end in z, where there are no test images.",
)
@click.option(
    "--gap", type=click.IntRange(min=0), default=4, show_default=True, help="Slices left out before that share."
)
@click.option("--name", default="imported", show_default=True, help="What to call the dataset.")
def data_import(images: Sequence[str], masks: Sequence[str], **options: Any) -> None:
    """Take your own stacks: TIFF files of one page or many.

    PATH is a file, a folder or a quoted glob, and may be given several times. A mask has the file name of its image;
    where no name is shared, the first image goes with the first mask and so on, which the command reports.
    """
    from mitoflow.data import installing

    _report(installing.install_own(images, masks, **options))


@data.command("verify")
@click.argument("store", type=click.Path(path_type=Path), required=False)
@click.option("--delete", is_flag=True, help="Delete them, so that `dvc pull` or `dvc push` brings them whole.")
def data_verify(store: Path | None, delete: bool) -> None:
    """Hash every object in DVC's cache, and name those that are damaged.

    STORE is another cache, or a remote that is a folder. DVC itself trusts what is there.
    """
    from mitoflow.data import dvc_cache

    if store is None:
        command = [sys.executable, "-m", "dvc", "cache", "dir"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            message = (done.stderr.strip().splitlines() or ["an error"])[-1].removeprefix("ERROR: ")
            raise InputError(
                Path.cwd(), f"no cache of DVC: {message}", "a project under DVC", "name STORE, or `dvc init`"
            )
        store = Path(done.stdout.strip())
    found = list(dvc_cache.damaged(store))
    for damage in found:
        click.echo(damage, err=True)
        if delete:
            damage.delete()
    if found and not delete:
        remedy = "`--delete` them; then `dvc pull`, or `dvc push` from a clone that has them whole"
        raise InputError(store, f"{len(found)} damaged objects", "none", remedy)
    if found:
        click.echo(f"{store}: {len(found)} damaged objects deleted; now `dvc pull`, or `dvc push` from a whole clone")
        return
    click.echo(f"{store}: every object matches its hash")


def _report(installed: Installed) -> None:
    findings = installed.findings
    click.echo(f"data/ holds {installed.name}, {findings.bit_depth} bits; masks read by the rule {findings.mask_rule}")
    rows = []
    for part, facts in findings.facts.items():
        sizes = {f"{x} x {y}" for _, y, x in (stack["shape"] for stack in facts["stacks"])}
        size = sizes.pop() if len(sizes) == 1 else f"{len(sizes)} sizes"
        rows.append([part, str(len(facts["stacks"])), str(facts["slices"]), size, f"{facts['foreground']:.2%}"])
    print_table(["part", "files", "slices", "size", "mitochondria"], rows)
    for note in installed.notes:
        click.echo(note)
    print_changes(installed.changed)
    if installed.replaced:
        archive = shlex.quote(os.path.relpath(installed.replaced))
        click.echo(f"to go back to the data before: tar xf {archive} && dvc checkout data.dvc")
    click.echo("next: git add data.dvc params.yaml .gitignore && dvc repro")

"""``mitoflow data``: datasets into ``data/``, and damage in DVC's cache."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mitoflow.cli._click import NumberRange, OrderedGroup
from mitoflow.cli._output import echo, print_changes, print_table, shell_word
from mitoflow.errors import InputError

if TYPE_CHECKING:
    from mitoflow.config.params import MaskRule
    from mitoflow.data.installing import Installed
    from mitoflow.data.set_descriptions import SetDescription
    from mitoflow.data.validation import Findings

MASK_RULES = click.Choice(["auto", "nonzero", "half", "partial"])
OVERWRITE = "Where a set is added: replace the one of its name."


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
    options = [
        click.Option(["--add"], is_flag=True, help="Keep the sets that are there, and add this one."),
        click.Option(["--overwrite"], is_flag=True, help=OVERWRITE),
        click.Option(["--if-missing"], is_flag=True, help=unless),
    ]
    if dataset.files:
        instead = f"Take {', '.join(dataset.files)} from DIR."
        path = click.Path(path_type=Path)
        options.insert(0, click.Option(["--from", "source"], type=path, metavar="DIR", help=instead))
    return click.Command(name, params=[*options], callback=partial(_install, name), help=inspect.getdoc(dataset))


def _install(name: str, if_missing: bool, add: bool, overwrite: bool, source: Path | None = None) -> None:
    from mitoflow.data import installing

    if if_missing and add:
        raise InputError("--add", "--if-missing too", "one of them", "leave one out")
    installed = installing.install_named(name, source, if_missing=if_missing, add=add, overwrite=overwrite)
    if installed:
        _report(installed)
    else:
        echo("data/ holds files: nothing to do")


@click.group(cls=DatasetGroup)
def data() -> None:
    """Put sets of images and masks into data/, under DVC.

    The preset that fits them goes into params.yaml. What is there now stays in DVC's cache, and the command
    that brings it back is printed.
    """


def _with_files(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that describe a set of one's own files."""
    options = [
        click.option(
            "--images",
            multiple=True,
            required=True,
            metavar="PATH",
            help="EM images of 8 or 16 bits.",
        ),
        click.option("--masks", multiple=True, required=True, metavar="PATH", help="Their masks."),
        click.option("--test-images", multiple=True, metavar="PATH", help="Images that test, and never train."),
        click.option("--test-masks", multiple=True, metavar="PATH", help="Their masks."),
        click.option("--name", default="imported", show_default=True, help="What to call the set."),
        click.option("--voxel-size", metavar="Z,Y,X", help="Nanometres, where the files do not say."),
        click.option("--tissue", default="", metavar="TEXT", help="The tissue, and how it was imaged."),
        click.option("--terms", default="", metavar="TEXT", help="On which terms the data may be used."),
        click.option(
            "--consecutive", is_flag=True, help="The files are the slices of one stack, in the order of their names."
        ),
        click.option(
            "--unrelated", is_flag=True, help="No slice is the neighbour of another, in a file or in several."
        ),
        click.option("--instances", is_flag=True, help="Each mitochondrion has a number of its own in the masks."),
        click.option(
            "--mask-rule",
            type=MASK_RULES,
            default="auto",
            show_default=True,
            help="Values that are mitochondrion; partial: all but 0 and 128, which marks what nobody looked at.",
        ),
        click.option(
            "--test-fraction",
            type=NumberRange(0, 1, max_open=True),
            default=0.25,
            show_default=True,
            help="Share of each stack that tests, at its end in z, unless there are test images; 0: none.",
        ),
        click.option(
            "--gap", type=click.IntRange(min=0), default=4, show_default=True, help="Slices left out before that share."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@data.command("import")
@_with_files
def data_import(**options: Any) -> None:
    """Take your own stacks in place of what is there: files of any format that `predict` reads.

    PATH is a file, a folder, a quoted glob or an address (https:// or s3://), and may be given several times. A mask
    has the file name of its image; where no name is shared, the first image goes with the first mask and so on, which
    the command reports.
    """
    _install_own(**options)


@data.command("add")
@_with_files
@click.option("--overwrite", is_flag=True, help=OVERWRITE)
def data_add(**options: Any) -> None:
    """Add your own stacks as one more set, which trains and is evaluated beside those that are there.

    The options are those of `mitoflow data import`. `mitoflow data epfl --add` adds a named dataset.
    """
    _install_own(**options, add=True)


def _install_own(
    images: Sequence[str],
    masks: Sequence[str],
    voxel_size: str | None,
    tissue: str,
    terms: str,
    mask_rule: MaskRule,
    unrelated: bool,
    instances: bool,
    **options: Any,
) -> None:
    from mitoflow.data import installing
    from mitoflow.data.set_descriptions import SetDescription
    from mitoflow.io import spacing

    description = SetDescription(
        voxel_size=spacing.parse(voxel_size) if voxel_size else {},
        tissue=tissue,
        terms=terms,
        mask_rule=mask_rule,
        unrelated=unrelated,
        instances=instances,
    )
    _report(installing.install_own(images, masks, description=description, **options))


@data.command("list")
def data_list() -> None:
    """Print the sets in data/, with what is known of each; reads every slice."""
    from mitoflow.config import params
    from mitoflow.data import set_descriptions, validation

    folder, near_duplicate = Path("data"), params.load().validate_.near_duplicate
    sets = set_descriptions.read_sets(folder)
    findings = validation.check_dataset(folder, near_duplicate)
    for error in findings.errors:
        raise InputError(error.where, error.found, error.expected, error.remedy)
    _print_sets(findings, sets)


@data.command("verify")
@click.argument("store", type=click.Path(path_type=Path), required=False)
@click.option("--delete", is_flag=True, help="Delete them, so that `dvc pull` or `dvc push` brings them whole.")
def data_verify(store: Path | None, delete: bool) -> None:
    """Hash every object in DVC's cache, and name those that are damaged.

    STORE is another cache, or a remote that is a folder. DVC itself trusts what is there.
    """
    from mitoflow.core import process
    from mitoflow.data import dvc_cache

    if store is None:
        command = [sys.executable, "-m", "dvc", "cache", "dir"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            none = f"no cache of DVC: {process.failure(done.stderr)}"
            raise InputError(Path.cwd(), none, "a project under DVC", "name STORE, or `dvc init`")
        store = Path(done.stdout.strip())
    found = list(dvc_cache.damaged(store))
    for damage in found:
        echo(str(damage), err=True)
        if delete:
            damage.delete()
    if found and not delete:
        remedy = "`--delete` them; then `dvc pull`, or `dvc push` from a clone that has them whole"
        raise InputError(store, f"{len(found)} damaged objects", "none", remedy)
    if found:
        echo(f"{store}: {len(found)} damaged objects deleted; now `dvc pull`, or `dvc push` from a whole clone")
        return
    echo(f"{store}: every object matches its hash")


def _report(installed: Installed) -> None:
    echo(f"data/ holds {', '.join(installed.sets)}")
    _print_sets(installed.findings, installed.sets)
    for note in installed.notes:
        echo(note)
    print_changes(installed.changed)
    if installed.replaced:
        archive = shell_word(os.path.relpath(installed.replaced))
        echo(f"to go back to the data before: tar xf {archive} && dvc checkout data.dvc")
    echo("next: git add data.dvc params.yaml .gitignore && dvc repro")


def _print_sets(findings: Findings, sets: Mapping[str, SetDescription]) -> None:
    """Print a row for each part of each set, then what is known of each set."""
    rows = []
    for name, conventions in findings.conventions.items():
        spacing = conventions.spacing
        voxel = " x ".join(f"{spacing[axis]:g}" if axis in spacing else "?" for axis in "zyx") if spacing else "unknown"
        read = f"{conventions.bit_depth} bits, masks {conventions.mask_rule}"
        for part, facts in findings.facts.items():
            if of_set := facts["sets"].get(name):
                sizes = {tuple(stack["shape"][1:]) for stack in facts["stacks"] if stack["dataset"] == name}
                size = "{1} x {0}".format(*sizes.pop()) if len(sizes) == 1 else f"{len(sizes)} sizes"
                share = f"{of_set['foreground']:.2%}"
                rows.append([name, part, str(of_set["files"]), str(of_set["slices"]), size, voxel, read, share])
    print_table(["set", "part", "files", "slices", "size", "voxel, nm (z y x)", "read as", "mitochondria"], rows)
    for name, described in sets.items():
        unrelated = "unrelated slices" if described.unrelated else ""
        instances = "a number for each mitochondrion" if described.instances else ""
        known = [text for text in (described.tissue, unrelated, instances, described.terms) if text]
        if known:
            echo(f"{name}: {'; '.join(known)}")

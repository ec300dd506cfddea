"""Commands for registered and pretrained models: list, compare, trace, register, release."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mitoflow.cli._output import echo, json_option, print_json, print_table
from mitoflow.errors import InputError

if TYPE_CHECKING:
    from mitoflow.evaluation.bootstrap import Interval
    from mitoflow.evaluation.report import Comparison  # imports matplotlib


@click.command()
@click.option("--pretrained", "shipped", is_flag=True, help="The trained models that ship with the project instead.")
@json_option
def models(shipped: bool, as_json: bool) -> None:
    """List the versions of the registered model."""
    if shipped:
        _list_pretrained(as_json)
        return
    from mitoflow.tracking import registered_model, registry

    listed = registry.models()
    if as_json:
        print_json(listed)
        return
    by_set = ["Dice by set"] if any(row.sets for row in listed) else []
    rows = [
        [
            str(row.version),
            " ".join(row.aliases),
            str(row.dice or ""),
            str(row.iou or ""),
            *(", ".join(f"{name} {interval.value:.4f}" for name, interval in row.sets.items()) for _ in by_set),
            row.test_hash[:8],
            f"{row.created.astimezone():%Y-%m-%d %H:%M}",
            row.reason,
        ]
        for row in listed
    ]
    if rows:
        print_table(["version", "alias", "Dice", "IoU", *by_set, "test data", "created", "verdict"], rows)
    else:
        remedy = "`dvc repro` makes one, or `mitoflow register` after `dvc pull`"
        echo(f"no versions of {registered_model.name()} yet: {remedy}")


def _list_pretrained(as_json: bool) -> None:
    from mitoflow.tracking import pretrained

    listed = []
    for model in pretrained.models():
        scores = {score: model.evaluation.interval(score) for score in ("dice", "iou")}
        made = model.lineage["data"]
        listed.append({"name": model.name, **scores, "data": made["name"], "licence": made["licence"]})
    if as_json:
        print_json(listed)
    elif listed:
        header = ["name", "Dice", "IoU", "data", "licence of the data"]
        print_table(header, [[str(value) for value in row.values()] for row in listed])
    else:
        echo("no pretrained models here: `mitoflow release` makes one of a finished pipeline")


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page, with pictures, as well.")
@json_option
def compare(a: str, b: str, html: Path | None, as_json: bool) -> None:
    """Compare two models: parameters, scores, slices.

    A and B are versions, aliases, models:/NAME/VERSION, runs, git revisions, DVC experiments, pretrained,
    pretrained:NAME or .keras files.
    Models that were not evaluated on the same slices are evaluated on those of data/test, by the masks that predict
    makes of them. The intervals of the differences are paired: both models are scored on the same draws of the same
    slices.
    """
    if html and html.suffix != ".html":
        raise InputError("--html", html, "a name that ends with .html", "take another name")
    from mitoflow.evaluation import report
    from mitoflow.stages.paths import CONVENTIONS, DATA
    from mitoflow.tracking import model_comparison

    def notify(line: str) -> None:
        echo(line, err=True)

    compared = model_comparison.compare(a, b, DATA / "test", CONVENTIONS, pictures=html is not None, notify=notify)
    if html:
        report.write_comparison(html, compared)
    if as_json:
        print_json(_plain_comparison(compared))
        return
    _print_comparison(compared)
    if html:
        echo(f"page: {html}")


def _plain_comparison(compared: Comparison) -> dict[str, object]:
    """Return a comparison without its pictures, with names in place of positions."""

    def by_name(scores: Mapping[str, tuple[Interval, Interval, Interval | None]]) -> dict[str, object]:
        return {name: dict(zip(("a", "b", "difference"), each, strict=True)) for name, each in scores.items()}

    return {
        **dict(zip("ab", compared.names, strict=True)),
        "scores": by_name(compared.scores),
        "sets": {name: by_name(of_set) for name, of_set in compared.sets.items()},
        "parameters": {key: dict(zip("ab", values, strict=True)) for key, values in compared.params.items()},
        "wrong_pixels": [dict(zip(("stack", "z", "a", "b"), each, strict=True)) for each in compared.wrong],
        "notes": compared.notes,
    }


def _print_comparison(compared: Comparison) -> None:
    scores = dict(compared.scores)
    for dataset, of_set in compared.sets.items():
        scores |= {f"{name}, {dataset}": each for name, each in of_set.items()}
    rows = [
        [name, str(first), str(second), f"{gain:+.4f}" if gain else "–"]
        for name, (first, second, gain) in scores.items()
    ]
    print_table(["test", *compared.names, "difference, paired"], rows)
    if compared.params:
        echo()
        print_table(["parameter", *compared.names], [[key, *values] for key, values in compared.params.items()])
    if compared.wrong:
        echo()
        wrong = [[stack, *map(str, figures)] for stack, *figures in compared.wrong]
        print_table(["differ most on", "z", *(f"wrong pixels, {name}" for name in compared.names)], wrong)
    for note in compared.notes:
        echo(note)


@click.command()
@click.argument("what", metavar="MODEL|FILE")
@json_option
def lineage(what: str, as_json: bool) -> None:
    """Show where a model or a mask comes from.

    MODEL is what `predict --model` takes: a version, an alias, a run, models:/NAME/VERSION, pretrained:NAME or a .keras
    file.
    """
    if what.rstrip("/").lower().endswith((".tif", ".tiff", ".zarr")):
        from mitoflow.io import ome

        facts = ome.read_lineage(Path(what))
    else:
        from mitoflow.tracking import model_lookup

        facts = model_lookup.origin(what)
    if as_json:
        print_json(facts)
    else:
        print_table([], [[key, value] for key, value in facts.items()])


@click.command()
@click.option("--pretrained", "name", metavar="NAME", help="The model in pretrained/NAME instead.")
def register(name: str | None) -> None:
    """Register a model that was pulled, not computed."""
    if name:
        from mitoflow.tracking import registration

        echo(registration.outcome(registration.register_pretrained(name)))
        return
    from mitoflow.stages import evaluate

    evaluate.register()


def _plain_name(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    """Return the name of a folder in ``pretrained/``, after a check that it is one."""
    if name is not None and not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise InputError("--name", repr(name), "letters, digits and . _ + -", "change it")
    return name


@click.command()
@click.option("--licence", metavar="TEXT", help="The terms of your own data, for the model card.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Calibration file from the benchmark leave-one-set-out; with it, predict states the Dice to expect.",
)
@click.option("--name", callback=_plain_name, help="What it is called; without it as the data.")
def release(licence: str | None, calibration: Path | None, name: str | None) -> None:
    """Put the trained model into pretrained/, with its card.

    A model with a calibration finds the scale of a stack by itself, and says which Dice it expects.
    """
    from mitoflow.stages import release

    model = release.main(licence, calibration, name)
    dice = model.evaluation.interval("dice")
    echo(f"{model.folder}: Dice {dice}; look at {model.folder / 'MODEL_CARD.md'}")

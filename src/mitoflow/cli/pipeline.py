"""Commands around ``dvc repro``: parameters before it, results after it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from mitoflow.cli._output import echo, print_changes, print_table
from mitoflow.errors import InputError


@click.command()
@click.argument("name", required=False)
def preset(name: str | None) -> None:
    """Write a preset into params.yaml, or list them.

    What names the data stays as it is.
    """
    from mitoflow.config import presets

    if name is None:
        print_table(["preset", ""], list(presets.names().items()))
        return
    print_changes(presets.apply(Path("params.yaml"), name))


@click.command()
@click.argument("stage", required=False)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change params.yaml first; no VALUE, no change."
)
@click.option("--pull", is_flag=True, help="Where data/ is missing, take it from the remote of DVC first.")
def repro(stage: str | None, changes: Sequence[str], pull: bool) -> None:
    """Run `dvc repro`, as the entry points of MLproject do."""
    from mitoflow.config import presets
    from mitoflow.stages.paths import DATA

    values = {key: value for key, _, value in (change.partition("=") for change in changes) if value}
    print_changes(presets.change(Path("params.yaml"), values))
    missing = pull and not DATA.exists()
    command = [sys.executable, "-m", "dvc", "repro", *(["--pull"] if missing else []), *([stage] if stage else [])]
    raise SystemExit(subprocess.run(command, check=False).returncode)


@click.command()
@click.option("--dask", metavar="ADDRESS", help="Fit trials on the workers of a Dask scheduler: tcp://host:8786.")
def tune(dask: str | None) -> None:
    """Run `dvc repro tune`, on other machines if there are some.

    An interrupted study resumes, whichever machine fits its trials.
    """
    if dask:
        from mitoflow.core import cluster

        with cluster.connected(dask):  # a wrong address fails here, before DVC starts
            os.environ[cluster.DASK] = dask
    raise SystemExit(subprocess.run([sys.executable, "-m", "dvc", "repro", "tune"], check=False).returncode)


@click.command()
def summary() -> None:
    """Show the scores of the model, and whether it was promoted."""
    from mitoflow.core import files, provenance
    from mitoflow.evaluation import metrics
    from mitoflow.evaluation.bootstrap import Interval
    from mitoflow.stages.paths import EVALUATE_REPORTS, MODEL
    from mitoflow.tracking import registry

    path = EVALUATE_REPORTS / "metrics.json"
    remedy, protocols = "run `dvc repro` or `dvc pull`", ("patch_wise", "whole_slice")
    if not MODEL.is_file():
        raise InputError(MODEL, "no such file", "a measured model", remedy)
    measured = files.read_json(path, remedy, protocols)
    columns = {
        "whole-slice": measured["whole_slice"] | measured,  # boundaries and instances: whole-slice only
        "patch-wise": measured["patch_wise"],
        **({"single slices": measured["single_slice"]} if "single_slice" in measured else {}),
        **{name: each["whole_slice"] | each for name, each in measured.get("sets", {}).items()},
    }
    rows = [
        [score.title, *(str(Interval.from_dict(name, figures) or "–") for figures in columns.values())]
        for name, score in metrics.SCORES.items()
    ]
    print_table(["test", *columns], rows)
    try:
        digest = provenance.file_sha256(MODEL)
        same = [row for row in registry.models() if row.model_sha256 == digest]
        lines = [f"version {row.version} ({', '.join(row.aliases) or 'no alias'}): {row.reason}" for row in same]
        echo(f"registered model: {lines[-1] if lines else 'none yet, see `mitoflow sync` and `mitoflow register`'}")
        for check in same[-1].verdict.checks if same and same[-1].verdict else ():
            echo(f"promotion.yaml: {check}")
    except InputError as error:
        echo(f"registered model: {error}")
    echo(f"report: {EVALUATE_REPORTS / 'report.html'}; runs and versions: `make ui`")

"""The ``mitoflow`` command: one module per family of commands. Slow imports are inside the commands that need them."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mitoflow import __version__
from mitoflow.cli import checkout, data, export, models, pipeline, predict, promotion, serve, tracking
from mitoflow.cli._click import OrderedGroup
from mitoflow.core import process
from mitoflow.errors import InputError, fail, run_as_command


def main() -> None:
    """Run the command; an error of the user is one line on stderr and exit code 2."""
    process.silence_libraries()
    run_as_command(_run)


def _run() -> None:
    try:
        mitoflow(prog_name="mitoflow", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        raise SystemExit(2) from None
    except click.UsageError as error:
        fail(_explain(error))
    except click.Abort:
        raise SystemExit(130) from None


def _explain(error: click.UsageError) -> Exception:
    path = error.ctx.command_path if error.ctx else "mitoflow"
    command, remedy = path.removeprefix("mitoflow").strip() or "command", f"see `{path} --help`"
    if isinstance(error, click.exceptions.NoSuchCommand) and error.ctx and isinstance(error.ctx.command, click.Group):
        *others, last = error.ctx.command.list_commands(error.ctx)
        return InputError(command, error.command_name, f"{', '.join(others)} or {last}", remedy)
    message = " ".join(error.format_message().split()).rstrip(".")
    return click.UsageError(f"{command}: {message}; {remedy}")


#: Commands that work in any folder. The others act on the project in the current one.
ANYWHERE = ("predict", "suggest", "score", "measure", "groups", "app", "serve", "lineage")


@click.group(cls=OrderedGroup)
@click.version_option(__version__)
@click.pass_context
def mitoflow(context: click.Context) -> None:
    """From electron-microscopy stacks with mitochondria masks to a registered, promoted U-Net.

    The pipeline itself is run by DVC: `dvc repro`. Commands act on the project in the current folder; predict,
    suggest, score, measure, groups, app, serve and lineage work in any folder, with the pretrained models.
    """
    needs_project = context.invoked_subcommand not in ANYWHERE and "--help" not in sys.argv
    if needs_project and not Path("params.yaml").is_file():
        raise InputError(Path.cwd(), "no params.yaml", "a mitoflow project", "run this in the folder of a checkout")


#: In the order of ``--help``, which is that of a project's life.
COMMANDS = (
    data.data,
    pipeline.preset,
    pipeline.repro,
    pipeline.tune,
    pipeline.summary,
    tracking.ui,
    models.models,
    models.compare,
    promotion.promote,
    promotion.rollback,
    promotion.history,
    predict.predict,
    predict.suggest,
    serve.serve,
    predict.measure,
    predict.groups,
    predict.score,
    serve.app,
    models.lineage,
    checkout.checkout,
    models.register,
    export.export,
    models.release,
    tracking.sync,
    tracking.relocate,
)
for command in COMMANDS:
    mitoflow.add_command(command)

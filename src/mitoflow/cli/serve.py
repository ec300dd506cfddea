"""Commands that serve a model until they are stopped: over HTTP, and as a page in the browser."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from mitoflow.cli._click import model_option
from mitoflow.cli._output import echo


@click.command()
@model_option
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where to listen; by default for this machine alone."
)
@click.option("--port", type=click.IntRange(1, 65535), default=5001, show_default=True)
@click.option("--largest", type=click.IntRange(min=1), default=100, show_default=True, help="MiB of a request.")
def serve(wanted: str | None, host: str, port: int, largest: int) -> None:
    """Answer HTTP requests with masks: JSON or TIFF to /invocations.

    The model is the champion, or the pretrained one where no champion was trained on real tissue.
    """
    from mitoflow.apps import serving

    serving.serve(wanted, host, port, largest * 2**20)


@click.command()
@model_option
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 for other machines too.")
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True)
@click.option("--largest", type=click.IntRange(min=1), default=500, show_default=True, help="MiB of a file.")
def app(wanted: str | None, host: str, port: int, largest: int) -> None:
    """Open a page that shows masks of dropped images.

    The model is the champion, or the pretrained one where no champion was trained on real tissue.
    """
    from mitoflow.tracking import model_lookup

    model = model_lookup.find(wanted)  # a wrong model ends the command, not the page
    if model.warning:
        echo(model.warning, err=True)
    page = str(Path(__file__).parents[1] / "apps" / "page.py")
    options = {
        "server.address": host,
        "server.port": port,
        "server.maxUploadSize": largest,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "runner.magicEnabled": "false",
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none",  # a traceback is for the log
        "browser.gatherUsageStats": "false",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    echo(f"http://{host}:{port}")
    command = [sys.executable, "-m", "streamlit", "run", page, *flags, "--", *([wanted] if wanted else [])]
    os.execv(sys.executable, command)

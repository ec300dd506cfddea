"""Commands that serve a model until they are stopped: over HTTP, and as a page in the browser."""

from __future__ import annotations

import click

from mitoflow.cli._click import model_option


@click.command()
@model_option
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where to listen; by default for this machine alone."
)
@click.option("--port", type=click.IntRange(1, 65535), default=5001, show_default=True)
@click.option("--largest", type=click.IntRange(min=1), default=100, show_default=True, help="Largest request, in MiB.")
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
@click.option("--largest", type=click.IntRange(min=1), default=500, show_default=True, help="Largest upload, in MiB.")
def app(wanted: str | None, host: str, port: int, largest: int) -> None:
    """Serve a page that shows masks of dropped images.

    The model is the champion, or the pretrained one where no champion was trained on real tissue.
    """
    from mitoflow.apps.page import server

    server.serve(wanted, host, port, largest * 2**20)

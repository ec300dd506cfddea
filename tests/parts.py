"""Parts that several tests use."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.models import unet

ROOT = Path(__file__).parents[1]
#: Of processes that tests start: they know the tests, too, and leave cores to each other.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_NUM_INTRAOP_THREADS": "1",
}
PATIENCE = 120  # seconds; two workers share the machine


def write_model(folder: Path, settings: Settings, images: np.ndarray) -> None:
    """Write a tiny untrained U-Net in float32 and its settings into a folder, which becomes a project.

    Noise predicts as noise: the threshold lies where half of the images (Z, Y, X) is mitochondrion.
    """
    (folder / "params.yaml").write_text("{}\n")
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    network = unet.build_unet(depth=1, base_width=2, channels=2 * settings.context + 1)
    unet.save_model(network, folder / "unet.keras")
    middle = float(np.median(Predictor(network, settings).probabilities(images)))
    replace(settings, threshold=middle).write(folder / "inference.yaml")


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def until(true: Callable[[], object], why: Callable[[], object] = str) -> None:
    """Wait until a condition holds; `why` returns the message of the error if it does not in time."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, why()
        time.sleep(0.1)


@contextmanager
def scheduling() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a Dask scheduler on loopback; its address is in the file that it writes."""
    scheduler_file = Path("where.json")
    where = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(scheduler_file))
    with started("scheduler", *where) as process:
        until(lambda: scheduler_file.exists() and scheduler_file.read_text().endswith("}"))
        yield process, json.loads(scheduler_file.read_text())["address"]


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a Dask process, and kill it in the end if it still lives."""
    command = [sys.executable, "-m", "dask", *arguments]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()

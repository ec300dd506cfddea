"""Archives that announce far more than they hold are refused before memory is taken for it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

LOAD = """
import resource, sys
import keras
from pathlib import Path
from mitoflow.errors import InputError
from mitoflow.models import unet

unet.load_model(Path("whole.keras"))  # the backend has started, with its threads
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**29, -1))
for path in sys.argv[1:]:
    try:
        unet.load_model(Path(path))
    except InputError as error:
        print(error)
with keras.StatelessScope():  # Keras gives values to all variables that wait for them where one ends
    pass
"""


def rewritten(path: Path, change: Callable[[dict[str, Any]], None], compression: int = zipfile.ZIP_STORED) -> None:
    """Write ``whole.keras`` again with other contents: those of its entries, by name."""
    with zipfile.ZipFile(path.with_name("whole.keras")) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def many_filters(contents: dict[str, Any]) -> None:
    """A convolution to 200 million feature maps: 7.2 GB of weights in float32."""
    config = json.loads(contents["config.json"])
    for layer in config["config"]["layers"]:
        layer.pop("build_config", None)
    config["config"]["layers"][1]["config"]["filters"] = 200_000_000
    contents["config.json"] = json.dumps(config).encode()


def large_config(contents: dict[str, Any]) -> None:
    contents["config.json"] += b" " * 2**28


def large_array(contents: dict[str, Any]) -> None:
    """An array of 2 GiB of which nothing is stored: HDF5 fills it in when it is read."""
    buffer = io.BytesIO(contents["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars"].create_dataset("0", (2**29,), np.float32, chunks=(2**20,))
    contents["model.weights.h5"] = buffer.getvalue()


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a process says that may take half a GiB while it loads the archives."""
    folder = tmp_path_factory.mktemp("archives")
    inputs = keras.Input((None, None, 1))
    network = keras.Model(inputs, keras.layers.Conv2D(1, 3, padding="same", name="conv2d")(inputs))
    network.save(folder / "whole.keras")
    rewritten(folder / "filters.keras", many_filters, zipfile.ZIP_DEFLATED)
    rewritten(folder / "config.keras", large_config)
    rewritten(folder / "packed.keras", large_config, zipfile.ZIP_DEFLATED)
    rewritten(folder / "array.keras", large_array)
    assert (folder / "filters.keras").stat().st_size < 4096
    names = [f"{name}.keras" for name in ("filters", "config", "packed", "array")]
    command = [sys.executable, "-c", LOAD, *names]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "found"),
    [
        (0, "filters.keras: found a network of 2000000000 weights, expected the 10 of its model.weights.h5; "),
        (1, "config.keras: found a config.json of 268"),
        (2, "packed.keras: found an archive that unpacks to 268"),
        (3, "array.keras: found arrays of 2147483652 bytes in a model.weights.h5 of "),
    ],
)
def test_an_archive_that_announces_more_than_it_holds_is_one_line(lines: list[str], place: int, found: str) -> None:
    assert lines[place].startswith(found)
    assert len(lines) == 4

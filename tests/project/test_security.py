"""Input from elsewhere is data: it is never run, and never leads to other files; servers listen on loopback."""

from __future__ import annotations

import ast
import json
import os
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from mitoflow import cli
from mitoflow.config import params
from mitoflow.core import files
from mitoflow.data.patches import PatchStore
from mitoflow.errors import InputError
from mitoflow.io import ome, volumes
from mitoflow.models import unet

SOURCES = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "torch"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "os.system", "tempfile.mktemp"}
FORBIDDEN_METHODS = {"extractall", "unpack_archive"}
REQUIRED = {  # what a call must have
    "np.load": ("allow_pickle", "False"),
    "keras.saving.load_model": ("safe_mode", "True"),
}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_code_runs_what_it_reads(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        where = f"{source}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not FORBIDDEN_IMPORTS & {name.partition(".")[0] for name in named}, where
        if isinstance(node, ast.Call):
            called, said = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert called not in FORBIDDEN_CALLS, where
            assert called.rpartition(".")[2] not in FORBIDDEN_METHODS, where
            assert said.get("shell", "False") == "False", where
            option, value = REQUIRED.get(called, ("", None))
            assert said.get(option) == value, where


def test_a_model_names_no_function_of_its_choice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A configuration that calls for the shell in the place of a layer or an activation."""
    inputs = keras.Input((8, 8, 1))
    keras.Model(inputs, keras.layers.Activation("relu")(inputs)).save(tmp_path / "plain.keras")
    for old, new in {
        '"activation": "relu"': '"activation": {"module": "os", "class_name": "function", "config": "system"}',
        '"module": "keras.layers", "class_name": "Activation"': '"module": "os", "class_name": "system"',
    }.items():
        path = tmp_path / "called.keras"
        with zipfile.ZipFile(tmp_path / "plain.keras") as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                content = source.read(name)
                target.writestr(name, content.replace(old.encode(), new.encode()) if name == "config.json" else content)
            assert old.encode() in source.read("config.json")
        with pytest.raises(InputError, match="expected a U-Net saved by mitoflow"):
            unet.load_model(path)


class _Payload:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("owned"),)


def test_pickles_in_arrays_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layout = {"format": 3, "bit_depth": 8, "size": 64, "step": 64, "stacks": [], "sha256": {}}
    layout["sha256"]["layout"] = files.short_digest(layout)
    for side in ("train", "validation"):
        Path(side).mkdir()
        for name in ("images", "masks", "index"):
            np.save(Path(side) / f"{name}.npy", np.array([_Payload()], object), allow_pickle=True)
    Path("store.json").write_text(json.dumps(layout))
    with pytest.raises(InputError, match="dvc repro -f patch"):
        PatchStore.open(tmp_path)
    assert not Path("owned").exists()


def test_yaml_makes_no_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_text("data: !!python/object/apply:os.system ['touch owned']\n")
    with pytest.raises(InputError, match=r"params.yaml"):
        params.load(path)
    assert not Path("owned").exists()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An OME-Zarr image beside a private one."""
    for name in ("secret.ome.zarr", "image.ome.zarr"):
        array = ome.create_multiscale(tmp_path / name, (1, 64, 64), np.dtype(np.uint8), 1)
        array[:] = 7
        ome.finish_multiscale(tmp_path / name, ome.Description("zyx"))
    return tmp_path / "image.ome.zarr"


@pytest.mark.parametrize("to", ["../secret.ome.zarr/0", "{parent}/secret.ome.zarr/0", "0/../../secret.ome.zarr/0"])
def test_a_zarr_names_no_array_elsewhere(image: Path, to: str) -> None:
    group = zarr.open_group(image, mode="r+")
    multiscales = group.attrs["multiscales"]
    multiscales[0]["datasets"][0]["path"] = to.format(parent=image.parent)
    group.attrs["multiscales"] = multiscales
    with pytest.raises(InputError, match="which is outside of it, expected an image in one folder"):
        volumes.open_volume(str(image))


@pytest.mark.parametrize("linked", ["0", "0/0", "0/0/0/0", "0/.zarray"])
def test_links_do_not_lead_out_of_a_zarr(image: Path, linked: str) -> None:
    assert volumes.open_volume(str(image)).shape == (1, 64, 64)
    (image / linked).rename(image.parent / "aside")
    (image / linked).symlink_to(image.parent / "secret.ome.zarr" / linked)
    with pytest.raises(InputError, match="which is outside of it"):
        volumes.open_volume(str(image))
    # The folder itself may be reached by a link, and one may be inside it.
    (image / linked).unlink()
    (image.parent / "aside").rename(image / "moved")
    (image / linked).symlink_to(image / "moved")
    (image.parent / "link.ome.zarr").symlink_to(image)
    assert volumes.open_volume(str(image.parent / "link.ome.zarr")).shape == (1, 64, 64)


@pytest.mark.parametrize("command", ["app", "serve"])
def test_servers_listen_on_this_machine_alone(command: str) -> None:
    (host,) = (option.default for option in cli.mitoflow.commands[command].params if option.name == "host")
    assert host == "127.0.0.1"


def test_mlflow_is_shown_on_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_text("{}\n")
    started: list[str] = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.extend(command))
    assert CliRunner().invoke(cli.mitoflow, ["ui"]).exit_code == 0
    assert started[started.index("--host") + 1] == "127.0.0.1"

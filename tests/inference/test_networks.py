"""OpenVINO predicts what Keras predicts, and only what it knows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from mitoflow.data import phantom
from mitoflow.inference import keras_network, networks, openvino_network
from mitoflow.inference.openvino_network import OpenVinoNetwork, UnknownNetworkError
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.models import unet
from mitoflow.tracking import model_lookup

SETTINGS = Settings(bit_depth=8, divisor=4, tile=64, overlap=16, threshold=0.5, context=1)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a GPU, where nobody asked for a backend of Keras."""
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setattr(networks, "NVIDIA", tmp_path / "no driver")


def save(folder: Path, build: Callable[[int, int, int], keras.Model]) -> Path:
    """Write a network in float32 whose normalisation is as after a training."""
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)
    network, chance = build(2, 4, 3), np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([chance.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    unet.save_model(network, folder / "unet.keras")
    return folder / "unet.keras"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("original"), unet.build_unet)


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    """A network in float32 whose normalisation is as after a training."""
    return Path(shutil.copy(original, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("build", [unet.build_unet, unet.build_strided_unet])
def test_the_logits_are_those_of_keras(tmp_path: Path, build: Callable[[int, int, int], keras.Model]) -> None:
    path = save(tmp_path, build)
    network = networks.read_network(path, SETTINGS)
    assert isinstance(network, OpenVinoNetwork)
    for shape in ((2, 64, 64, 3), (1, 32, 80, 3)):
        images = np.random.default_rng(1).random(shape, np.float32)
        expected = keras_network.read(path, SETTINGS).predict_on_batch(images)
        assert expected.std() > 0.01
        np.testing.assert_allclose(network.predict_on_batch(images), expected, atol=1e-4)


@pytest.mark.slow
def test_contacts_are_those_of_keras(tmp_path: Path) -> None:
    path = save(tmp_path, lambda *sizes: unet.with_contacts(unet.build_strided_unet(*sizes)))
    settings = replace(SETTINGS, contacts=True)
    network, images = networks.read_network(path, settings), np.random.default_rng(1).random((1, 32, 80, 3), np.float32)
    assert isinstance(network, OpenVinoNetwork)
    expected = keras_network.read(path, settings).predict_on_batch(images)
    assert expected.shape == (1, 32, 80, 2)
    np.testing.assert_allclose(network.predict_on_batch(images), expected, atol=1e-4)
    folded = keras_network.prepared(keras_network.read(path, settings)).predict_on_batch(images)
    np.testing.assert_allclose(folded, expected, atol=1e-4)
    for engine in (openvino_network, keras_network):
        with pytest.raises(Exception, match=r"logits|\[1,64,64,2\]"):
            engine.read(path, SETTINGS)


@pytest.mark.slow
def test_masks_of_the_pretrained_model_are_those_of_keras() -> None:
    """Both round to 16 bits where the processor multiplies such numbers, but not at the same places."""
    model = model_lookup.find("pretrained:general")
    stack, _ = phantom.make_phantom((2, 768, 768), 3)
    assert isinstance(model.predictor.model, OpenVinoNetwork)
    mine, theirs = (each.masks(stack) for each in (model.predictor, model.keras_predictor))
    assert 0.02 < theirs.mean() < 0.5
    assert (mine != theirs).mean() < 1e-3


def changed(path: Path, kind: str, **values: Any) -> None:
    """Change the configuration of the first layer of a class."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(contents["config.json"])
    next(each for each in config["config"]["layers"] if each["class_name"] == kind)["config"] |= values
    contents["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("Conv2D", {"activation": "tanh"}),
        ("ReLU", {"max_value": 6.0}),
        ("FusedBatchNormalization", {"axis": 1}),
        ("MaxPooling2D", {"padding": "same"}),
        ("Concatenate", {"axis": 1}),
        ("InputLayer", {"batch_shape": [None, 64, 64, 3]}),
        ("ReLU", {"dtype": "mixed_float16"}),
    ],
)
def test_it_refuses_what_it_would_compute_differently(saved: Path, kind: str, values: dict[str, Any]) -> None:
    openvino_network.read(saved, SETTINGS)
    changed(saved, kind, **values)
    with pytest.raises(UnknownNetworkError):
        openvino_network.read(saved, SETTINGS)


def test_it_refuses_a_network_that_does_not_fit_the_settings(saved: Path) -> None:
    with pytest.raises(Exception, match="hannel"):
        openvino_network.read(saved, replace(SETTINGS, context=0))
    with pytest.raises(Exception, match="oncat"):
        openvino_network.read(saved, replace(SETTINGS, divisor=1, tile=65))


@pytest.mark.slow
def test_keras_predicts_where_it_is_asked_for_where_there_is_a_gpu_and_what_openvino_does_not_know(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as asked:
        asked.setenv("KERAS_BACKEND", keras.backend.backend())
        assert isinstance(networks.read_network(saved, SETTINGS), keras.Model)
    with monkeypatch.context() as with_gpu:
        with_gpu.setattr(networks, "NVIDIA", tmp_path)
        assert isinstance(networks.read_network(saved, SETTINGS), keras.Model)
    changed(saved, "ReLU", max_value=6.0)
    assert isinstance(networks.read_network(saved, SETTINGS), keras.Model)


START = """
import sys
import numpy as np, tifffile
from mitoflow.cli import main
from mitoflow.data import phantom

tifffile.imwrite("slice.tif", phantom.make_phantom((1, 256, 256), 0)[0][0])
sys.argv = ["mitoflow", "predict", "slice.tif", "mask.tif", "--model", "pretrained"]
main()
print(*sys.modules)
"""


@pytest.mark.slow
def test_the_first_mask_waits_for_no_framework(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", START], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "openvino" in loaded
    assert not loaded & {"tensorflow", "keras", "mlflow", "pandas", "sklearn", "matplotlib", "openvino_telemetry.main"}


def test_predictions_do_not_depend_on_the_other_images_of_a_batch(saved: Path) -> None:
    predictor = Predictor(openvino_network.read(saved, SETTINGS), SETTINGS)
    patches = np.random.default_rng(2).integers(0, 256, (3, 64, 64, 3), np.uint8)
    together = predictor.patch_probabilities(patches)
    alone = np.concatenate([predictor.patch_probabilities(patches[n : n + 1]) for n in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-6)

"""Export of a model as ONNX, and as a package that passes the test of the BioImage Model Zoo."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import mlflow
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from ruamel.yaml import YAML

from mitoflow import apps, cli
from mitoflow.apps import bioimageio_export, onnx_export
from mitoflow.core import provenance
from mitoflow.data import network_input, phantom
from mitoflow.errors import InputError
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.models import unet
from mitoflow.tracking import model_lookup, pretrained, registration, runs, store
from tests.tiny_model import network_of_brightness, two_that_touch

SETTINGS = Settings(
    bit_depth=8, divisor=4, tile=64, overlap=16, threshold=0.43, context=1, context_step=2, tta=4, median=3
)
FILES = ("unet.keras", "inference.yaml", "evaluation.json")


@pytest.fixture(autouse=True)
def no_shipped_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the models that ship with mitoflow."""
    monkeypatch.setattr(pretrained, "PLACES", (pretrained.HERE,))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net in 16 bits with statistics as after a training, with its settings and its evaluation beside it."""
    folder = tmp_path_factory.mktemp("saved")
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = unet.build_unet(depth=2, base_width=4, channels=3)
    keras.config.set_dtype_policy("float32")
    drawn = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, unet.FusedBatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            statistics = (drawn.uniform(0.5, 1.5, v.shape) for v in (gamma, variance))
            layer.set_weights([next(statistics), beta + 0.1, mean + drawn.normal(0, 0.1, mean.shape), next(statistics)])
    unet.save_model(model, folder / "unet.keras")
    SETTINGS.write(folder / "inference.yaml")
    counts = [[800 + z, 50, 200, 9000] for z in range(12)]
    digest = provenance.file_sha256(folder / "unet.keras")
    Evaluation(digest, "a" * 64, ["stack"] * 12, counts, 3, 200, 1).write(folder / "evaluation.json")
    return folder


@pytest.fixture
def project(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with an empty registry of its own, and a copy of the model in it; it is the current folder."""
    for name in ("DVC_ROOT", *(name for name in os.environ if name.startswith("MLFLOW_"))):
        if name not in store.DEFAULTS:
            monkeypatch.delenv(name, raising=False)
    (tmp_path / "params.yaml").write_text("{}\n")
    for name in FILES:
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(store.uri())
    yield tmp_path
    mlflow.set_tracking_uri(None)


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mitoflow", "export", *arguments])
    cli.main()


@pytest.fixture(scope="module")
def exported(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, onnx_export.Parity]:
    path = tmp_path_factory.mktemp("onnx") / "unet.onnx"
    return path, onnx_export.export_onnx(path, model_lookup.find(str(saved / "unet.keras")).keras_predictor)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 64, 96), (3, 32, 12)])
def test_onnx_predicts_what_keras_predicts(saved: Path, exported: tuple[Path, onnx_export.Parity], shape) -> None:
    """On phantom slices of any size, to 1e-5 of a probability in float32; from 16 bits it is a little further."""
    stack, _ = phantom.make_phantom((16, 96, 96), 3)
    n, y, x = shape
    images = np.stack([stack[z : z + 3, :y, :x].transpose(1, 2, 0) for z in range(n)])
    session = onnxruntime.InferenceSession(str(exported[0]), providers=["CPUExecutionProvider"])
    (probability,) = session.run(["probability"], {"image": images.astype(np.float32) / 255})
    assert probability.shape == (*shape, 1)
    in_bfloat16 = unet.load_model(saved / "unet.keras")
    in_float32 = unet.build_unet(depth=2, base_width=4, channels=3)
    in_float32.set_weights(in_bfloat16.get_weights())
    in_keras = Predictor(in_float32, SETTINGS).patch_probabilities(images)
    np.testing.assert_allclose(probability[..., 0], in_keras, atol=1e-5)
    in_16_bits = Predictor(in_bfloat16, SETTINGS).patch_probabilities(images)
    assert 1e-5 < np.abs(probability[..., 0] - in_16_bits).max() < 0.1
    assert in_keras.std() > 0.01


@pytest.mark.slow
def test_the_reported_differences_are_small_and_not_zero(exported: tuple[Path, onnx_export.Parity]) -> None:
    parity = exported[1]
    assert 0 < parity.converted < 1e-5 < parity.trained < 0.1


@pytest.mark.slow
def test_the_strided_u_net_becomes_onnx(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    predictor = Predictor(unet.build_strided_unet(2, 4, channels=3), SETTINGS)
    assert onnx_export.export_onnx(tmp_path / "strided.onnx", predictor).converted < 1e-5
    image = np.random.default_rng(0).random((1, 32, 12, 3), np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "strided.onnx"), providers=["CPUExecutionProvider"])
    (probability,) = session.run(["probability"], {"image": image})
    in_keras = onnx_export.plain(predictor.model).predict_on_batch(image)
    np.testing.assert_allclose(probability, in_keras, atol=1e-5)
    assert probability.std() > 1e-3


@pytest.mark.slow
def test_an_onnx_file_describes_its_input(exported: tuple[Path, onnx_export.Parity]) -> None:
    model = onnx.load(str(exported[0]))
    axes = [
        [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]
        for tensor in (*model.graph.input, *model.graph.output)
    ]
    assert axes == [["N", "Y", "X", 3], ["N", "Y", "X", 1]]
    assert [tensor.name for tensor in (*model.graph.input, *model.graph.output)] == ["image", "probability"]
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        key: str(value) for key, value in dataclasses.asdict(SETTINGS).items()
    }
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert next(each.version for each in model.opset_import if each.domain == "") == 17


@pytest.mark.slow
def test_a_wrong_conversion_is_not_kept(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unet.onnx").write_text("an earlier one")
    monkeypatch.setattr(onnx_export, "TOLERANCE", 0.0)
    with pytest.raises(InputError, match=r"found probabilities that differ from Keras by up to \d"):
        onnx_export.export_onnx(tmp_path / "unet.onnx", model_lookup.find(str(saved / "unet.keras")).keras_predictor)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an earlier one"]


@pytest.fixture(scope="module")
def package(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "package"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder.parent)
        Path("params.yaml").write_text("{}\n")
        options = ["--author", "Ada Lovelace", "--licence", "CC-BY-4.0"]
        run("--bioimageio", "package", "--model", str(saved / "unet.keras"), *options, monkeypatch=monkeypatch)
    return folder


@pytest.mark.slow
def test_the_zoo_s_own_test_passes_a_package(package: Path) -> None:
    """With the real tool, in a process that does not import mitoflow: ONNX and Keras, at several sizes."""
    done = subprocess.run(
        [sys.executable, "-m", "bioimageio.core", "test", str(package), "--summary", str(package / "summary.md")],
        env=os.environ | {"KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        check=False,
    )
    summary = (package / "summary.md").read_text()
    assert done.returncode == 0, summary
    for weights in ("keras_v3", "onnx"):
        assert f"Reproduce test outputs from test inputs ({weights})" in summary
        for batch in (1, 2):
            assert f"Run {weights} inference for inputs with batch_size: {batch} and size parameter n: 2" in summary


@pytest.mark.slow
def test_a_package_describes_the_model(package: Path) -> None:
    rdf = YAML(typ="safe").load((package / "rdf.yaml").read_text())
    assert rdf["format_version"].startswith("0.5.")
    assert rdf["name"] == "Mitochondria in EM slices (unet)"
    assert ([author["name"] for author in rdf["authors"]], rdf["license"]) == (["Ada Lovelace"], "CC-BY-4.0")
    assert rdf["cite"][0]["doi"] == "10.1007/978-3-319-24574-4_28"
    (image,), (probability,) = rdf["inputs"], rdf["outputs"]
    assert image["axes"][3]["channel_names"] == ["z-2", "z", "z+2"]
    assert image["axes"][1]["size"] == {"min": 20, "step": 4}
    assert image["preprocessing"][1]["kwargs"]["gain"] == pytest.approx(1 / 255)
    assert probability["axes"][1]["halo"] == 8
    assert set(rdf["weights"]) == {"keras_v3", "onnx"}
    assert rdf["config"]["mitoflow"]["settings"] == dataclasses.asdict(SETTINGS)
    with Image.open(package / "phantom.png") as cover:
        assert cover.width == 2 * cover.height
    readme = (package / "README.md").read_text()
    assert "**The 3 channels are not colours.**" in readme
    assert "From 0.430 on" in readme
    assert re.search(r"\| Dice \| 0\.8\d{3} \[0\.8\d{3}, 0\.8\d{3}\] \|", readme)


@pytest.mark.slow
def test_the_channels_are_filled_as_the_documentation_says(package: Path) -> None:
    lines = [line[4:] for line in (package / "README.md").read_text().splitlines() if line.startswith("    ")]
    stack = np.random.default_rng(0).integers(0, 256, (7, 8, 8), dtype=np.uint8)
    names = {"np": np, "stack": stack}
    exec("\n".join(lines), names)
    for z in range(7):
        near = network_input.neighbours(z, SETTINGS.context, SETTINGS.context_step, range(7))
        np.testing.assert_array_equal(names["images"][z], stack[near].transpose(1, 2, 0))


def test_deeper_grey_values_and_single_slices(tmp_path: Path) -> None:
    """A model of 12 bits without context: its test image has 12 bits, and its documentation speaks of one slice."""
    settings = dataclasses.replace(SETTINGS, bit_depth=12, context=0, overlap=0)
    images = onnx_export.phantom_slice(settings)
    assert (images.dtype, images.shape) == (np.uint16, (1, 256, 256, 1))
    assert 2048 < images.max() < 4096
    model = model_lookup.TrainedModel("unet", tmp_path / "unet.keras", tmp_path, {"model_sha256": ""})
    content = bioimageio_export.describe(model, settings, 1, ["Ada Lovelace"], "MIT")
    assert content["inputs"][0]["axes"][3]["channel_names"] == ["z"]
    assert content["inputs"][0]["data"] == {"type": "uint16", "range": [0, 4095]}
    assert "halo" not in content["outputs"][0]["axes"][1]
    bioimageio_export.document(tmp_path / "README.md", model, settings, 1, onnx_export.Parity(1e-7, 1e-3))
    readme = (tmp_path / "README.md").read_text()
    assert "It has one channel: slice z." in readme
    assert "No evaluation on a test part comes with this model." in readme


@pytest.mark.slow
def test_a_model_of_the_registry(project: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    with pytest.raises(InputError, match="found models:/mitoflow@champion, which names no version"):
        model_lookup.find("models:/mitoflow@champion")
    weights, settings = Path("unet.keras"), Path("inference.yaml")
    evaluated = Evaluation.read(Path("evaluation.json"))
    with runs.start("train", "unet") as journal:
        journal.params({"data": {"name": "epfl"}})
        assert registration.register(journal, evaluated, weights, settings).promoted
    for wanted in ("models:/mitoflow@champion", "champion", "models:/mitoflow/1", "1"):
        model = model_lookup.find(wanted)
        assert (model.name, model.predictor.settings, Evaluation.of(model)) == (
            "mitoflow version 1",
            SETTINGS,
            evaluated,
        )
        assert model.weights.read_bytes() == weights.read_bytes()
        assert model.origin["params.data.name"] == "epfl"
    cited = bioimageio_export.describe(model, SETTINGS, 1, ["Ada Lovelace"], "MIT")["cite"]
    assert [entry["doi"] for entry in cited] == ["10.1007/978-3-319-24574-4_28", "10.1109/TMI.2011.2171705"]
    run("--onnx", "unet.onnx", monkeypatch=monkeypatch)
    assert capsys.readouterr().out.startswith("unet.onnx: mitoflow version 1; probabilities on a drawn slice differ by")
    onnx.checker.check_model("unet.onnx")


def test_a_pretrained_model_comes_with_its_card(project: Path) -> None:
    shipped = project / "pretrained/cortex"
    shipped.mkdir(parents=True)
    for name in FILES:
        (project / name).rename(shipped / name)
    made = {"data": {}, "code": {"git_commit": "abc"}, "dataset": {}, "params": {"data.name": "cortex"}}
    YAML().dump(made, shipped / "lineage.yaml")
    (shipped / "MODEL_CARD.md").write_text("# cortex\n\n![Dice](cover.png)\n")
    Image.new("L", (4, 2)).save(shipped / "cover.png")
    model = model_lookup.find("pretrained")
    assert (model.name, model.origin["git_commit"]) == ("pretrained:cortex", "abc")
    bioimageio_export.document(Path("README.md"), model, SETTINGS, 1, onnx_export.Parity(1e-7, 1e-3))
    assert "\n## cortex\n\n![Dice](cover.png)\n" in Path("README.md").read_text()
    assert bioimageio_export._copy_pictures(model, project) == ["cover.png"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "export: nothing to write: give --onnx FILE, --bioimageio DIR or both; see `mitoflow export --help`"),
        (["--onnx", "inference.yaml"], "inference.yaml: found something that exists, expected a new name; take"),
        (["--bioimageio", ".", "--overwrite"], ".: found something that exists"),
        (
            ["--onnx", "a.onnx", "--model", "absent.keras"],
            "--model: found absent.keras, which is no file",
        ),
        (["--onnx", "a.onnx", "--model", "7"], "--model: found 7, which names no version"),
        (["--onnx", "a.onnx"], "pretrained model: found none"),
        (["--onnx", "a.onnx", "--model", "pretrained:x"], "pretrained model: found x"),
        (["--onnx", "a.onnx", "--model", "alone/unet.keras"], "alone/unet.keras: found no inference.yaml beside it"),
        (["--onnx", "a.onnx", "--model", "other/unet.keras"], "other/unet.keras: found a network from (None,"),
        (["--onnx", "a.onnx", "--model", "broken/unet.keras"], "broken/unet.keras: found "),
        (
            ["--bioimageio", "zoo", "--model", "unet.keras", "--licence", "mine"],
            "zoo: found ",
        ),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    project: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("alone", "other", "broken"):
        Path(name).mkdir()
        Path(name, "unet.keras").write_bytes(Path("unet.keras").read_bytes() if name != "broken" else b"cut off")
        if name != "alone":
            dataclasses.replace(SETTINGS, context=2 if name == "other" else 1).write(Path(name, "inference.yaml"))
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        run(*arguments, monkeypatch=monkeypatch)
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith(f"mitoflow: {message}")
    made = {path for path in Path().rglob("*") if path not in before}
    assert all(path.name.startswith(("mlflow.db", "mlruns", ".mitoflow")) for path in made if path.parent == Path())


@pytest.mark.slow
def test_an_earlier_export_is_replaced_when_asked(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("unet.onnx").write_text("an earlier one")
    arguments = ("--onnx", "unet.onnx", "--model", "unet.keras")
    with pytest.raises(SystemExit, match="2"):
        run(*arguments, monkeypatch=monkeypatch)
    assert Path("unet.onnx").read_text() == "an earlier one"
    run(*arguments, "--overwrite", monkeypatch=monkeypatch)
    onnx.checker.check_model("unet.onnx")


def test_missing_libraries_are_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("onnx_export", "bioimageio_export"):
        monkeypatch.delitem(sys.modules, f"mitoflow.apps.{name}", raising=False)
        monkeypatch.delattr(apps, name, raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit, match="2"):
        run("--onnx", "a.onnx", monkeypatch=monkeypatch)
    assert capsys.readouterr().err.startswith("mitoflow: mitoflow export: found no onnx, expected the libraries")


def test_contacts_are_left_out() -> None:
    network = onnx_export.plain(network_of_brightness())
    images = two_that_touch()[..., None] / np.float32(255)
    probability = network.predict_on_batch(images)
    assert probability.shape == (1, 80, 100, 1)
    assert np.array_equal(probability[..., 0] >= 0.5, two_that_touch() > 0)

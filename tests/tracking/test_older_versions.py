"""Models that mitoflow 0.1 registered, whose package was one flat folder, still load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest

import mitoflow
from mitoflow.evaluation.verdict import Verdict
from mitoflow.tracking import model_lookup, registry, store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LAST_FLAT = "308e4e3e7bdc035e88a68625f36b025694241de1"

REGISTER = """
from pathlib import Path
import numpy as np
from mitoflow import lineage, registry, tracking, unet
from mitoflow.comparison import Evaluation
from mitoflow.inference import Predictor, Settings

settings = dict(bit_depth=8, divisor=4, tile=64, overlap=8, context=1, views=4, planes=3, median=3)
images = np.load("images.npy")
network = unet.build_unet(depth=2, base_width=2, channels=3)
unet.save_model(network, Path("unet.keras"))
middle = np.median(Predictor(network, Settings(threshold=0.5, **settings)).probabilities(images))
Settings(threshold=float(middle), **settings).write(Path("inference.yaml"))
np.save("masks.npy", Predictor.load(Path("unet.keras"), Path("inference.yaml")).masks(images))
digest = lineage.file_sha256(Path("unet.keras"))
evaluation = Evaluation(digest, "a" * 64, ["stack"] * 4, [[9, 1, 1, 9]] * 4, 2, 100, 1, [[5, 4, 5, 4, 2, 1]] * 4)
with tracking.start("train", "unet") as run:
    run.produced(Path("unet.keras"))
    assert registry.register(run, evaluation, Path("unet.keras"), Path("inference.yaml")).promoted
"""

LOAD = """
import json, sys
import mlflow, numpy
model = mlflow.pyfunc.load_model(sys.argv[1])
numpy.save("loaded.npy", model.predict(numpy.load("images.npy")))
print(json.dumps(sys.modules["mitoflow"].__file__))
"""


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the store into which the code of mitoflow 0.1 registered a model; it is the current folder."""
    folder = tmp_path_factory.mktemp("registered")
    archive = subprocess.run(["git", "archive", LAST_FLAT, "src/mitoflow"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"no git history with commit {LAST_FLAT}: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "xf", "-", "-C", str(folder)], input=archive.stdout, check=True)
    np.save(folder / "images.npy", np.random.default_rng(0).integers(256, size=(6, 100, 130), dtype=np.uint8))
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("DVC_ROOT", *(name for name in os.environ if name.startswith("MLFLOW_"))):
            if name not in store.DEFAULTS:
                monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(folder)
        subprocess.run(
            [sys.executable, "-c", REGISTER], env=os.environ | {"PYTHONPATH": str(folder / "src")}, check=True
        )
        mlflow.set_tracking_uri(store.uri())
        yield folder
        mlflow.set_tracking_uri(None)


def test_a_process_that_has_imported_the_packages_predicts_with_it(registered: Path) -> None:
    model = mlflow.pyfunc.load_model("models:/mitoflow@champion")
    assert Path(mitoflow.__file__).parent == Path(store.__file__).parents[1]
    masks = np.load("masks.npy")
    assert 0.3 < masks.mean() < 0.7
    np.testing.assert_array_equal(model.predict(np.load("images.npy")), masks)


def test_a_new_process_predicts_with_the_code_that_came_with_it(registered: Path) -> None:
    (packed,) = {path.parent for path in registered.rglob("MLmodel")}
    ran = subprocess.run([sys.executable, "-c", LOAD, str(packed)], capture_output=True, text=True, check=True)
    assert Path(json.loads(ran.stdout.splitlines()[-1])).is_relative_to(packed / "code")
    np.testing.assert_array_equal(np.load("loaded.npy"), np.load("masks.npy"))


def test_the_registry_reads_what_was_written_about_it(registered: Path) -> None:
    (row,) = registry.models()
    assert row.verdict == Verdict(1, True, "there was no champion")
    assert (row.dice.value, row.aliases) == (0.9, ("champion",))
    assert [(entry.over, entry.version, entry.how) for entry in registry.history()] == [(None, 1, "promoted")]
    model = model_lookup.find("champion")
    np.testing.assert_array_equal(model.predictor.masks(np.load("images.npy")), np.load("masks.npy"))

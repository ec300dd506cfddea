"""The registered model as MLflow stores it: weights, settings, and the code that runs them."""

from __future__ import annotations

import tempfile
import warnings
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
from mlflow import pyfunc
from mlflow.models import ModelSignature
from mlflow.types.schema import Schema, TensorSpec

from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference import model_files
from mitoflow.inference.settings import Settings
from mitoflow.tracking import store

#: The distributions that `mitoflow.tracking.pyfunc` imports; a model requires the versions that are installed here.
REQUIREMENTS = ("openvino", "tensorflow", "keras", "h5py", "numpy", "scipy", "ruamel.yaml")


def pack(folder: Path, evaluation: Evaluation | None, model_path: Path, settings_path: Path) -> None:
    """Write the MLflow model: U-Net, settings, evaluation and the code that runs them, without a pickle.

    It takes consecutive slices (Z, Y, X) of a stack, of any size, and returns masks (Z, Y, X) uint8 in {0, 1}. Slices
    are of any numbers where the model stretches each between its percentiles; else uint8 for a model of 8 bits and
    uint16 for one of more. What of `model_files.OPTIONAL` is beside the settings goes with them.
    """
    store.configure()
    settings = Settings.read(settings_path)
    bit_depth = settings.bit_depth
    noise = np.random.default_rng(0).integers(2**bit_depth, size=(1, 64, 64))
    with tempfile.TemporaryDirectory() as beside, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow misses type hints that it can check; the signature does
        carried = {"model": model_path, "settings": settings_path}
        if evaluation:
            carried["evaluation"] = Path(beside) / model_files.EVALUATION
            evaluation.write(carried["evaluation"])
        for path in map(settings_path.with_name, model_files.OPTIONAL):
            if path.is_file():
                carried[path.stem] = path
        pyfunc.save_model(
            path=str(folder),
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={name: str(path) for name, path in carried.items()},
            code_paths=[str(Path(__file__).parents[1])],
            pip_requirements=[f"{name}=={installed(name)}" for name in REQUIREMENTS],
            signature=signature(settings),
            input_example=noise.astype(np.uint8 if bit_depth == 8 else np.uint16),
        )


def signature(settings: Settings) -> ModelSignature:
    """Return what MLflow is to know of the images and of the masks: any (Z, Y, X).

    MLflow insists on one type of input, so it is not told of any where a model takes all of them.
    """
    images, masks = np.dtype(np.uint8 if settings.bit_depth == 8 else np.uint16), np.dtype(np.uint8)
    inputs, outputs = (Schema([TensorSpec(dtype, (-1, -1, -1))]) for dtype in (images, masks))
    return ModelSignature(inputs if settings.normalization == "range" else None, outputs)

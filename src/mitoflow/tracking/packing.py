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
REQUIREMENTS = ("tensorflow", "keras", "numpy", "scipy", "ruamel.yaml")


def pack(folder: Path, evaluation: Evaluation | None, model_path: Path, settings_path: Path) -> None:
    """Write the MLflow model: U-Net, settings, evaluation and the code that runs them, without a pickle.

    It takes consecutive slices (Z, Y, X) of a stack, of any size, uint8 for a model of 8 bits and uint16 for one of
    more, and returns masks (Z, Y, X) uint8 in {0, 1}. Where ``domain.yaml``, what the training images look like, is
    beside the settings, it goes with them.
    """
    store.configure()
    bit_depth = Settings.read(settings_path).bit_depth
    noise = np.random.default_rng(0).integers(2**bit_depth, size=(1, 64, 64))
    with tempfile.TemporaryDirectory() as beside, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow misses type hints that it can check; the signature does
        carried = {"model": model_path, "settings": settings_path}
        if evaluation:
            carried["evaluation"] = Path(beside) / model_files.EVALUATION
            evaluation.write(carried["evaluation"])
        if (domain := settings_path.with_name(model_files.DOMAIN)).is_file():
            carried["domain"] = domain
        pyfunc.save_model(
            path=str(folder),
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={name: str(path) for name, path in carried.items()},
            code_paths=[str(Path(__file__).parents[1])],
            pip_requirements=[f"{name}=={installed(name)}" for name in REQUIREMENTS],
            signature=signature(bit_depth),
            input_example=noise.astype(np.uint8 if bit_depth == 8 else np.uint16),
        )


def signature(bit_depth: int) -> ModelSignature:
    """Return what MLflow is to know of the images, of `bit_depth` bits, and of the masks: any (Z, Y, X)."""
    images, masks = np.dtype(np.uint8 if bit_depth == 8 else np.uint16), np.dtype(np.uint8)
    inputs, outputs = (Schema([TensorSpec(dtype, (-1, -1, -1))]) for dtype in (images, masks))
    return ModelSignature(inputs, outputs)

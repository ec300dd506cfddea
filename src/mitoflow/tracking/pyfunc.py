"""The registered model as MLflow loads it: this file and the package beside it, nothing pickled.

MLflow runs the file when it loads the model ("models from code"); `mitoflow.tracking.packing` puts it there.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from mitoflow.errors import InputError
from mitoflow.inference.predictor import Predictor


class Segmenter(PythonModel):
    """Raw slices in, masks out; normalisation, tiling, blending and threshold are inside."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the U-Net and its settings from the model's artifacts."""
        self._alone = threading.Lock()
        self._predictor = Predictor.load(Path(context.artifacts["model"]), Path(context.artifacts["settings"]))

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Return the masks (Z, Y, X) uint8 in {0, 1} of consecutive slices (Z, Y, X), of the model's bit depth.

        Threads wait for each other, because one prediction keeps all cores busy.

        Raises
        ------
        MlflowException
            The slices cannot be used; the message says why.
        """
        try:
            with self._alone:
                return self._predictor.masks(model_input)
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


set_model(Segmenter())

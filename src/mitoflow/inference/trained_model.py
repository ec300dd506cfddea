"""A trained model: its weights, the files that belong to it, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from mitoflow.data.fingerprint import Fingerprint
from mitoflow.data.slice_distance import SliceDistance
from mitoflow.inference import model_files
from mitoflow.inference.judgement import Calibration
from mitoflow.inference.predictor import Predictor

SYNTHETIC = frozenset({"phantom", "phantoms"})  # sets of images that were drawn
SETS = "params.data.name"  # in the origin of a model: the sets that it was trained on, joined by +
OF_TRAINING = ("mitoflow", "python", "platform")  # what trained a model, and not what predicts with it


@dataclass(frozen=True)
class TrainedModel:
    """A trained model.

    Attributes
    ----------
    name
        What to call it, such as ``mitoflow version 3``.
    weights
        The ``.keras`` file.
    folder
        Where the files are that belong to it: settings, and as far as there are any what the training images look
        like, what it did on the test part, and a model card.
    origin
        Where it comes from, as far as that is known: at least ``model`` and ``model_sha256``; see
        `mitoflow.tracking.lineage.origin`.
    """

    name: str
    weights: Path
    folder: Path
    origin: Mapping[str, str]

    @cached_property
    def predictor(self) -> Predictor:
        """The U-Net with its settings; no code that comes with it is run.

        Raises
        ------
        InputError
            It is none of mitoflow's, it or its settings are broken, or they do not fit together; see `Predictor.load`.
        """
        loaded = Predictor.load(self.weights, self.folder / model_files.SETTINGS)
        return loaded.with_settings(replace(loaded.settings, slices=loaded.settings.slices or self._slices()))

    @cached_property
    def keras_predictor(self) -> Predictor:
        """`predictor` with its network on Keras, whatever runs it otherwise: for exports, which need its layers."""
        from mitoflow.inference import keras_network  # imports Keras

        settings = self.predictor.settings
        return Predictor(keras_network.read(self.weights, settings), settings)

    def _slices(self) -> SliceDistance | None:
        """Return how far apart the slices of training are by their voxel size: all that mitoflow 0.1 recorded."""
        known = self.domain.spacing if self.domain else {}
        if not {*"zyx"} <= known.keys():
            return None
        pixel = (known["y"] * known["x"]) ** 0.5
        return SliceDistance(nm=known["z"], pixels=known["z"] / pixel, pixel_nm=pixel)

    @property
    def domain(self) -> Fingerprint | None:
        """What its training images look like; None where that was not recorded."""
        path = self.folder / model_files.DOMAIN
        return Fingerprint.read(path) if path.is_file() else None

    @property
    def calibration(self) -> Calibration | None:
        """How its Dice follows from its agreement with itself; None where that was not measured on other tissue."""
        path = self.folder / model_files.CALIBRATION
        return Calibration.read(path) if path.is_file() else None

    @property
    def is_of_drawn_images(self) -> bool:
        """Whether it was trained on drawn images alone."""
        return is_of_drawn_images(self.origin)

    @property
    def warning(self) -> str:
        """What a user must know before anything else: that it never saw real tissue; empty where it did."""
        if not self.is_of_drawn_images:
            return ""
        return (
            f"warning: {self.name} WAS TRAINED ON DRAWN IMAGES ALONE ({self.origin[SETS]}), NOT ON REAL TISSUE. DO NOT "
            "USE ITS MASKS OF OTHER IMAGES: give --model pretrained, or train on your own data"
        )

    @property
    def lineage(self) -> dict[str, str]:
        """The origin without parameters, and without the versions and the platform of the training."""
        return {key: each for key, each in self.origin.items() if key not in OF_TRAINING and "params." not in key}


def is_of_drawn_images(origin: Mapping[str, str]) -> bool:
    """Return whether a model, by its origin, was trained on drawn images alone."""
    return SYNTHETIC.issuperset(origin.get(SETS, "").split("+"))

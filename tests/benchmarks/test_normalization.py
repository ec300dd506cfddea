"""Benchmarks that read slices themselves give them to a network as prediction does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import engines, postprocessing
from mitoflow.inference.model_input import ArrayVolume
from mitoflow.inference.settings import Settings

SETTINGS = Settings(8, divisor=2, tile=256, overlap=32, threshold=0.5, context=1, normalization="percentiles")
DIM = np.random.default_rng(0).integers(80, 100, (140, 256, 256), np.uint8)


def test_engines_are_calibrated_with_slices_that_are_stretched() -> None:
    stretched, plain = (next(engines.tiles(DIM, each)) for each in (SETTINGS, replace(SETTINGS, normalization="range")))
    assert stretched.shape == (1, 256, 256, 3)
    assert (stretched.min(), stretched.max()) == (0, 1)
    assert plain.max() < 0.4


def test_postprocessing_is_measured_on_slices_that_are_stretched() -> None:
    seen = []

    def stream(read: Callable[[int], np.ndarray], _: range, wanted: range) -> Iterator[np.ndarray]:
        for z in wanted:
            seen.append(read(z))
            yield np.zeros((256, 256), np.float32)

    predictor: Any = SimpleNamespace(settings=SETTINGS, stream_unfiltered=stream)
    validation: Any = SimpleNamespace(ranges={0: range(138, 140)}, mask=lambda *_: np.zeros((256, 256), np.uint8))
    ((truth, _),) = postprocessing.predict(predictor, validation, [ArrayVolume(DIM)])
    assert len(truth) == 2
    assert [(image.min(), image.max()) for image in seen] == [(0, 255)] * 2

"""Engines that run the network: `python -m benchmarks.engines MODEL`, in a project with its data.

The engines run the same network in turn, in mitoflow's tiles, on the last slices of the training volume, which are
validation slices. Beside the speed, the table has the largest difference from the probabilities of Keras in float32,
the share of the mask's pixels that agree, and the Dice. int8 is ONNX Runtime's static quantisation, calibrated on other
slices of the training volume. The test part is not read.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.measure import Candidate, Lap, alternate, quartiles, ratio

if TYPE_CHECKING:
    from mitoflow.inference.settings import Settings

RESULTS = Path(__file__).with_name("results") / "engines.json"
SLICES = 8  # that are predicted and scored
CALIBRATING = range(10, 140, 10)  # slices whose middle tile calibrates the quantisation
TILE = 256
KERAS, TENSORFLOW = "Keras, float32", "TensorFlow, bfloat16"

Run = Callable[[np.ndarray], np.ndarray]  # (N, Y, X, C) float32 in [0, 1] to probabilities (N, Y, X, 1)


def onnx_runtime(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(batch: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {"image": np.ascontiguousarray(batch)})[0])

    return run


def openvino(path: Path, precision: str) -> Run:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(str(path), "CPU", hints)

    def run(batch: np.ndarray) -> np.ndarray:
        return np.asarray(model(np.ascontiguousarray(batch))[0])

    return run


#: What runs the network, by name: made from the folder with its ONNX files; None is Keras.
ENGINES: dict[str, Callable[[Path], Run] | None] = {
    TENSORFLOW: None,
    KERAS: None,
    "ONNX Runtime, float32": lambda folder: onnx_runtime(folder / "float.onnx"),
    "ONNX Runtime, int8": lambda folder: onnx_runtime(folder / "int8.onnx"),
    "OpenVINO, float32": lambda folder: openvino(folder / "float.onnx", "f32"),
    "OpenVINO, bfloat16": lambda folder: openvino(folder / "float.onnx", "bf16"),
    "OpenVINO, int8": lambda folder: openvino(folder / "int8.onnx", "f32"),
}


def contender(folder: Path, model: str, name: str, lap: Lap) -> None:
    """Predict the slices again and again; the first time, write the probabilities."""
    from mitoflow.apps import onnx_export
    from mitoflow.inference.predictor import Predictor
    from mitoflow.tracking import model_lookup

    loaded = model_lookup.find(model).keras_predictor
    network = onnx_export.plain(loaded.model) if name == KERAS else loaded.model
    make = ENGINES[name]
    run: Run | None = network.predict_on_batch if name == KERAS else make(folder) if make else None

    class OnEngine(Predictor):
        def run_network(self, batch: np.ndarray, outputs: int = 1) -> np.ndarray:
            return np.asarray(run(batch))[..., :outputs] if run else super().run_network(batch, outputs)

    images, predictor = np.load(folder / "images.npy"), OnEngine(loaded.model, loaded.settings)
    np.save(folder / f"{name}.npy", predictor.probabilities(images))
    while True:
        predictor.masks(images)
        lap(images.size / 1e6)


def tiles(volume: np.ndarray, settings: Settings) -> Iterator[np.ndarray]:
    """Yield middle tiles of slices `CALIBRATING` of `volume` (Z, Y, X) as the network takes them, (1, Y, X, C)."""
    from mitoflow.data import network_input
    from mitoflow.inference import model_input

    seen = model_input.normalized(model_input.ArrayVolume(volume), settings)
    top, left = (length // 2 - TILE // 2 for length in volume.shape[1:])
    for z in CALIBRATING:
        near = network_input.neighbours(z, settings.context, settings.context_step, range(len(volume)))
        tile = np.stack([seen.read(each, (top, top + TILE, left, left + TILE)) for each in near], axis=-1)
        yield network_input.to_unit(tile[None], settings.bit_depth)


def write_networks(folder: Path, model: str, volume: np.ndarray) -> None:
    """Write ``float.onnx`` and ``int8.onnx``; the quantisation is calibrated on `volume` (Z, Y, X)."""
    from onnxruntime import quantization

    from mitoflow.apps import onnx_export
    from mitoflow.tracking import model_lookup

    predictor = model_lookup.find(model).keras_predictor
    onnx_export.write_onnx(folder / "float.onnx", onnx_export.plain(predictor.model), predictor.settings)

    class Tiles(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._tiles = tiles(volume, predictor.settings)

        def get_next(self) -> dict[str, np.ndarray] | None:
            tile = next(self._tiles, None)
            return None if tile is None else {"image": tile}

    prepared = folder / "prepared.onnx"
    quantization.shape_inference.quant_pre_process(folder / "float.onnx", prepared, skip_symbolic_shape=True)
    quantization.quantize_static(prepared, folder / "int8.onnx", Tiles(), per_channel=True)


def read(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return image and mask of the training volume, (Z, Y, X)."""
    from mitoflow.data.masks import binarise
    from mitoflow.data.pairs import read_pairs

    (pair,) = read_pairs(data / "train")
    masks = [binarise(each, "nonzero") for each in pair.mask.slices()]
    return np.stack([*pair.image.slices()]), np.stack(masks)


def main() -> None:
    from mitoflow.core import files
    from mitoflow.evaluation import metrics
    from mitoflow.tracking import model_lookup

    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="as of `mitoflow predict --model`")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--into", type=Path, default=RESULTS)
    options = parser.parse_args()
    image, mask = read(options.data)
    threshold = model_lookup.find(options.model).predictor.settings.threshold
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "images.npy", image[-SLICES:])
        write_networks(folder, options.model, image[:-20])
        contenders: dict[str, Candidate] = {name: partial(contender, folder, options.model, name) for name in ENGINES}
        series = alternate(contenders, options.rounds)
        maps = {name: np.load(folder / f"{name}.npy") for name in series}
    rows: dict[str, dict[str, Any]] = {}
    for name, each in series.items():
        times = ratio(each, series[TENSORFLOW])
        counts = metrics.count(mask[-SLICES:] > 0, maps[name] >= threshold)
        rows[name] = {
            "mpx_per_s": [round(rate, 3) for rate in each.rates],
            "times_tensorflow": [round(value, 3) for value in (times.median, times.low, times.high)],
            "peak_mib": round(each.peak_mib),
            "largest_difference": round(float(np.abs(maps[name] - maps[KERAS]).max()), 5),
            "pixels_that_agree": round(float(((maps[name] >= threshold) == (maps[KERAS] >= threshold)).mean()), 6),
            "dice": round(float(metrics.dice(counts.sum(0))), 4),
        }
    options.into.parent.mkdir(exist_ok=True)
    files.write_json(options.into, rows)
    print("| engine | Mpx/s | times TensorFlow | peak memory | largest difference | pixels that agree | Dice |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        median, low, high = row["times_tensorflow"]
        speed = f"{quartiles(row['mpx_per_s']).median:.2f} | {median:.2f} [{low:.2f}, {high:.2f}]"
        parity = f"{row['largest_difference']:.4f} | {row['pixels_that_agree']:.4%} | {row['dice']:.4f}"
        print(f"| {name} | {speed} | {row['peak_mib']:,} MiB | {parity} |")


if __name__ == "__main__":
    main()

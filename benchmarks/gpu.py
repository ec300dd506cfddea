"""How fast a GPU trains and predicts: `KERAS_BACKEND=jax python -m benchmarks gpu --data PROJECT`.

It fits the recipes of `epfl-quick` and `general` on the training part of a project whose stage ``validate`` has run,
each for a fixed number of crops, and predicts a volume in orthogonal planes with the first model. It reports

- crops a second, without the first epoch, in which the backend compiles, and the seconds of that epoch;
- the share of the time in which the training waits for a batch, which is to stay below a tenth;
- the seconds after which validation reached a Dice of 0.8563, 0.90 and 0.93, everything included;
- megavoxels a second of a prediction, without compiling;
- the largest memory of the GPU and the mean of its utilisation, by `nvidia-smi`, where there is one;
- the Dice of the masks and those of another process on the CPU, with another backend where there is one.

Without a GPU it does the same on the CPU, where ``--crops`` should be small.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mitoflow.config import presets
from mitoflow.config.params import Params
from mitoflow.core import files
from mitoflow.data.conventions import read_conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.pairs import Pair, read_pairs
from mitoflow.data.patches import PatchStore
from mitoflow.errors import run_as_command
from mitoflow.evaluation import metrics
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.models import unet
from mitoflow.stages.paths import CONVENTIONS, DATA
from mitoflow.training import fitting

PRESETS = ("epfl-quick", "general")
GOALS = (0.8563, 0.90, 0.93)  # validation Dice whose seconds are reported
EPOCHS = 20  # of a fit, so that its validation shows when a Dice was reached
COMPARED = 4  # slices whose masks are compared with those of the CPU
PARITY = """
import sys, keras, numpy as np
from pathlib import Path
from mitoflow.inference.predictor import Predictor
model, settings, images, masks = map(Path, sys.argv[1:])
np.save(masks, Predictor.load(model, settings).masks(np.load(images)))
print(keras.backend.backend())
"""


class Waiting(keras.callbacks.Callback):
    """Measures how long a fit waits for batches, how long its epochs take, and when validation reached which Dice.

    Attributes
    ----------
    waited, steps
        Seconds before steps, since the end of the last one or the beginning of the epoch, and seconds of the steps,
        from the second epoch on.
    epochs
        Seconds of the training of each epoch, without its validation.
    reached
        Seconds since the beginning, and the validation Dice, after each epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waited = self.steps = 0.0
        self.epochs: list[float] = []
        self.reached: list[tuple[float, float]] = []
        self._begun = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clocks."""
        self._epoch = self._last = time.perf_counter()
        self._seconds = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Count the time since the last step as waiting."""
        now = time.perf_counter()
        if self.epochs:
            self.waited += now - self._last
        self._last = now

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the time of the step; Keras has read its loss by now, so the device has ended it."""
        now = time.perf_counter()
        if self.epochs:
            self.steps += now - self._last
        self._last, self._seconds = now, now - self._epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keep what the epoch took, and the Dice."""
        self.epochs.append(self._seconds)
        self.reached.append((time.perf_counter() - self._begun, logs["val_dice"]))

    def seconds_to(self, dice: float) -> float | None:
        """Return after how many seconds validation reached a Dice; None where it did not."""
        return next((seconds for seconds, found in self.reached if found >= dice), None)


@dataclass
class Card:
    """What `nvidia-smi` says every half second; nothing where there is none."""

    used_mib: list[float] = field(default_factory=list)
    percent: list[float] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Ask until `stopped` is set."""
        query = ["nvidia-smi", "--query-gpu=memory.used,utilization.gpu", "--format=csv,noheader,nounits"]
        while shutil.which("nvidia-smi") and not self.stopped.wait(0.5):
            answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
            if answer:
                used, percent = (float(value) for value in answer[0].split(","))
                self.used_mib.append(used)
                self.percent.append(percent)

    def __enter__(self) -> Card:
        threading.Thread(target=self.watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()

    @property
    def found(self) -> dict[str, float | None]:
        """The largest memory in MiB, and the mean utilisation in percent."""
        return {
            "memory_mib": max(self.used_mib, default=None),
            "utilisation_percent": round(float(np.mean(self.percent)), 1) if self.percent else None,
        }


def device() -> str:
    """Return what the backend computes on."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return str(jax.devices()[0].device_kind)
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    import tensorflow as tf

    return str((tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("CPU"))[0].device_type)


def fit(preset: Params, pairs: Sequence[Pair], options: argparse.Namespace, work: Path) -> tuple[Any, Any, PatchStore]:
    """Fit a preset's recipe for ``--crops`` crops; return what was measured, the model and the patches."""
    conventions = read_conventions(options.data / CONVENTIONS)
    store = write_store(work / "patches", list(pairs), preset.patch, conventions)
    recipe = preset.starting_recipe()
    recipe = recipe.replace(epochs=EPOCHS, patience=EPOCHS, patches_per_epoch=max(options.crops // EPOCHS, 8))
    waiting = Waiting()
    with Card() as card:
        model = fitting.fit(store, recipe, loaders=options.loaders, callbacks=[waiting], title=work.name).model
    busy = waiting.waited + waiting.steps
    found = {
        "crops": EPOCHS * recipe.patches_per_epoch,
        "crops_per_second": round((EPOCHS - 1) * recipe.patches_per_epoch / busy, 1),
        "waiting_share": round(waiting.waited / busy, 4),
        "first_epoch_seconds": round(waiting.epochs[0], 1),
        "seconds": round(waiting.reached[-1][0], 1),
        "validation_dice": round(max(dice for _, dice in waiting.reached), 4),
        **{f"seconds_to_{goal}": waiting.seconds_to(goal) for goal in GOALS},
        **card.found,
    }
    return found, model, store


def predict(model: keras.Model, preset: Params, store: PatchStore, pair: Pair, options: argparse.Namespace) -> Any:
    """Predict ``--slices`` slices twice, and return the speed of the second time and the parity with the CPU."""
    settings = Settings.for_recipe(preset.starting_recipe(), preset.evaluate, store.bit_depth)
    predictor = Predictor(model, settings)
    images = np.stack(list(islice(pair.image.slices(), options.slices)))
    with Card() as card:
        predictor.masks(images)
        start = time.perf_counter()
        predictor.masks(images)
        seconds = time.perf_counter() - start
    return {
        "voxels": images.size,
        "megavoxels_per_second": round(images.size / seconds / 1e6, 2),
        **card.found,
        **parity(model, settings, images[:COMPARED]),
    }


def parity(model: keras.Model, settings: Settings, images: np.ndarray) -> dict[str, Any]:
    """Return the Dice of the masks of this process and of one on the CPU."""
    here = keras.backend.backend()
    other = next((name for name in ("tensorflow", "torch") if name != here and find_spec(name)), here)
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / file for file in ("model.keras", "settings.yaml", "images.npy", "masks.npy")]
        unet.save_model(model, paths[0])
        settings.write(paths[1])
        np.save(paths[2], images)
        cpu = {"KERAS_BACKEND": other, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", PARITY, *map(str, paths)]
        done = subprocess.run(command, env=os.environ | cpu, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"parity": None, "parity_error": reason(done)}
        theirs = np.load(paths[3])
    mine = Predictor(model, settings).masks(images)
    counts = metrics.count(theirs, mine).sum(0)
    return {"parity": round(float(metrics.dice(counts)), 5), "parity_backend": done.stdout.split()[-1]}


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """Return why a process failed: the last line that it wrote, if any, or with what it ended."""
    return (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    described = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=described)
    parser.add_argument("--data", type=Path, default=Path(), help="folder of a project (default: this one)")
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="recipes to fit (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=16_000, help="of each fit (default %(default)s)")
    parser.add_argument("--slices", type=int, default=165, help="to predict (default %(default)s)")
    parser.add_argument("--loaders", type=int, default=max((os.cpu_count() or 2) - 2, 1), help="processes for batches")
    parser.add_argument("--into", type=Path, help="a JSON file for the results")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> None:
    """Run the fits and the prediction, and print what was found as JSON."""
    pairs = read_pairs(options.data / DATA / "train")
    results: dict[str, Any] = {"backend": keras.backend.backend(), "device": device(), "loaders": options.loaders}
    for name in options.presets:
        preset = presets.load(name)
        # Orthogonal planes need voxels with equal sides, as EPFL's.
        chosen = [pair for pair in pairs if pair.dataset == "epfl" or not preset.train.orthoplanes] or pairs[:1]
        with tempfile.TemporaryDirectory() as folder:
            results[name], model, store = fit(preset, chosen, options, Path(folder) / name)
            print(name, json.dumps(results[name]), flush=True)
            if "predict" not in results:
                results["predict"] = predict(model, preset, store, chosen[0], options)
                print("predict", json.dumps(results["predict"]), flush=True)
    if options.into:
        files.write_json(options.into, results)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure; errors of the user are one line."""
    options = parse(arguments)
    run_as_command(lambda: measure(options))


if __name__ == "__main__":
    main()

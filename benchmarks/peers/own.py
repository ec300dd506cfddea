"""mitoflow: a clone of this repository, a preset, and `dvc repro`.

The clone has what is committed; changes that are not committed are not measured. The slices are imported as a lab's own
stack, and the preset is `imported` for vnc and `epfl-quick` for EPFL. The slices of EPFL that train are eight apart,
and are imported as unrelated ones: no planes can be cut across them, so both keys `orthoplanes` are false there. There
is no study, whose time would be part of the budget: the values that it would choose are those of its first trial. The
test part is imported too, since `dvc repro evaluate` needs one; it decides nothing.

The learning rate falls over the epochs of a training. A run of `MEASURED_EPOCHS` epochs, which does not count, gives
the seconds to the end of the first and of each further one; the training has as many epochs as fit the budget, with a
`patience` that does not end it earlier. Each key of `params.yaml` that is changed after the preset is a line of
configuration.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.peers.commands import CannotRunError, Commands, epochs_within
from benchmarks.peers.parts import Parts
from benchmarks.peers.work import Found, Work
from mitoflow.config import presets
from mitoflow.io import tiff

MEASURED_EPOCHS = 3
ROOT = Path(__file__).parents[2]
PRESETS = {"vnc": "imported", "epfl": "epfl-quick"}
UNRELATED = {"epfl"}  # data whose slices that train are not neighbours


def run(work: Work) -> Found:
    """Train mitoflow on the slices and predict the others.

    Raises
    ------
    CannotRunError
        It cannot be run.
    """
    project, params = work.folder / "project", work.folder / "project/params.yaml"
    curves = project / "reports/train/curves.csv"  # gets a line after each epoch
    cloned = subprocess.run(["git", "clone", "--quiet", ROOT, project], capture_output=True, text=True, check=False)
    if cloned.returncode:
        raise CannotRunError(f"git clone: {cloned.stderr.strip()}")
    commands = Commands(project, {"PYTHONPATH": str(project / "src"), "TQDM_DISABLE": "1"})
    commands.run(*mitoflow("data", "import", *lay_out(work.folder, work.parts)))
    preset = PRESETS[work.parts.name]
    presets.apply(params, preset)

    def train(epochs: int, seed: int) -> list[float]:
        presets.change(params, configuration(work.parts.name, epochs, seed))
        commands.run(*dvc("repro", "tune"))  # validates and cuts, the first time; nothing is left to tune
        curves.unlink(missing_ok=True)  # of an earlier training: the clone has one
        return commands.run(*dvc("repro", "train"), progress=lambda: _lines(curves) - 1 if curves.exists() else 0)

    # With another seed, or DVC would take a training of as many epochs for the same one and not train again.
    epochs = epochs_within(work.seconds, train(MEASURED_EPOCHS, work.seed + 1)[:-1])
    *reached, training = train(epochs, work.seed)
    commands.run(*dvc("repro", "evaluate"))  # chooses threshold and median by validation
    found = work.folder / "predicted.tif"
    images = work.folder / "test_images.tif"
    *_, prediction = commands.run(*mitoflow("predict", images, found, "--model", "models/unet.keras"))
    described = subprocess.run(["git", "describe", "--always"], cwd=project, capture_output=True, text=True, check=True)
    return Found(
        masks=np.stack([*tiff.open_mask(found).slices()]) > 0,
        version=described.stdout.strip(),
        length=f"{len(reached)} of {epochs} epochs",
        training_seconds=training,
        prediction_seconds=prediction,
        peak_mib=commands.peak_mib,
        lines=len(configuration(work.parts.name, epochs, work.seed)),
    )


def mitoflow(*arguments: str | Path) -> list[str]:
    """Return a command of mitoflow, by the Python of this process."""
    return [sys.executable, "-m", "mitoflow.cli", *map(str, arguments)]


def dvc(*arguments: str) -> list[str]:
    """Return a command of DVC, by the Python of this process."""
    return [sys.executable, "-m", "dvc", *arguments]


def lay_out(folder: Path, parts: Parts) -> list[str]:
    """Write each part as a stack, and return the options of `mitoflow data import`."""
    stacks = {
        "images": parts.images,
        "masks": parts.masks.astype(np.uint8),
        "test-images": parts.test_images,
        "test-masks": parts.test_masks.astype(np.uint8),
    }
    options = ["--name", f"{parts.name}-slices"]  # `epfl` alone is the name of a dataset that mitoflow knows
    for option, stack in stacks.items():
        path = folder / f"{option.replace('-', '_')}.tif"
        tiff.write_stack(path, stack)
        options += [f"--{option}", str(path)]
    return [*options, "--unrelated"] if parts.name in UNRELATED else options


def configuration(name: str, epochs: int, seed: int) -> dict[str, str]:
    """Return what differs from the preset, as keys of `params.yaml`."""
    tuned = presets.load(PRESETS[name]).tune
    values: dict[str, object] = {
        "train.learning_rate": tuned.learning_rate.start,
        "train.depth": tuned.depth.start,
        "train.augment_strength": tuned.augment_strength.start,
        "train.epochs": epochs,
        "train.patience": epochs,
        "train.seed": seed,
    }
    if name in UNRELATED:
        values |= {"train.orthoplanes": "false", "evaluate.orthoplanes": "false"}
    return {key: str(value) for key, value in values.items()}


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())

"""Load models with random damage, in a process of bounded memory and time: ``FOLDER SEED COUNT``.

It prints the number of each model before it loads it. One of eight models is not damaged, and has to be loaded.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import sys
import zipfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from mitoflow.core.process import silence_libraries
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from tests.tiny_model import write_model

from .damaged_images import harmed, harmed_json, limit_memory, read_or_refuse

SETTINGS = Settings(bit_depth=8, divisor=2, tile=32, overlap=16, threshold=0.5)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 40, 48), np.uint8)
CONFIG, WEIGHTS = "config.json", "model.weights.h5"


def harm(folder: Path, chance: random.Random) -> None:
    """Damage the settings, the archive, or what is in it: its configuration most often."""
    archive, how = folder / "unet.keras", chance.random()
    if how < 0.1:
        settings = folder / "inference.yaml"
        settings.write_bytes(harmed(settings.read_bytes(), chance))
    elif how < 0.2:
        archive.write_bytes(harmed(archive.read_bytes(), chance))
    else:
        with zipfile.ZipFile(archive) as source:
            members = {name: source.read(name) for name in source.namelist()}
        if how < 0.75:
            members[CONFIG] = harmed_json(members[CONFIG], chance)
        elif how < 0.8:
            members[CONFIG] = harmed(members[CONFIG], chance)
        elif how < 0.95:
            members[WEIGHTS] = harmed(members[WEIGHTS], chance)
        else:
            del members[chance.choice([*members])]
        changed = io.BytesIO()
        with zipfile.ZipFile(changed, "w") as target:
            for name, content in members.items():
                target.writestr(name, content)
        archive.write_bytes(changed.getvalue())


def check(folder: Path) -> None:
    """Load a model and predict with it, as mitoflow does; raises `InputError` where it is refused."""
    maps = Predictor.load(folder / "unet.keras", folder / "inference.yaml").probabilities(IMAGES)
    assert maps.shape == IMAGES.shape
    assert 0 <= maps.min() <= maps.max() <= 1


def main(folder: Path, seed: str, count: int) -> None:
    silence_libraries()
    whole, damaged = folder / "whole", folder / "damaged"
    whole.mkdir()
    write_model(whole, SETTINGS, IMAGES)
    check(whole)
    limit_memory()
    for number in range(count):
        print(number, flush=True)
        chance = random.Random(f"{seed} {number}")
        shutil.copytree(whole, damaged)
        if is_damaged := number % 8 > 0:
            harm(damaged, chance)
        read_or_refuse(damaged, check, is_damaged=is_damaged)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

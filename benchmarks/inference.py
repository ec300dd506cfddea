"""How many pixels of a volume a second does inference segment?

Slices go in and masks come out, the U-Net has base width 16 and depth 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import baselines
from benchmarks.measure import Candidate, Lap, alternate
from benchmarks.table import Row, compare

if TYPE_CHECKING:
    from mitoflow.inference.predictor import Predictor

COMMAND = "python -m benchmarks inference"
STACK = (4, 768, 1024)  # pixels of the phantom
MEGAPIXELS = STACK[0] * STACK[1] * STACK[2] / 1e6
SIZE = 256  # of a patch


def rows(rounds: int) -> list[Row]:
    contenders: dict[str, Candidate] = {"mitoflow": mitoflow, "Keras": keras, "PyTorch": pytorch}
    series = alternate(contenders, rounds)
    what = "whole-volume inference, the same U-Net"
    return [
        compare(what, "Mpx/s", series, "Keras", "Keras `predict` on float32 patches", 3, COMMAND),
        compare(what, "Mpx/s", series, "PyTorch", "PyTorch bf16, channels_last, whole slices", 1.2, COMMAND),
    ]


def images() -> Any:
    """Return the volume: (Z, Y, X) uint8."""
    from mitoflow.data.phantom import make_phantom

    return make_phantom(STACK, seed=0)[0]


def predictor() -> Predictor:
    """Return mitoflow's predictor with an untrained network."""
    import keras

    from mitoflow.inference.predictor import Predictor
    from mitoflow.inference.settings import Settings
    from mitoflow.models import unet

    keras.config.set_dtype_policy("mixed_bfloat16")
    settings = Settings(
        bit_depth=8,
        divisor=16,
        context=0,
        context_step=1,
        tile=1024,
        overlap=128,
        tta=1,
        median=1,
        threshold=0.5,
    )
    return Predictor(unet.build_unet(4, 16), settings)


def mitoflow(lap: Lap) -> None:
    volume, model = images(), predictor()
    while True:
        model.masks(volume)
        lap(MEGAPIXELS)


def keras(lap: Lap) -> None:
    import numpy as np
    from patchify import unpatchify

    volume, model = images(), baselines.keras_unet(16)
    grid = (STACK[1] // SIZE, STACK[2] // SIZE, SIZE, SIZE)
    while True:
        masks = np.empty(volume.shape, np.uint8)
        for z, image in enumerate(volume):
            patches = model.predict(baselines.cut(image[None], SIZE), verbose=0)
            masks[z] = unpatchify(patches.reshape(grid), image.shape) >= 0.5
        lap(MEGAPIXELS)


def pytorch(lap: Lap) -> None:
    import numpy as np
    import torch

    volume, model = images(), baselines.torch_unet(16).eval()
    while True:
        masks = np.empty(volume.shape, np.uint8)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            for z, image in enumerate(volume):
                unit = torch.from_numpy(image.astype(np.float32) / 255)[None, None]
                masks[z] = model(unit.contiguous(memory_format=torch.channels_last))[0, 0].float().numpy() >= 0
        lap(MEGAPIXELS)

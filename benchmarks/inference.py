"""How many pixels of a volume a second does inference segment?

Slices go in and masks come out. The U-Net has base width 16 and depth 4; beside it stands mitoflow's default network,
which needs no longer training to the same Dice (`python -m benchmarks train_step`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import baselines
from benchmarks.measure import Candidate, Lap, alternate
from benchmarks.table import Row, compare
from mitoflow.config.params import Train

if TYPE_CHECKING:
    from mitoflow.inference.predictor import Predictor

COMMAND = "python -m benchmarks inference"
STACK = (4, 768, 1024)  # pixels of the phantom
MEGAPIXELS = STACK[0] * STACK[1] * STACK[2] / 1e6
SIZE = 256  # of a patch


def rows(rounds: int) -> list[Row]:
    contenders: dict[str, Candidate] = {
        "mitoflow": partial(mitoflow, "unet"),
        "the default network": partial(mitoflow, Train().network),
        "Keras": keras,
        "PyTorch": pytorch,
    }
    series = alternate(contenders, rounds)
    default = {**series, "mitoflow": series["the default network"]}
    whole_patches, whole_slices = "Keras `predict` on float32 patches", "PyTorch bf16, channels_last, whole slices"
    same, other = "whole-volume inference, the same U-Net", "whole-volume inference, the default network"
    return [
        compare(same, "Mpx/s", series, "Keras", whole_patches, 3, COMMAND),
        compare(same, "Mpx/s", series, "PyTorch", whole_slices, 1.2, COMMAND),
        compare(other, "Mpx/s", default, "Keras", f"{whole_patches}, plain U-Net", 4, COMMAND),
        compare(other, "Mpx/s", default, "PyTorch", f"{whole_slices}, plain U-Net", 2, COMMAND),
    ]


def images() -> Any:
    """Return the volume: (Z, Y, X) uint8."""
    from mitoflow.data.phantom import make_phantom

    return make_phantom(STACK, seed=0)[0]


def predictor(network: str = "unet") -> Predictor:
    """Return mitoflow's predictor with an untrained network of that name."""
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
    return Predictor(unet.NETWORKS[network](4, 16, 1), settings)


def mitoflow(network: str, lap: Lap) -> None:
    volume, model = images(), predictor(network)
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

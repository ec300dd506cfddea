"""The U-Net and its training loop as a user of each framework writes them, and the augmentation of the first baseline.

The U-Net is that of `mitoflow.models.unet.build_unet`, layer by layer, in the framework's own layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

SEED = 1


def keras_unet(base_width: int, depth: int = 4) -> Any:
    """Return the U-Net in plain Keras: (N, Y, X, 1) to (N, Y, X, 1) probabilities."""
    from keras import Input, Model, layers

    def convolve_twice(x: Any, width: int) -> Any:
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", kernel_initializer="he_normal")(x)
            x = layers.BatchNormalization()(x)
            x = layers.Activation("relu")(x)
        return x

    inputs = Input((256, 256, 1))
    skips, x = [], inputs
    for level in range(depth):
        skips.append(convolve_twice(x, base_width * 2**level))
        x = layers.MaxPooling2D(2)(skips[-1])
    x = convolve_twice(x, base_width * 2**depth)
    for level in reversed(range(depth)):
        x = layers.Conv2DTranspose(base_width * 2**level, 2, strides=2)(x)
        x = convolve_twice(layers.concatenate([skips[level], x]), base_width * 2**level)
    return Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x))


def torch_unet(base_width: int, depth: int = 4) -> Any:
    """Return the U-Net in plain PyTorch: (N, 1, Y, X) to (N, 1, Y, X) logits, channels last."""
    import torch
    from torch import nn

    def convolve_twice(channels: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
        )

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [base_width * 2**level for level in range(depth + 1)]
            self.down = nn.ModuleList(convolve_twice(*pair) for pair in zip([1, *widths], widths, strict=False))
            self.pool = nn.MaxPool2d(2)
            self.transposed = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[:-1])
            self.up = nn.ModuleList(convolve_twice(2 * width, width) for width in widths[:-1])
            self.logits = nn.Conv2d(base_width, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skips = []
            for level in range(depth):
                skips.append(self.down[level](x))
                x = self.pool(skips[-1])
            x = self.down[depth](x)
            for level in reversed(range(depth)):
                x = self.up[level](torch.cat([skips[level], self.transposed[level](x)], dim=1))
            return self.logits(x)

    torch.manual_seed(SEED)
    return UNet().to(memory_format=torch.channels_last)


def augmented(images: np.ndarray, masks: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches as the first baseline does: two Keras generators with equal draws, for images and for masks.

    Images and masks are (N, Y, X, 1) float32 in [0, 1], before and after.
    """
    from tensorflow.keras.preprocessing.image import ImageDataGenerator

    settings = {
        "rotation_range": 90,
        "width_shift_range": 0.3,
        "height_shift_range": 0.3,
        "shear_range": 0.5,
        "zoom_range": 0.3,
        "horizontal_flip": True,
        "vertical_flip": True,
        "fill_mode": "reflect",
    }
    image_batches, mask_batches = (
        ImageDataGenerator(**settings).flow(arrays, batch_size=batch_size, seed=SEED) for arrays in (images, masks)
    )
    # Not `yield from zip(...)` alone: fit takes a generator, and a zip is none.
    yield from zip(image_batches, mask_batches, strict=True)


def cut(stack: np.ndarray, size: int) -> np.ndarray:
    """Cut a stack (Z, Y, X) in 0 to 255 with patchify: patches (N, size, size, 1) float32 in [0, 1]."""
    from patchify import patchify

    patches = [patchify(image, (size, size), step=size).reshape(-1, size, size, 1) for image in stack]
    return np.concatenate(patches).astype(np.float32) / 255

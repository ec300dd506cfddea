"""Masks with a number for each mitochondrion: `python -m benchmarks numbered MASKS OUTPUT`.

The masks of published sets say where mitochondria are, and not which is which. Those that `pretrained/general` learned
its contacts from were numbered by this command: heart by the lines that are drawn in `touching_heart.txt`, the others
by the rule of `mitoflow predict --instances`, so that a network learns that what has no neck is one mitochondrion.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.touching import LINES, divided, read_lines
from mitoflow.config.params import Instances
from mitoflow.errors import run_as_command
from mitoflow.instances.separation import separate
from mitoflow.io import spacing, tiff
from mitoflow.io.spacing import Size, known_voxel_size

ALL = Instances(smallest_voxels=1, smallest_um3=1e-12)  # the smallest ones count, too


def by_lines(masks: np.ndarray) -> np.ndarray:
    """Return the mitochondria of the sections of heart, (Z, Y, X) labels, for their masks (Z, Y, X) bool."""
    lines = read_lines(LINES)
    return np.stack([divided(mask, lines.get(section, [])) for section, mask in enumerate(masks)])


def by_rule(masks: np.ndarray, voxel_size: Size | None) -> np.ndarray:
    """Return the mitochondria of masks (Z, Y, X) bool, labels of that shape; voxel size in nm, None for cubes."""
    return np.where(masks, separate(masks, ALL, voxel_size), 0)  # the rule fills holes, too


def main(arguments: Sequence[str] | None = None) -> None:
    """Number the masks of a file; errors of the user are one line."""
    described = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks numbered", description=described)
    parser.add_argument("masks", type=Path, help="a TIFF")
    parser.add_argument("output", type=Path, help="a TIFF of labels")
    parser.add_argument("--lines", action="store_true", help="MASKS is groundtruth.tif of the set heart")
    parser.add_argument("--voxel-size", metavar="Z,Y,X", help="nanometres; cubes where it is unknown")
    options = parser.parse_args(arguments)
    run_as_command(lambda: write(options))


def write(options: argparse.Namespace) -> None:
    """Write the numbered masks."""
    masks = np.stack([mask > 0 for mask in tiff.open_mask(options.masks).slices()])
    known = spacing.parse(options.voxel_size) if options.voxel_size else {}
    labels = by_lines(masks) if options.lines else by_rule(masks, known_voxel_size(known, len(masks)))
    tiff.write_stack(options.output, labels.astype(np.uint16 if labels.max() < 2**16 else np.uint32))
    print(f"{options.output}: {labels.max()} is the largest number")


if __name__ == "__main__":
    main()

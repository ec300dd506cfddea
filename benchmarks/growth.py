"""How do time and memory of inference grow with the volume?

Slices are read from a TIFF file one after the other, segmented, and their masks written to another.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.inference import predictor
from benchmarks.measure import Candidate, Lap, Series, alternate, quartiles
from benchmarks.table import Row

COMMAND = "python -m benchmarks growth"
SLICES = (1, 10, 100, 1000)
SHAPE = (256, 256)  # of a slice
DRAWN = 10  # slices of the phantom that are repeated
PICTURE = "growth.svg"
LINEAR, FLAT = 1.1, 1.1  # time a slice and memory, 1000 slices against 10, may be this much larger


def rows(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_stacks(data)
        contenders: dict[str, Candidate] = {str(count): partial(segment, data, count) for count in SLICES}
        series = alternate(contenders, rounds)
    time = {count: quartiles(series[str(count)].seconds).median for count in SLICES}
    memory = {count: series[str(count)].peak_mib for count in SLICES}
    slower, larger = time[1000] / time[10] / 100, memory[1000] / memory[10]
    cells = {
        "what": f"inference over {', '.join(map(str, SLICES))} slices of {SHAPE[0]} x {SHAPE[1]}",
        "mitoflow": f"{', '.join(f'{time[count]:.3g}' for count in SLICES)} s",
        "baseline": "10 slices",
        "ratio": f"{slower:.2f} × the time a slice, {larger:.2f} × the memory",
        "goal": "linear in time, flat in memory",
        "met": "yes" if slower <= LINEAR and larger <= FLAT else "no",
        "peak memory": f"{', '.join(f'{memory[count]:,.0f}' for count in SLICES)} MiB",
        "command": f"`{COMMAND}`",
    }
    return [Row(cells, series)]


def write_stacks(data: Path) -> None:
    """Write a phantom of each length, as DIR/N.tif."""
    from mitoflow.data.phantom import make_phantom
    from mitoflow.io.tiff import write_stack

    drawn, _ = make_phantom((DRAWN, *SHAPE), seed=0)
    for count in SLICES:
        write_stack(data / f"{count}.tif", np.resize(drawn, (count, *SHAPE)))


def segment(data: Path, count: int, lap: Lap) -> None:
    import tifffile

    from mitoflow.io.tiff import open_stack

    model = predictor()
    stack = open_stack(data / f"{count}.tif")
    while True:
        with tifffile.TiffWriter(data / f"{count}-masks.tif") as masks:
            for probability in model.stream(stack.slice, range(count)):
                masks.write((probability >= 0.5).astype(np.uint8), contiguous=True)
        lap(count)


def draw(series: dict[str, Series], file: Path) -> None:
    """Draw time and memory over the number of slices."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    counts = [int(count) for count in series]
    times = [quartiles(each.seconds) for each in series.values()]
    spread = [[each.median - each.low for each in times], [each.high - each.median for each in times]]
    medians = [each.median for each in times]
    seconds.errorbar(counts, medians, spread, marker="o", capsize=3, label="median and quartiles")
    seconds.plot(counts, [medians[1] / counts[1] * count for count in counts], "--", color="grey", label="linear")
    seconds.set(xscale="log", yscale="log", xlabel="slices", ylabel="seconds")
    seconds.legend(frameon=False)
    memory.plot(counts, [each.peak_mib for each in series.values()], marker="o")
    largest = max(each.peak_mib for each in series.values())
    memory.set(xscale="log", xlabel="slices", ylabel="peak memory, MiB", ylim=(0, 1.2 * largest))
    figure.savefig(file, metadata={"Date": None})

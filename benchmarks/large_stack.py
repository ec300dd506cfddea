"""How much memory does `mitoflow predict` need for a stack of 10 Gvoxel, and does it stay constant?

A phantom, repeated, becomes an OME-Zarr of that size. One command predicts it with the model ``pretrained:epfl``
while its memory is measured; the same command with a single small slice measures the loaded model alone.

    python -m benchmarks.large_stack                    # hours on two cores
    python -m benchmarks.large_stack --slices 64        # slices of the same size, fewer of them
    python -m benchmarks.large_stack --project big      # keeps the folder, so that it can be resumed
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import zarr

from mitoflow.core import files
from mitoflow.errors import InputError, run_as_command

RESULTS = Path(__file__).with_name("results")
MODEL = "pretrained:epfl"
SIDE = 2155  # voxels: a cube of 10 Gvoxel
CHUNK = (32, 512, 512)
STEP = 1.0  # seconds between two measurements
LIMIT = 1024.0  # MiB above the loaded model


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_stack", description=__doc__)
    parser.add_argument("--slices", type=int, default=SIDE, help="of 2155 x 2155 voxels (default %(default)s)")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder for the results (default %(default)s)")
    parser.add_argument("--project", type=Path, help="a folder to work in and to keep: the same command resumes there")
    options = parser.parse_args()
    run_as_command(lambda: measure(options))


def measure(options: argparse.Namespace) -> None:
    """Predict both stacks and report what the large one needed."""
    shape = (options.slices, SIDE, SIDE)
    with tempfile.TemporaryDirectory() as folder:
        project = options.project or Path(folder)
        prepare(project, {"small": (1, 64, 64), "large": shape})
        watch(project, "small")
        watch(project, "large")
        options.into.mkdir(parents=True, exist_ok=True)
        model = max(memory for _, memory in read(project / "small.csv"))
        report(options.into, read(project / "large.csv"), model, shape)


def prepare(project: Path, stacks: Mapping[str, tuple[int, int, int]]) -> None:
    """Make a project with stacks of these names and shapes (Z, Y, X), each unless it is there.

    Raises
    ------
    InputError
        A stack is there with another shape.
    """
    project.mkdir(parents=True, exist_ok=True)
    (project / "params.yaml").touch()
    if not (project / "pretrained").exists():
        (project / "pretrained").symlink_to(RESULTS.parents[1] / "pretrained")
    for name, shape in stacks.items():
        path = project / f"{name}.ome.zarr"
        if not path.exists():
            with files.replacing(path) as beside:
                write_stack(beside, shape)
        elif (found := zarr.open_array(path / "0", mode="r").shape) != shape:
            raise InputError(path, f"the shape {found}", f"{shape}", "give its --slices, or another folder")


def write_stack(path: Path, shape: tuple[int, int, int]) -> None:
    """Write an OME-Zarr of `shape` (Z, Y, X), chunk by chunk, all of them parts of one phantom."""
    from mitoflow.data.phantom import make_phantom
    from mitoflow.io import ome

    drawn = (
        make_phantom(CHUNK, seed=0)[0] & 0xF0
    )  # fewer grey values compress better, and the time does not depend on them
    array = ome.create_multiscale(path, shape, drawn.dtype, CHUNK[0])
    starts = (range(0, length, chunk) for length, chunk in zip(shape, CHUNK, strict=True))
    for start in itertools.product(*starts):
        place = tuple(slice(s, min(s + c, n)) for s, c, n in zip(start, CHUNK, shape, strict=True))
        array[place] = drawn[tuple(slice(0, each.stop - each.start) for each in place)]
    axes = [{"name": axis, "type": "space"} for axis in "zyx"]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    image = {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    (path / ".zattrs").write_text(json.dumps({"multiscales": [image]}), encoding="utf-8")


def watch(project: Path, name: str) -> None:
    """Predict a stack and write NAME.csv as it goes: seconds, resident MiB. Time goes on where an earlier run ended."""
    arguments = [f"{name}.ome.zarr", f"{name}_mask.ome.zarr", "--model", MODEL]
    if (project / arguments[1]).exists():
        return
    table = project / f"{name}.csv"
    before = read(table)[-1][0] if table.exists() else 0.0
    started = time.monotonic() - before
    command = [sys.executable, "-m", "mitoflow.cli", "predict", *arguments]
    with table.open("a", encoding="ascii", buffering=1) as curve, subprocess.Popen(command, cwd=project) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            for kib in (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")):
                curve.write(f"{time.monotonic() - started:.1f},{int(kib) / 1024:.0f}\n")
            time.sleep(STEP)
    if process.returncode:
        raise SystemExit(process.returncode)


def read(table: Path) -> list[tuple[float, float]]:
    """The curve that `watch` wrote: seconds, MiB."""
    rows = (line.split(",") for line in table.read_text(encoding="ascii").splitlines())
    return [(float(seconds), float(memory)) for seconds, memory in rows]


def report(folder: Path, curve: list[tuple[float, float]], model: float, shape: tuple[int, int, int]) -> None:
    from matplotlib.figure import Figure

    name = f"large-stack-{time.strftime('%Y-%m-%d')}"
    rows = "".join(f"{seconds:.1f},{memory:.0f}\n" for seconds, memory in curve)
    (folder / f"{name}.csv").write_text(f"seconds,resident_mib\n{rows}", encoding="ascii")
    seconds, memory = np.array(curve).T
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(seconds, memory, label=f"mitoflow predict, {np.prod(shape) / 1e9:.1f} Gvoxel")
    axes.axhline(model, color="grey", linestyle="--", label="the model loaded and run on one small slice")
    axes.axhline(model + LIMIT, color="grey", linestyle=":", label="1 GiB above")
    axes.set(xlabel="seconds", ylabel="resident memory, MiB", ylim=(0, 1.3 * max(memory.max(), model + LIMIT)))
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    above = memory.max() - model
    verdict = "within" if above <= LIMIT else "above"
    print(
        f"{shape}: at most {above:.0f} MiB above the {model:.0f} MiB of the model, {verdict} {LIMIT:.0f}; see {folder}"
    )


if __name__ == "__main__":
    main()

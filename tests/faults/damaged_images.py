"""Read image files with random damage, in a process of bounded memory and time: ``KIND FOLDER SEED COUNT``.

It prints the number of each file before it reads it. One of eight files is not damaged, and has to be read.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import tensorstore
import tifffile
import zarr
from ncempy.io import dm
from PIL import Image

from mitoflow.core.process import silence_libraries
from mitoflow.errors import InputError
from mitoflow.inference import overlay
from mitoflow.instances.label_files import read_labels
from mitoflow.io import gatan, hdf5, n5, ome, png, volumes
from tests.io.test_gatan import write as write_gatan
from tests.io.test_mrc import write as write_mrc
from tests.io.test_n5 import write as write_n5
from tests.io.test_volumes import write_zarr

MEMORY = 2**30  # bytes beside what the libraries take
SECONDS = 60  # for one file, on a busy machine
LARGEST = 2**26  # bytes of a slice that is read at once; of larger ones `predict` reads blocks
ODD = [None, True, "", "x", [], {}, [[]], -1, 0, 1, 2, 0.5, 255, 65536, 2**31, 2**32 - 1, 2**63, 1e308, float("nan")]
NUMBERS = [b"0", b"-1", b"7", b"99", b"65535", b"4294967296", b"1e400", b"9" * 30]


def write_tiff(path: Path, stack: np.ndarray, chance: random.Random) -> None:
    metadata = chance.choice([None, {"axes": "ZYX"}])
    compression = chance.choice([None, "zlib", "lzw", "zstd", "lzma", "packbits", "jpeg", "jpeg2000"])
    tifffile.imwrite(
        path,
        stack,
        photometric=chance.choice(["minisblack", "miniswhite"]),
        compression=compression,
        compressionargs={"lossless": True} if compression == "jpeg" else None,
        metadata=metadata,
    )


def write_imagej(path: Path, stack: np.ndarray, _: random.Random) -> None:
    tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "ZYX", "spacing": 30, "unit": "nm"})


def write_ome_tiff(path: Path, stack: np.ndarray, chance: random.Random) -> None:
    metadata = {"axes": "ZYX", "PhysicalSizeX": 4, "PhysicalSizeXUnit": "nm"}
    tifffile.imwrite(path, stack, ome=True, metadata=metadata, compression=chance.choice([None, "zlib"]))


def write_overlay(path: Path, stack: np.ndarray, _: random.Random) -> None:
    path.write_bytes(overlay.contours_png([(stack[0], stack[0] > 0)]))


def write_hdf5(path: Path, stack: np.ndarray, chance: random.Random) -> None:
    packed = chance.choice([{}, {"chunks": (2, 32, 32)}, {"compression": "gzip", "shuffle": True, "fletcher32": True}])
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("volume/data", data=stack, **packed)
        dataset.attrs["element_size_um"] = [0.03, 0.004, 0.004]
        text = json.dumps({"axes": [{"key": axis} for axis in "zyx"]})
        dataset.attrs["axistags"] = text if chance.random() < 0.2 else np.bytes_(text)  # of variable or fixed length


BLOSC = {"type": "blosc", "cname": "zstd", "clevel": 1, "shuffle": 1}


def write_blocks(path: Path, stack: np.ndarray, chance: random.Random) -> None:
    compression = chance.choice(
        [{"type": "raw"}, {"type": "gzip", "level": 1}, {"type": "bzip2"}, {"type": "zstd", "level": 1}, BLOSC]
    )
    write_n5(path, stack, compression=compression)


#: For each kind of file its ending, and what writes it.
KINDS: dict[str, tuple[str, Callable[[Path, np.ndarray, random.Random], object]]] = {
    "TIFF": (".tif", write_tiff),
    "ImageJ TIFF": (".tif", write_imagej),
    "OME-TIFF": (".ome.tif", write_ome_tiff),
    "OME-Zarr 0.4": (".ome.zarr", lambda path, stack, _: write_zarr(path, stack, version=2)),
    "OME-Zarr 0.5": (".ome.zarr", lambda path, stack, _: write_zarr(path, stack, version=3)),
    "PNG": (".png", lambda path, stack, _: Image.fromarray(stack[0]).save(path)),
    "overlay": (".overlay.png", write_overlay),
    "MRC": (".mrc", lambda path, stack, _: write_mrc(path, stack)),
    "DM3": (".dm3", lambda path, stack, _: write_gatan(path, stack)),
    "DM4": (".dm4", lambda path, stack, _: write_gatan(path, stack)),
    "HDF5": (".h5", write_hdf5),
    "N5": (".n5", write_blocks),
}


def harmed(content: bytes, chance: random.Random) -> bytes:
    """Return bytes with one to three changes: other bits, bytes and numbers, and what is missing or twice there."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        if not changed:
            break
        place = chance.randrange(len(changed))
        length = chance.choice([1, 2, 4, 16, 200])
        how = chance.choice(["bit", "bytes", "number", "cut", "twice", "end"])
        if how == "bit":
            changed[place] ^= 1 << chance.randrange(8)
        elif how == "bytes":
            changed[place : place + length] = chance.choice([b"\0", b"\xff", chance.randbytes(1)]) * length
        elif how == "number":
            digits = [at for at, byte in enumerate(changed) if byte in b"0123456789"]
            place = chance.choice(digits or [place])
            changed[place : place + 1] = chance.choice(NUMBERS)
        elif how == "cut":
            del changed[place : place + length]
        elif how == "twice":
            changed[place:place] = changed[place : place + length]
        else:
            del changed[place:]
    return bytes(changed)


def harmed_json(content: bytes, chance: random.Random) -> bytes:
    """Return JSON with another value in one place."""
    values: Any = json.loads(content)
    if not values:
        return harmed(content, chance)
    inside = values
    while True:
        key = chance.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        if not isinstance(inside[key], dict | list) or not inside[key] or chance.random() < 0.2:
            break
        inside = inside[key]
    inside[key] = chance.choice(ODD)
    return json.dumps(values).encode()


def harm(path: Path, chance: random.Random) -> None:
    """Damage a file, or one of the files in a folder; there one may also be lost, or be a folder."""
    if path.is_file():
        path.write_bytes(harmed(path.read_bytes(), chance))
        return
    files = sorted(file for file in path.rglob("*") if file.is_file())
    described = [file for file in files if file.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup", n5.ATTRIBUTES)]
    file = chance.choice(described if chance.random() < 0.7 else files)
    how = chance.random()
    if file in described and how < 0.6:
        file.write_bytes(harmed_json(file.read_bytes(), chance))
    elif how < 0.9:
        file.write_bytes(harmed(file.read_bytes(), chance))
    else:
        file.unlink()
        if how > 0.95:
            file.mkdir()


def read_by_library(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return what tifffile, h5py, zarr, Pillow, mrcfile, ncempy or tensorstore reads, (Z, Y, X), with 0 for black."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            return np.asarray(image).reshape(shape)
    if path.suffix == ".mrc":
        with warnings.catch_warnings(action="ignore"), mrcfile.open(path, permissive=True) as file:
            return np.asarray(file.data)[..., ::-1, :].reshape(shape)
    if gatan.is_gatan(path):
        with dm.fileDM(path) as described:
            kind, start = gatan.TYPES[int(described.dataType[-1])], int(described.dataOffset[-1])
        return np.memmap(path, kind, "r", start, shape)
    if path.suffix == ".h5":
        image = hdf5.open_hdf5(path)
        with h5py.File(path) as file:
            dataset = file[image.path.relative_to(path).as_posix()]
            # Damage may have given the axes another order.
            return np.asarray(dataset[()] if image.axes == "zyx" else image.read((slice(None),) * 3)).reshape(shape)
    if n5.is_n5(path):
        attributes = json.loads((path / n5.ATTRIBUTES).read_text())
        # tensorstore refuses attributes that do not matter where blocks are read.
        stored = {name: attributes[name] for name in ("dimensions", "blockSize", "dataType")}
        packing = attributes["compression"]["type"]
        stored["compression"] = BLOSC if packing == "blosc" else {"type": packing}
        (path / n5.ATTRIBUTES).write_text(json.dumps(stored))
        where = {"driver": "file", "path": f"{path}/"}
        return np.asarray(tensorstore.open({"driver": "n5", "kvstore": where}).result()).T.reshape(shape)
    if path.is_dir():
        array = zarr.open_array(ome.open_multiscale(path).path, mode="r")
        return np.asarray(array[tuple(slice(0, length) for length in array.shape)]).reshape(shape)
    with tifffile.TiffFile(path) as file:
        page = file.series[0].keyframe
        stack = file.asarray().reshape(shape)
    is_white = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    return np.asarray((1 << page.bitspersample) - 1 - stack if is_white else stack)


def check(path: Path) -> None:
    """Read a file as mitoflow does; raises `InputError` where it refuses it."""
    if path.name.endswith(".overlay.png"):
        png.is_overlay(path)
        return
    volume = volumes.open_volume(str(path))
    depth, height, width = volume.shape
    if depth * height * width * volume.dtype.itemsize > LARGEST:
        return
    read = np.stack([volume.read(z, (0, height, 0, width)) for z in range(depth)])
    assert np.array_equal(read, read_by_library(path, volume.shape), equal_nan=volume.dtype.kind == "f")
    voxels, _ = read_labels(str(path))
    assert voxels.shape == volume.shape


def limit_memory() -> None:
    """Let this process have `MEMORY` more bytes than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)


def read_or_refuse(path: Path, check: Callable[[Path], None], *, is_damaged: bool) -> None:
    """Check a file, which may be refused in one line where it is damaged, and remove it."""
    signal.alarm(SECONDS)  # ends this process
    try:
        check(path)
    except InputError as error:
        assert is_damaged, error
        assert "\n" not in str(error)
    signal.alarm(0)
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def main(kind: str, folder: Path, seed: str, count: int) -> None:
    silence_libraries()
    ending, write = KINDS[kind]
    pattern = np.zeros((3, 64, 72), np.uint8)
    pattern[:, 8:24, 8:30], pattern[:, 30:60, 30:60], pattern[:, ::16, ::16] = 1, 2, 3
    path = folder / f"image{ending}"
    write(path, pattern, random.Random(seed))
    read_or_refuse(path, check, is_damaged=False)  # libraries start threads, which need memory of their own
    limit_memory()
    for number in range(count):
        print(number, flush=True)
        chance = random.Random(f"{seed} {kind} {number}")
        write(path, pattern.astype(chance.choice([np.uint8, np.uint16])), chance)
        if is_damaged := number % 8 > 0:
            harm(path, chance)
        read_or_refuse(path, check, is_damaged=is_damaged)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))

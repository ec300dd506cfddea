"""The synthetic EM stack that a fresh clone runs on.

It is drawn, not acquired: cells, mitochondria and what looks like them are bent tubes and discs under noise. It
exercises the pipeline and shows that training learns; no number obtained on it says anything about tissue.

The same seed gives the same bytes on every machine: `mitoflow.data.integer_drawing` says how. Lengths are in eighths of
a pixel (`PX`) unless called pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mitoflow.data.integer_drawing import LONGEST, OPAQUE, PX, Draws, Ints, blend, ramp, root, smooth_noise
from mitoflow.data.set_descriptions import SetDescription, write_sets
from mitoflow.io.tiff import write_stack

Shape = tuple[int, int, int]
Window = tuple[slice, slice, slice]

TRAIN, TEST = (56, 256, 512), (24, 320, 448)
RANDOMISED = (12, 256, 256)  # of each stack with a look of its own


@dataclass(frozen=True)
class Look:
    """What differs between tissues, stainings and microscopes; the defaults are those of the one phantom.

    Grey values are in [0, 255], lengths in pixels.

    Attributes
    ----------
    cytoplasm, membrane
        Grey values of the darkest cytoplasm and of membranes between cells.
    matrix, crista, outer
        Grey values of mitochondria: inside, how much cristae differ from that, and the outer membrane.
    thinnest, thickest, longest
        Radii of mitochondria, and their points, 10 pixels or so apart.
    period
        The least distance from one crista to the next; the greatest is half as much again.
    foreground_percent
        Of the volume, that is mitochondria.
    noise
        Shot noise in hundredths of that of the phantom.
    blurs
        How often the image is blurred along y and x.
    """

    cytoplasm: int = 156
    membrane: int = 82
    matrix: int = 118
    crista: int = -34
    outer: int = 78
    thinnest: int = 9
    thickest: int = 20
    longest: int = 7
    period: int = 6
    foreground_percent: int = 8
    noise: int = 100
    blurs: int = 1


PHANTOM = Look()


def random_look(seed: int) -> Look:
    """Draw a look: other sizes, textures, cristae and contrast.

    Mitochondria are darker or brighter than the cytoplasm, from barely to strongly, with cristae of either sign.
    """
    draws = Draws(seed)
    cytoplasm = draws.between(110, 200)
    matrix = cytoplasm - draws.between(12, 80) if draws.below(4, 1)[0] else cytoplasm + draws.between(8, 30)
    thinnest = draws.between(5, 12)
    return Look(
        cytoplasm=cytoplasm,
        membrane=draws.between(30, 90),
        matrix=matrix,
        crista=draws.between(-50, 40),
        outer=draws.between(30, max(40, matrix - 10)),
        thinnest=thinnest,
        thickest=thinnest + draws.between(4, 18),
        longest=draws.between(3, 12),
        period=draws.between(4, 10),
        foreground_percent=draws.between(5, 22),
        noise=draws.between(0, 220),
        blurs=draws.between(0, 3),
    )


@dataclass
class Discs:
    """What the cells are made of: one to five discs each, by position, radius and cell; all (n,) int32."""

    y: Ints
    x: Ints
    radius: Ints
    cell: Ints


def scatter_discs(draws: Draws, height: int, width: int) -> Discs:
    """Lay out chains of discs on a slice and around it: large cells first, then smaller ones into the room left.

    ``height`` and ``width`` are in pixels.
    """
    margin = 48
    discs: list[tuple[int, int, int, int]] = []
    cell = 0
    for radius, longest, pixels_a_try in ((44, 2, 10000), (28, 2, 1600), (17, 4, 400), (12, 2, 100)):
        for _ in range((height + 2 * margin) * (width + 2 * margin) // pixels_a_try):
            r = radius * PX * draws.between(80, 120) // 100
            y, x = (draws.between(-margin * PX, (length + margin) * PX) for length in (height, width))
            if any(16 * ((y - oy) ** 2 + (x - ox) ** 2) < 9 * (r + other) ** 2 for oy, ox, other, _ in discs):
                continue
            heading_y, heading_x = draws.between(-64, 64), draws.between(-64, 64)
            for _ in range(draws.between(1, longest)):
                discs.append((y, x, r, cell))
                norm = math.isqrt(heading_y**2 + heading_x**2) + 1
                y, x = y + r * heading_y // norm, x + r * heading_x // norm
                heading_y, heading_x = heading_y + draws.between(-24, 24), heading_x + draws.between(-24, 24)
                r = r * draws.between(80, 110) // 100
            cell += 1
    return Discs(*np.array(discs, np.int32).T)


def partition(draws: Draws, shape: Shape) -> tuple[Ints, Ints]:
    """Divide the volume into cells that bend and shift from slice to slice.

    A slice is an additively weighted Voronoi diagram of the discs, which drift with z, in warped coordinates.

    Returns
    -------
    cells: (Z, Y, X) int16
        The number of the cell.
    depth: (Z, Y, X) int16
        The distance to the next cell, at most 128 pixels.
    """
    discs = scatter_discs(draws, *shape[1:])
    steps = np.arange(shape[0], dtype=np.int32) - shape[0] // 2
    paths = []
    for start in (discs.y, discs.x):
        sway = [smooth_noise(draws, shape[:1], (32,), 40 * PX) for _ in range(discs.cell[-1] + 1)]
        slope = draws.below(2 * PX + 1, len(sway)) - PX
        paths.append(start + (np.array(sway) + slope[:, None] * steps // 4).T[:, discs.cell])
    coarse = [smooth_noise(draws, shape, (32, 64, 64), 36 * PX) for _ in paths]
    fine = [smooth_noise(draws, shape, (16, 24, 24), 6 * PX) for _ in paths]

    cells, depth = np.empty(shape, np.int16), np.empty(shape, np.int16)
    for z in range(shape[0]):
        y = np.arange(shape[1], dtype=np.int32)[:, None] * PX + coarse[0][z] + fine[0][z]
        x = np.arange(shape[2], dtype=np.int32)[None, :] * PX + coarse[1][z] + fine[1][z]
        now = Discs(paths[0][z].astype(np.int32), paths[1][z].astype(np.int32), discs.radius, discs.cell)
        cells[z], depth[z] = nearest_cells(y, x, now)
    for k in (2, 1):  # depth is in-plane so far; a membrane cut flat shows as well, though paler
        changes = np.where(cells[k:] != cells[:-k], np.int16(6 + 6 * k), np.int16(LONGEST))
        np.minimum(depth[k:], changes, out=depth[k:])
        np.minimum(depth[:-k], changes, out=depth[:-k])
    return cells, depth


def nearest_cells(y: Ints, x: Ints, discs: Discs) -> tuple[Ints, Ints]:
    """Return the cell at every point (y, x) of a slice and the distance to the next cell; all (Y, X).

    For a disc with centre s and radius r let f(p) = |p - s| - r. A point belongs to the cell of the disc with the
    smallest f; call it f1, and f2 that of the nearest disc of another cell. f2 - f1 is zero at the membrane and grows
    from there by |u2 - u1| a pixel, where u1 and u2 point from the centres to p. With a and b the distances of p from
    the centres and c the distance between these, the law of cosines says |u2 - u1|^2 = (c^2 - (a - b)^2) / (a b).
    """
    block, kept = 8, min(8, len(discs.cell) - 1)  # a pixel tries the discs nearest to the middle of its block
    rows, columns = (-(-length // block) for length in y.shape)
    padding = [(0, rows * block - y.shape[0]), (0, columns * block - y.shape[1])]
    y_blocks, x_blocks = (np.pad(a, padding, mode="edge").reshape(rows, block, columns, block) for a in (y, x))

    def packed(y: Ints, x: Ints, disc: Ints) -> Ints:
        """Return f, with the number of the disc in its lowest 16 bits."""
        from_centre = root((y - discs.y[disc]) ** 2 + (x - discs.x[disc]) ** 2)
        f: Ints = (from_centre - discs.radius[disc]) << 16 | disc
        return f

    middle = np.s_[:, block // 2, :, block // 2, None]
    everyone = packed(y_blocks[middle], x_blocks[middle], np.arange(len(discs.cell), dtype=np.int32))
    near = np.moveaxis(np.partition(everyone, kept, axis=-1)[..., :kept] & 0xFFFF, -1, 0)[:, :, None, :, None]
    f = packed(y_blocks, x_blocks, near)
    first = f.min(0)
    own = first & 0xFFFF
    f[discs.cell[near] == discs.cell[own]] = 1 << 30
    second = f.min(0)
    other = second & 0xFFFF

    f1, f2 = (first >> 16).astype(np.int64), (second >> 16).astype(np.int64)
    a, b = f1 + discs.radius[own], f2 + discs.radius[other]
    c_squared = (discs.y[own] - discs.y[other]) ** 2 + (discs.x[own] - discs.x[other]) ** 2
    depth = root((f2 - f1) ** 2 * a * b // np.maximum(c_squared - (a - b) ** 2, PX * PX))
    whole, inside = (rows * block, columns * block), np.s_[: y.shape[0], : y.shape[1]]
    return discs.cell[own].reshape(whole)[inside], depth.reshape(whole)[inside]


@dataclass
class Tube:
    """Spheres along a polyline: ``points`` (n, 3) in z, y, x and ``radii`` (n,), n > 1."""

    points: Ints
    radii: Ints

    def window(self, shape: Shape) -> Window:
        """Return the part of the volume that it and three pixels around it fill."""
        low = (self.points - self.radii[:, None]).min(0) // PX - 3
        high = (self.points + self.radii[:, None]).max(0) // PX + 4
        z, y, x = (slice(max(0, int(a)), max(0, min(n, int(b)))) for a, b, n in zip(low, high, shape, strict=True))
        return z, y, x

    def distance(self, window: Window) -> Ints:
        """Return the distance of every voxel of ``window`` from the surface, negative inside."""
        grid = [axis * PX for axis in np.ogrid[window]]
        nearest: Ints = np.array(1 << 20)
        for (start, end), (radius, next_radius) in zip(pairwise(self.points), pairwise(self.radii), strict=True):
            z, y, x = (axis - int(at) for axis, at in zip(grid, start, strict=True))
            dz, dy, dx = (int(step) for step in end - start)
            length = dz * dz + dy * dy + dx * dx or 1
            t = np.clip((z * dz + y * dy + x * dx) * 64 // length, 0, 64)
            from_axis = root((z - t * dz // 64) ** 2 + (y - t * dy // 64) ** 2 + (x - t * dx // 64) ** 2)
            nearest = np.minimum(nearest, from_axis - radius - t * (next_radius - radius) // 64)
        return nearest


@dataclass
class Tissue:
    """A volume being drawn; all (Z, Y, X).

    Attributes
    ----------
    image: int32
        Grey values.
    mask: bool
        Mitochondria, outer membrane included.
    cells: int16
        The number of the cell.
    room: int16
        The distance to the nearest membrane, of the cell or of an organelle; negative inside an organelle.
    """

    image: Ints
    mask: Ints
    cells: Ints
    room: Ints

    @property
    def shape(self) -> Shape:
        """The shape of all of them."""
        z, y, x = self.image.shape
        return z, y, x

    def place(self, tubes: Iterable[Tube], clearance: int, rough: Ints | None = None) -> Iterator[tuple[Window, Ints]]:
        """Give each of ``tubes`` its place in its cell, ``clearance`` away from everything else, if it mostly fits.

        ``rough`` (Z, Y, X) makes surfaces uneven. Yields the window of a tube that fits and the distance of its voxels
        from the surface, negative inside.
        """
        for tube in tubes:
            window = tube.window(self.shape)
            whole = tube.distance(window) if rough is None else tube.distance(window) + rough[window]
            surface = np.maximum(whole, clearance - self.room[window])
            z, y, x = (int(at) // PX for at in tube.points[0])
            surface[self.cells[window] != self.cells[min(max(z, 0), self.shape[0] - 1), y, x]] = LONGEST
            if 8 * np.count_nonzero(surface <= 0) >= 7 * np.count_nonzero(whole <= 0):
                np.minimum(self.room[window], surface, out=self.room[window], casting="same_kind")
                yield window, surface


def grow_tubes(draws: Draws, room: Ints, thinnest: int, thickest: int, longest: int) -> Iterator[Tube]:
    """Grow tubes from random voxels along the middle of what is free, as often as it takes to crowd the volume.

    ``room`` (Z, Y, X) is looked at anew for every tube. ``thinnest`` and ``thickest`` are radii in pixels, ``longest``
    is a number of points.
    """
    depth, height, width = room.shape
    for _ in range(room.size // 500):
        z, y, x = draws.voxel(room.shape)
        if room[z, y, x] < thinnest * PX:
            continue
        points, radii = [], []
        heading = [draws.between(-9, 9) for _ in range(3)]
        for _ in range(draws.between(2, longest)):
            around = room[min(max(z, 0), depth - 1), max(0, y - 5) : y + 6, max(0, x - 5) : x + 6]
            to_y, to_x = divmod(int(around.argmax()), around.shape[1])
            y, x = max(0, y - 5) + to_y, max(0, x - 5) + to_x
            free = int(around.max()) - 3 * PX
            if free < thinnest * PX * 3 // 4:
                break
            points.append((z, y, x))
            radii.append(min(free, draws.between(thinnest, thickest) * PX))
            z, y, x = z + heading[0], y + heading[1], x + heading[2]
            if not (-8 <= z < depth + 8 and 0 <= y < height and 0 <= x < width):
                break
            heading = [step + draws.between(-3, 3) for step in heading]
        if len(points) > 1:
            yield Tube(np.array(points, np.int64) * PX, np.array(radii, np.int64))


def cloud_of_vesicles(draws: Draws, cells: Ints) -> Iterator[Tube]:
    """Yield small spheres around a random voxel, within its cell."""
    centre = draws.voxel(cells.shape)
    for offset in draws.below(37, draws.between(60, 200), 3) - 18:
        at = centre + offset
        within = (offset**2).sum() < 18**2 and (at >= 0).all() and (at < cells.shape).all()
        if within and cells[tuple(at)] == cells[centre]:
            yield Tube(np.array([at, at]) * PX, np.full(2, draws.between(22, 28)))


def paint_cytoplasm(tissue: Tissue, draws: Draws, look: Look) -> None:
    """Paint granular cytoplasm of a tone for each cell, ribosomes as specks and the endoplasmic reticulum as sheets."""
    shape, image = tissue.shape, tissue.image
    count = int(tissue.cells.max()) + 1
    tones = look.cytoplasm + draws.below(24, count)
    tones[draws.below(12, count) == 0] -= 30
    image += tones[tissue.cells].astype(np.int32)
    image += smooth_noise(draws, shape, (3, 3, 3), 50)
    image += smooth_noise(draws, shape, (8, 8, 8), 40)
    specks = ramp(smooth_noise(draws, shape, (4, 2, 2), 256), (50, 0), (100, 220))
    blend(image, 95, specks)
    sheet = np.abs(smooth_noise(draws, shape, (24, 20, 20), 4096))
    present = ramp(smooth_noise(draws, shape, (20, 40, 40), 1024), (120, 0), (180, OPAQUE))
    reticulum = ramp(sheet, (0, -60), (60, -60), (120, 220), (200, 220), (320, 0))
    blend(image, 92, (reticulum * present >> 8) * ramp(tissue.room, (2 * PX, 0), (4 * PX, OPAQUE)) >> 8)


def paint_membranes(tissue: Tissue, draws: Draws, look: Look) -> None:
    """Paint the dark membranes between cells, thickened at synapses."""
    synapse = ramp(smooth_noise(draws, tissue.shape, (16, 32, 32), 1024), (220, 0), (300, 240))
    blend(tissue.image, look.membrane - 12, ramp(tissue.room, (PX, OPAQUE), (5 * PX, 0)) * synapse >> 8)
    blend(tissue.image, look.membrane, ramp(tissue.room, (9, OPAQUE), (22, 0)))


def paint_mitochondria(tissue: Tissue, draws: Draws, look: Look) -> None:
    """Paint tubes with a double membrane and interrupted cristae in a grey matrix, until the foreground is reached."""
    ripple = smooth_noise(draws, tissue.shape, (16, 16, 16), 8 * PX)
    unbroken = ramp(smooth_noise(draws, tissue.shape, (6, 6, 6), 256), (-40, 0), (20, OPAQUE))
    missing = tissue.image.size * look.foreground_percent // 100
    tubes = grow_tubes(draws, tissue.room, look.thinnest, look.thickest, look.longest)
    for window, surface in tissue.place(tubes, clearance=3 * PX, rough=ripple // 2):
        normal = [draws.between(-8, 8) for _ in range(3)]
        norm = math.isqrt(sum(n * n for n in normal)) + 1
        across = sum(axis * n for axis, n in zip(np.ogrid[window], normal, strict=True)) * PX // norm
        period = draws.between(look.period * PX, look.period * 3 * PX // 2)
        crista = np.abs((across + ripple[window] * 3 // 2) % period - period // 2)
        dark, pale = look.crista, -look.crista * 12 // 34
        value = ramp(crista, (0, dark), (6, dark * 28 // 34), (14, pale), (20, pale), (32, 0)) * unbroken[window] >> 8
        value += look.matrix + draws.between(-10, 8)
        blend(value, look.outer, ramp(surface, (-48, 0), (-40, 200), (-32, 200), (-24, 0), (-20, 0), (-12, OPAQUE)))
        blend(tissue.image[window], value, ramp(surface, (-PX, OPAQUE), (PX, 0)))
        tissue.mask[window] |= surface <= 0
        missing -= np.count_nonzero(surface <= 0)
        if missing <= 0:
            break


def paint_look_alikes(tissue: Tissue, draws: Draws, look: Look) -> None:
    """Paint what may be taken for mitochondria: sheaths of dark rings, as myelin is, and dense bodies."""
    count = tissue.image.size // 500_000 + 1
    sheaths = grow_tubes(draws, tissue.room, thinnest=8, thickest=18, longest=6)
    for window, surface in islice(tissue.place(sheaths, clearance=2 * PX), count):
        rings = ramp(surface % (3 * PX), (0, 60), (PX, 60), (2 * PX, 110), (3 * PX, 60))
        blend(tissue.image[window], rings, ramp(surface, (-56, 0), (-48, OPAQUE), (-8, OPAQUE), (8, 0)))
    bodies = grow_tubes(draws, tissue.room, thinnest=5, thickest=10, longest=3)
    for window, surface in islice(tissue.place(bodies, clearance=2 * PX), count):
        blend(tissue.image[window], look.membrane, ramp(surface, (-16, 240), (8, 0)))


def paint_vesicles(tissue: Tissue, draws: Draws, look: Look) -> None:
    """Paint clouds of small round vesicles with pale insides."""
    for _ in range(tissue.image.size // 60_000):
        for window, surface in tissue.place(cloud_of_vesicles(draws, tissue.cells), clearance=0):
            blend(tissue.image[window], look.membrane + 10, ramp(surface, (-14, 0), (-8, 240), (0, 240), (8, 0)))
            blend(tissue.image[window], look.cytoplasm + 34, ramp(surface, (-20, 90), (-12, 0)))


def photograph(image: Ints, draws: Draws, look: Look) -> npt.NDArray[np.uint8]:
    """Return ``image`` as a microscope shows it: unevenly bright, blurred, and with shot noise."""
    image += smooth_noise(draws, image.shape, (8, 128, 128), 16)
    for axis in (1, 2) * look.blurs:
        before, here, after = (image.swapaxes(0, axis)[k : k - 2 or None] for k in range(3))
        here[...] = (before + 2 * here + after) >> 2
    shot = np.zeros(image.shape, np.int32)
    for _ in range(2):
        noise = draws.bytes(image.shape)
        shot += (noise >> 4).astype(np.int32) + (noise & 15)
    image += (shot - 30) * (image + 80) * look.noise // 100 >> 8
    return np.clip(image, 0, 255).astype(np.uint8)


def make_phantom(shape: Shape, seed: int, look: Look = PHANTOM) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw a synthetic stack and its mitochondria.

    Parameters
    ----------
    shape
        ``(Z, Y, X)`` in pixels, to be thought of as 5 to 8 nm each way.
    seed
        Another seed gives another piece of the same tissue.
    look
        How tissue and image look.

    Returns
    -------
    image: (Z, Y, X) uint8
    mask: (Z, Y, X) uint8, 0 or 255
    """
    draws = Draws(seed)
    cells, depth = partition(draws, shape)
    tissue = Tissue(np.zeros(shape, np.int32), np.zeros(shape, np.bool_), cells, depth)
    for paint in (paint_cytoplasm, paint_membranes, paint_mitochondria, paint_look_alikes, paint_vesicles):
        paint(tissue, draws, look)
    return photograph(tissue.image, draws, look), np.where(tissue.mask, np.uint8(255), np.uint8(0))


def write_phantom(data: Path, train: Shape = TRAIN, test: Shape = TEST) -> None:
    """Write a folder ``data/`` with the one set ``phantom``; see `write_parts` for the shapes."""
    write_parts(data / "train" / "phantom", data / "test" / "phantom", train, test)
    write_sets(data, {"phantom": SetDescription(tissue="synthetic")})


def write_parts(train: Path, test: Path, train_shape: Shape = TRAIN, test_shape: Shape = TEST) -> None:
    """Write images/phantom.tif and masks/phantom.tif into two folders: different pieces of the same tissue.

    Parameters
    ----------
    train, test
        The folders.
    train_shape, test_shape
        ``(Z, Y, X)`` in pixels.
    """
    for seed, (folder, shape) in enumerate(((train, train_shape), (test, test_shape))):
        image, mask = make_phantom(shape, seed)
        write_stack(folder / "images" / "phantom.tif", image, "Synthetic EM stack, drawn by mitoflow")
        write_stack(folder / "masks" / "phantom.tif", mask, "Mitochondria of a synthetic EM stack")


def write_randomised(train: Path, count: int, shape: Shape = RANDOMISED) -> None:
    """Write `count` stacks into images and masks of a folder, each with a look of its own; see `random_look`."""
    for place in range(count):
        seed = 1000 + place  # no piece of the one phantom
        image, mask = make_phantom(shape, seed, random_look(seed))
        write_stack(train / "images" / f"{place:02d}.tif", image, "Synthetic EM stack, drawn by mitoflow")
        write_stack(train / "masks" / f"{place:02d}.tif", mask, "Mitochondria of a synthetic EM stack")

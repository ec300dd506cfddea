"""Batches for Keras: augmented crops that train, whole patches that validate."""

from __future__ import annotations

import functools
import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import keras
import numpy as np

from mitoflow.config.params import Recipe
from mitoflow.data.network_input import UNLABELLED, neighbours, to_unit
from mitoflow.data.patches import Patches, Stored
from mitoflow.errors import InputError
from mitoflow.training import augmentation, distractors, geometry


def feeding(devices: int) -> dict[str, int]:
    """Return how many threads make batches beside the training, and how many batches they make ahead.

    With a single one Keras leaves that to tf.data's autotuning, which sleeps until a clock that jumped back has caught
    up. But where devices share batches Keras draws some to build with, and what several threads have made by then it
    serves in the next epoch.
    """
    return {"workers": 2 if devices == 1 else 1, "max_queue_size": 4}


@dataclass(frozen=True)
class _Places:
    """Where crops may lie, set by set.

    Attributes
    ----------
    rows, pixels
        For each set its patches, and the sum of their foreground up to each.
    shares
        How often the sets are drawn, summed up.
    """

    rows: list[np.ndarray]
    pixels: list[np.ndarray]
    shares: np.ndarray

    @classmethod
    def of(cls, patches: Patches, allowed: np.ndarray, foreground: np.ndarray, balance: float) -> _Places:
        """Return the places in the patches that are `allowed`, (P,) bool, with their `foreground`, (P,) pixels.

        With a `balance` of 1 the sets are drawn equally often, with 0 in proportion to their patches.
        """
        names, of_patch = np.unique(np.array(patches.datasets)[patches.index[:, 0]], return_inverse=True)
        rows = [np.flatnonzero(allowed & (of_patch == each)) for each in range(len(names))]
        rows = [of_set for of_set in rows if len(of_set)]
        sizes = np.array([len(of_set) for of_set in rows])
        shares = balance / max(len(rows), 1) + (1 - balance) * sizes / max(sizes.sum(), 1)
        return cls(rows, [foreground[of_set].cumsum() for of_set in rows], shares.cumsum())

    def of_a_set(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw a set and return its patches and their foreground; a single set takes nothing from the generator."""
        drawn = np.searchsorted(self.shares, rng.random(), side="right") if len(self.rows) > 1 else 0
        place = min(int(drawn), len(self.rows) - 1)  # the shares may sum up to a little less than 1
        return self.rows[place], self.pixels[place]


class TrainPatches(keras.utils.PyDataset):
    """Augmented training batches: random crops of the training slices, each with its neighbouring slices.

    With orthogonal planes, batches alternate between slices and the planes perpendicular to y and to x, from epoch to
    epoch too; one network learns them alike. A stack is seldom as deep as a patch is high, so crops of these planes are
    as high as the deepest stack allows, and a batch has as many more of them as they are smaller.

    A batch depends on the seed, the epoch and its place in the epoch alone, so a resumed run sees what an undisturbed
    one would have seen; `begin` says which epoch it is.

    A batch is images (N, Y, X, 2 context + 1) float32 in [0, 1] and masks (N, Y, X, 1) float32 in {0, 1}, and 2
    where nobody looked (`network_input.UNLABELLED`); of slices, N is the batch size, and Y and X are that of a patch.
    With `Recipe.contacts` masks are (N, Y, X, 2), the second channel as `Patches.contacts` holds it.

    Raises
    ------
    InputError
        Orthogonal planes are asked for, and no stack with labels is deep enough for the network to see one; or
        contacts, and no set's masks tell mitochondria apart.
    """

    def __init__(self, patches: Patches, bit_depth: int, recipe: Recipe, devices: int = 1) -> None:
        super().__init__(**feeding(devices))
        self.patches, self.bit_depth, self.recipe, self.epoch = patches, bit_depth, recipe, 0
        if recipe.contacts and patches.contacts is None:
            found, expected = "true, and masks that do not tell mitochondria apart", "a number for each in some set"
            raise InputError("train.contacts", found, expected, "import one with --instances, or set it to false")
        labelled, divisor = patches.labelled(), 1 << recipe.depth
        depth = np.array([len(patches.ranges[stack]) for stack in patches.index[:, 0].tolist()])
        deepest = int(depth[labelled].max())
        if recipe.orthoplanes and deepest < divisor:
            found = f"true, and stacks of at most {deepest} training slices"
            raise InputError("train.orthoplanes", found, f"at least {divisor} slices", "set it to false")
        self._sides = (patches.size, patches.size), (min(patches.size, deepest // divisor * divisor), patches.size)
        # Where crops may lie, and their foreground, summed up: where somebody looked, for other planes in deep stacks.
        foreground, balance, deep = patches.foreground(), recipe.set_balance, labelled & (depth >= divisor)
        self._places = tuple(_Places.of(patches, allowed, foreground, balance) for allowed in (labelled, deep))

    def begin(self, epoch: int) -> None:
        """Make the batches of this epoch, counted from 0, from now on."""
        # Not Keras' own hook of a dataset, which is also called before the first epoch, when it looks at a batch.
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.recipe.patches_per_epoch // self.recipe.batch_size)

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.recipe.seed, self.epoch, step))
        axis = (self.epoch * len(self) + step) % (3 if self.recipe.orthoplanes else 1)
        # A whole number of times the batch size, which the devices can share.
        count = self.recipe.batch_size * (self.patches.size // self._sides[axis > 0][0])
        crops = [self.crop(axis, rng) for _ in range(count)]
        images, masks = (np.stack(arrays) for arrays in zip(*crops, strict=True))
        return images, masks.astype(np.float32)

    def crop(self, axis: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw a crop of a plane perpendicular to an axis, and its mask."""
        sides, strength, further = self._sides[axis > 0], self.recipe.augment_strength, self.recipe.augmentation
        scaling = geometry.random_scaling(further.scale, rng)
        stack, place, corner = self.place(axis, rng, geometry.scaled_sides(sides, scaling))
        is_affine = rng.random() < self.recipe.affine_fraction and strength > 0
        transform = geometry.random_map(sides, strength, rng) if is_affine else None
        if scaling is not None:
            to_box = geometry.scaled_map(sides, scaling)
            transform = to_box if transform is None else to_box @ transform
        length, *shape = self._turned(stack, axis)
        crop = geometry.Crop(corner, sides, transform, (shape[0], shape[1]))
        near = neighbours(place, self.recipe.context, self._context_step(stack, axis, rng), range(length))
        if rng.random() < self.recipe.context_dropout:
            near = [place] * len(near)
        images = [crop.image(functools.partial(self.patches.plane, "images", stack, axis, at)) for at in near]
        image = to_unit(np.stack(images, axis=-1), self.bit_depth)
        truths: list[Stored] = ["masks", "contacts"] if self.recipe.contacts else ["masks"]
        read = [functools.partial(self.patches.plane, truth, stack, axis, place) for truth in truths]
        mask = np.stack([crop.mask(each) for each in read], axis=-1)
        if strength > 0:
            turn = geometry.random_turn(sides, rng)
            image, mask = turn(image), turn(mask)
            if rng.random() < 0.5:  # no end of a stack is the upper one
                image = image[..., ::-1]
        if further.myelin.share > 0 and rng.random() < further.myelin.share:
            image, mask = distractors.add_myelin(image, mask, rng)
        return augmentation.vary_grey_values(image, self.recipe.intensity_strength, rng, further), mask

    def _context_step(self, stack: int, axis: int, rng: np.random.Generator) -> int:
        """Return how far neighbours are apart: of some crops further, as in a stack that lacks slices."""
        step, dropped = self.recipe.context_step, self.recipe.augmentation.dropped_slices
        step = self.patches.context_steps.get(stack, step) if axis == 0 else step
        if axis == 0 and step and dropped.share > 0 and rng.random() < dropped.share:
            step += int(rng.integers(1, dropped.limit, endpoint=True))
        return step

    def _turned(self, stack: int, axis: int) -> tuple[int, ...]:
        """Return how many planes perpendicular to an axis the slices held of a stack give, and their shape."""
        shape = [len(self.patches.ranges[stack]), *self.patches.shapes[stack][1:]]
        return shape.pop(axis), *shape

    def place(
        self, axis: int, rng: np.random.Generator, sides: tuple[int, int] | None = None
    ) -> tuple[int, int, tuple[int, int]]:
        """Draw a set, a plane of one of its stacks, and the corner there of a crop that holds a voxel drawn at random.

        The voxel is drawn from the foreground, or from all that somebody looked at. Places along z count from the first
        slice held. The crop has these `sides` in the section, or else those of a patch.
        """
        rows, pixels = self._places[axis > 0].of_a_set(rng)
        on_foreground = pixels[-1] > 0 and rng.random() < self.recipe.foreground_fraction
        if on_foreground:
            row = rows[np.searchsorted(pixels, rng.integers(pixels[-1]), side="right")]
        else:
            row = rows[rng.integers(len(rows))]
        stack, z, y, x, y0, y1, x0, x1 = (int(value) for value in self.patches.index[row])
        owned = self.patches.masks[row, y0:y1, x0:x1]
        places = np.flatnonzero(owned == 1 if on_foreground else owned != UNLABELLED)
        inside = np.unravel_index(places[rng.integers(len(places))], owned.shape)
        voxel = [z - self.patches.ranges[stack].start, y + y0 + int(inside[0]), x + x0 + int(inside[1])]
        place, lengths = voxel.pop(axis), np.array(sides or self._sides[axis > 0])
        corner = voxel - rng.integers(lengths // 8, lengths - lengths // 8)
        # A crop lies inside a plane that is large enough, and around a smaller one.
        room = np.array(self._turned(stack, axis)[1:]) - lengths
        corner = np.clip(corner, np.minimum(room // 2, 0), np.where(room < 0, room // 2, room))
        return stack, place, (int(corner[0]), int(corner[1]))


class LoadedBatches(keras.utils.PyDataset):
    """The batches of a `TrainPatches`, made by other processes; see `loaded`.

    Parameters
    ----------
    source
        Makes the batches; its patches lie in files, which each process maps into its memory.
    processes
        How many make batches.
    """

    def __init__(self, source: TrainPatches, processes: int) -> None:
        # A thread of Keras waits for each process, and one more has the next batch ready.
        super().__init__(workers=processes + 1, max_queue_size=4 * processes)
        self.source, self.epoch = source, 0
        self.broken: list[multiprocessing.Process] = []  # the processes, from the moment on when one of them ended
        # Not forked: the backend has threads by now, and their locks would be copied as they are.
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(processes, context, _keep_source, (source,))

    def begin(self, epoch: int) -> None:
        """Make the batches of this epoch, counted from 0, from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self.pool.submit(_batch, self.epoch, step).result()
        except BrokenProcessPool:  # the backend wraps the error in one of its own
            self.broken = self.broken or [*self.pool._processes.values()]
            raise


@contextmanager
def loaded(source: TrainPatches, processes: int) -> Iterator[TrainPatches | LoadedBatches]:
    """Yield the same batches, made by that many processes; with none, by threads of this one.

    Threads keep up with the training on a processor. A GPU takes batches faster than one interpreter makes them.

    Raises
    ------
    InputError
        One of the processes was killed, or ended by itself.
    """
    if processes == 0:
        yield source
        return
    batches = LoadedBatches(source, processes)
    try:
        yield batches
    except Exception:
        if not batches.broken:
            raise
        batches.pool.shutdown(cancel_futures=True)  # afterwards all have ended
        raise _broken(processes, [process.exitcode or 0 for process in batches.broken]) from None
    finally:
        batches.pool.shutdown(cancel_futures=True)


def _broken(processes: int, codes: list[int]) -> InputError:
    """Return an error that says how one of the processes ended; the pool ends the others by SIGTERM."""
    code = next((code for code in codes if code != -signal.SIGTERM), -signal.SIGTERM)
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}, as the system does where memory runs out"
        remedy = "set it lower and run `dvc repro`, which resumes the training"
    else:
        how = f"ended with exit code {code}; its error is above"
        remedy = 'in a script, call this below `if __name__ == "__main__":`, because each process imports the script'
    found = f"{processes}, one of which {how}"
    return InputError("machine.loaders", found, "processes that live as long as the training", remedy)


_source: TrainPatches  # of a process that makes batches


def _keep_source(source: TrainPatches) -> None:
    global _source
    _source = source
    cv2.setNumThreads(1)


def _batch(epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    _source.begin(epoch)
    return _source[step]


class ValidationPatches(keras.utils.PyDataset):
    """Validation batches of one set, as they are, with weight 1 for owned pixels and 0 for the others.

    Where devices share a batch none may go without a patch: the last one is then repeated, with weight 0. That leaves
    Dice as it is, and has the mean loss count the last batch as a slightly larger one.
    """

    def __init__(self, patches: Patches, dataset: str, bit_depth: int, recipe: Recipe, devices: int = 1) -> None:
        super().__init__(**feeding(devices))
        self.patches, self.bit_depth, self.recipe, self.devices = patches, bit_depth, recipe, devices
        self.rows = patches.rows_of(dataset)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.recipe.batch_size)

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first = step * self.recipe.batch_size
        last = min(first + self.recipe.batch_size, len(self.rows))
        repeated = (first - last) % self.devices
        rows = np.append(self.rows[first:last], [self.rows[last - 1]] * repeated).astype(int)
        images = self.patches.with_neighbours(rows, self.recipe.context, self.recipe.context_step)
        truths = self.patches.arrays[1:] if self.recipe.contacts else [self.patches.masks]
        masks = np.stack([truth[rows] for truth in truths], axis=-1).astype(np.float32)
        weights = self.patches.owned(rows)[..., None].astype(np.float32)
        weights[last - first :] = 0
        return to_unit(images, self.bit_depth), masks, weights

import dataclasses
import multiprocessing
import pickle
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from mitoflow.config import presets
from mitoflow.config.params import Patch, Recipe
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.network_input import UNLABELLED, neighbours
from mitoflow.data.pairs import read_pairs
from mitoflow.data.patches import PatchStore
from mitoflow.data.slice_distance import SliceDistance
from mitoflow.errors import InputError
from mitoflow.io import tiff
from mitoflow.stages import train
from mitoflow.training import augmentation, fitting, geometry
from mitoflow.training.batches import TrainPatches, ValidationPatches, loaded

from .conftest import RECIPE


def test_a_crop_is_its_place_in_the_slices(store: PatchStore) -> None:
    plain = RECIPE.replace(augment_strength=0.0, intensity_strength=0.0)
    dataset = TrainPatches(store.train, 8, plain)
    rng = np.random.default_rng(7)
    stack, z, (y, x) = dataset.place(0, rng)
    image, mask = dataset.crop(0, np.random.default_rng(7))
    box = (y, y + 64, x, x + 64)
    for channel, near in enumerate(neighbours(z, 1, 2, store.train.ranges[stack])):
        assert np.array_equal(image[..., channel], store.train.image(stack, near, box) / np.float32(255))
    assert np.array_equal(mask[..., 0], store.train.mask(stack, z, box))


def crop_of_0_1(dataset: TrainPatches, axis: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A crop as it was drawn before `train.augmentation` came."""
    recipe, patches, sides = dataset.recipe, dataset.patches, dataset._sides[axis > 0]
    strength = recipe.augment_strength
    stack, place, corner = dataset.place(axis, rng)
    is_affine = rng.random() < recipe.affine_fraction and strength > 0
    transform = geometry.random_map(sides, strength, rng) if is_affine else None
    shape = [len(patches.ranges[stack]), *patches.shapes[stack][1:]]
    length = shape.pop(axis)
    crop = geometry.Crop(corner, sides, transform, (shape[0], shape[1]))
    near = neighbours(place, recipe.context, recipe.context_step, range(length))
    if rng.random() < recipe.context_dropout:
        near = [place] * len(near)
    images = [crop.image(partial(patches.plane, "images", stack, axis, at)) for at in near]
    image = np.stack(images, axis=-1).astype(np.float32) / np.float32(255)
    mask = crop.mask(partial(patches.plane, "masks", stack, axis, place))[..., None]
    if strength > 0:
        turn = geometry.random_turn(sides, rng)
        image, mask = turn(image), turn(mask)
        if rng.random() < 0.5:
            image = image[..., ::-1]
    functions = {
        augmentation.vary_gamma: 0.5,
        augmentation.vary_contrast: 0.8,
        augmentation.vary_slices: 0.3,
        augmentation.blur: 0.25,
        augmentation.add_noise: 0.4,
    }
    for vary, share in functions.items() if recipe.intensity_strength else ():
        if rng.random() < share:
            image = vary(image, recipe.intensity_strength, rng)
    return np.clip(image, 0, 1), mask.astype(np.float32)


@pytest.mark.parametrize("preset", ["phantom", "epfl", "epfl-quick", "finetune", "imported"])
def test_presets_of_one_dataset_draw_the_crops_that_they_drew(store: PatchStore, preset: str) -> None:
    values = presets.load(preset).train.model_dump(exclude={"init_from"})
    tuned = {"learning_rate": 0.001, "depth": 2, "augment_strength": 0.6}
    values |= {key: value for key, value in tuned.items() if values[key] == "tuned"}
    recipe = Recipe.model_validate(values | {"depth": 3, "batch_size": 4})
    dataset = TrainPatches(store.train, 8, recipe)
    for step in range(3 if recipe.orthoplanes else 2):
        images, masks = dataset[step]
        rng = np.random.default_rng((recipe.seed, 0, step))
        for image, mask in zip(images, masks, strict=True):
            wanted = crop_of_0_1(dataset, step % (3 if recipe.orthoplanes else 1), rng)
            assert np.array_equal(image, wanted[0])
            assert np.array_equal(mask, wanted[1])


def test_a_single_set_draws_as_if_there_were_no_sets(store: PatchStore) -> None:
    foreground = store.train.foreground().cumsum()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        if rng.random() < RECIPE.foreground_fraction:
            row = np.searchsorted(foreground, rng.integers(foreground[-1]), side="right")
        else:
            row = rng.integers(len(store.train))
        for balance in (0.0, 1.0):
            dataset = TrainPatches(store.train, 8, RECIPE.replace(set_balance=balance))
            stack, z, _ = dataset.place(0, np.random.default_rng(seed))
            assert [stack, z] == store.train.index[row, :2].tolist()


@pytest.fixture(scope="module")
def uneven_sets(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> PatchStore:
    """18 training slices of one set, and 6 of another, of the same size."""
    other = [dataclasses.replace(pair, dataset="other") for pair in read_pairs(small_dataset / "test")]
    settings = Patch(size=64, step=64, validation_fraction=0.25, gap=0)
    sets = {name: Conventions(8, "nonzero") for name in ("phantom", "other")}
    folder = tmp_path_factory.mktemp("two") / "patches"
    return write_store(folder, read_pairs(small_dataset / "train") + other, settings, sets)


@pytest.mark.parametrize(("balance", "share"), [(0.0, 0.25), (1.0, 0.5), (0.5, 0.375)])
def test_sets_are_drawn_as_the_balance_says(uneven_sets: PatchStore, balance: float, share: float) -> None:
    dataset = TrainPatches(uneven_sets.train, 8, RECIPE.replace(set_balance=balance))
    drawn = [uneven_sets.train.datasets[dataset.place(0, np.random.default_rng(seed))[0]] for seed in range(1000)]
    assert drawn.count("other") / 1000 == pytest.approx(share, abs=0.05)
    assert np.array_equal(dataset[3][0], TrainPatches(uneven_sets.train, 8, dataset.recipe)[3][0])


def test_other_planes_come_from_sets_with_deep_stacks(uneven_sets: PatchStore) -> None:
    dataset = TrainPatches(uneven_sets.train, 8, RECIPE.replace(orthoplanes=True, depth=3))  # 8 slices are deep
    drawn = {axis: {dataset.place(axis, np.random.default_rng(seed))[0] for seed in range(40)} for axis in range(3)}
    assert drawn == {0: {0, 1}, 1: {0}, 2: {0}}


@pytest.mark.parametrize("ends", [(0.3, 1.0), (1.0, 2.0)])
def test_scaled_crops_hold_the_foreground_that_they_are_placed_on(store: PatchStore, ends: tuple[float, float]) -> None:
    scale = {"scale": {"share": 1.0, "low": ends[0], "high": ends[1]}}
    recipe = RECIPE.replace(foreground_fraction=1.0, intensity_strength=0.0, batch_size=64, augmentation=scale)
    images, masks = TrainPatches(store.train, 8, recipe)[0]
    assert images.shape == (64, 64, 64, 3)
    assert set(np.unique(masks)) == {0.0, 1.0}
    assert np.mean(masks.any(axis=(1, 2, 3))) > 0.9  # the corners of a turned crop may lie outside


def test_smaller_structures_come_with_smaller_scales(store: PatchStore) -> None:
    """The border between mitochondria and the rest is longer, for each pixel of them, where they are smaller."""
    borders = []
    for low, high in ((0.5, 1.0), (1.0, 2.0)):
        scale = {"scale": {"share": 1.0, "low": low, "high": high}}
        recipe = RECIPE.replace(affine_fraction=0.0, intensity_strength=0.0, batch_size=64, augmentation=scale)
        _, masks = TrainPatches(store.train, 8, recipe)[0]
        borders.append(np.abs(np.diff(masks, axis=1)).sum() / masks.sum())
    assert borders[0] > 1.5 * borders[1]


def test_dropped_slices_are_those_between_the_neighbours(store: PatchStore) -> None:
    dropped = {"dropped_slices": {"share": 1.0, "limit": 2}}
    plain = RECIPE.replace(augment_strength=0.0, intensity_strength=0.0, augmentation=dropped)
    dataset = TrainPatches(store.train, 8, plain)
    steps = set()
    for seed in range(12):
        stack, z, (y, x) = dataset.place(0, np.random.default_rng(seed))
        image, _ = dataset.crop(0, np.random.default_rng(seed))
        for step in (3, 4):
            near = neighbours(z, 1, step, store.train.ranges[stack])
            wanted = [store.train.image(stack, at, (y, y + 64, x, x + 64)) / np.float32(255) for at in near]
            steps |= {step} if np.array_equal(image, np.stack(wanted, axis=-1)) else set()
    assert steps == {3, 4}


def test_without_its_neighbours_a_slice_stands_for_them(store: PatchStore) -> None:
    recipe = RECIPE.replace(intensity_strength=0.0, context_dropout=1.0)
    images, _ = TrainPatches(store.train, 8, recipe)[0]
    assert np.array_equal(images[..., 0], images[..., 1])
    seeing = recipe.replace(context_dropout=0.0)
    images, _ = TrainPatches(store.train, 8, seeing)[0]
    assert not np.array_equal(images[..., 0], images[..., 1])


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_image_and_mask_of_a_crop_go_the_same_way(store: PatchStore, strength: float) -> None:
    """With the masks in the place of the images, both come out equal, up to interpolation at the edges."""
    twice = dataclasses.replace(store.train, images=store.train.masks * np.uint8(255))
    recipe = RECIPE.replace(
        augment_strength=strength,
        affine_fraction=1.0,
        intensity_strength=0.0,
        context=0,
        foreground_fraction=1.0,
    )
    images, masks = TrainPatches(twice, 8, recipe)[0]
    assert np.mean((images > 0.5) != (masks > 0.5)) < 0.02 * strength + 1e-9
    assert masks.mean() > 0


@pytest.mark.parametrize("axis", [1, 2])
def test_a_crop_of_an_orthogonal_plane_is_its_place_in_the_stack(store: PatchStore, axis: int) -> None:
    plain = RECIPE.replace(augment_strength=0.0, intensity_strength=0.0, orthoplanes=True)
    dataset = TrainPatches(store.train, 8, plain)
    stack, place, (row, column) = dataset.place(axis, np.random.default_rng(7))
    image, mask = dataset.crop(axis, np.random.default_rng(7))
    held = store.train.ranges[stack]
    whole, truth = (np.stack([get(stack, z) for z in held]) for get in (store.train.image, store.train.mask))
    height = len(held) // 4 * 4
    assert mask.shape == (height, 64, 1)
    box = slice(row, row + height), slice(column, column + 64)
    for channel, near in enumerate(neighbours(place, 1, 2, range(whole.shape[axis]))):
        assert np.array_equal(image[..., channel], whole.take(near, axis)[box] / np.float32(255))
    assert np.array_equal(mask[..., 0], truth.take(place, axis)[box])


@pytest.mark.slow
def test_three_planes_take_turns_and_batches_have_as_many_pixels(store: PatchStore) -> None:
    recipe = RECIPE.replace(orthoplanes=True)
    dataset = TrainPatches(store.train, 8, recipe)
    height = dataset[1][0].shape[1]
    assert height < 64
    shapes = [dataset[step][0].shape[:3] for step in range(4)]
    assert shapes == [(4, 64, 64), (4 * 64 // height, height, 64), (4 * 64 // height, height, 64), (4, 64, 64)]
    fitted = fitting.fit(store, recipe.replace(epochs=1))
    assert fitted.model.input_shape[-1] == 3


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2])
def test_short_epochs_go_on_with_the_next_planes(store: PatchStore, processes: int) -> None:
    """Of epochs of 2 batches, the first sees slices and planes perpendicular to y, the next planes to x and slices."""
    dataset = TrainPatches(store.train, 8, RECIPE.replace(orthoplanes=True, patches_per_epoch=8))
    seen = []
    with loaded(dataset, processes) as batches:
        for epoch in range(2):
            batches.begin(epoch)
            seen += [batches[step][0].shape[1] for step in range(len(batches))]
    assert len(dataset) == 2
    height = dataset._sides[1][0]
    assert seen == [64, height, height, 64]


def test_a_batch_of_orthogonal_planes_is_a_whole_number_of_batches_of_slices(store: PatchStore) -> None:
    depths = {stack: len(held) for stack, held in store.train.ranges.items()}
    height = max(depths.values()) // 4 * 4
    for batch_size in (2, 6, 8):
        dataset = TrainPatches(store.train, 8, RECIPE.replace(orthoplanes=True, batch_size=batch_size))
        assert len(dataset[1][0]) == batch_size * (64 // height)  # so that devices which share it all get some


def test_stacks_without_orthogonal_planes_are_reported(store: PatchStore) -> None:
    shallow = RECIPE.replace(orthoplanes=True, depth=6)
    with pytest.raises(InputError, match="train.orthoplanes: found true"):
        TrainPatches(store.train, 8, shallow)


def test_crops_on_foreground_hold_some(store: PatchStore) -> None:
    recipe = RECIPE.replace(augment_strength=0.0, foreground_fraction=1.0, batch_size=64)
    _, masks = TrainPatches(store.train, 8, recipe)[0]
    assert masks.any(axis=(1, 2, 3)).all()


def test_crops_on_foreground_are_not_placed_on_what_nobody_looked_at(tmp_path: Path) -> None:
    mask = np.zeros((8, 256, 256), np.uint8)
    mask[:, :, 64:] = 128
    mask[:, 8, 8] = 255
    tiff.write_stack(tmp_path / "train/partly/images/s.tif", np.zeros_like(mask))
    tiff.write_stack(tmp_path / "train/partly/masks/s.tif", mask)
    settings = Patch(size=256, step=256, validation_fraction=0.25, gap=2, normalization="range")
    conventions = {"partly": Conventions(8, "partial")}
    store = write_store(tmp_path / "patches", read_pairs(tmp_path / "train"), settings, conventions)
    dataset = TrainPatches(store.train, 8, RECIPE.replace(foreground_fraction=1.0))
    corners = np.array([dataset.place(0, np.random.default_rng(seed), (64, 64))[2] for seed in range(50)])
    assert ((corners <= 8) & (corners > 8 - 64)).all()


def test_crops_lie_where_somebody_looked(tmp_path: Path) -> None:
    """At eight rows of one of 16 patches of slice 2, and of slice 8, which validates; 7 others train."""
    mask = np.full((9, 256, 256), 128, np.uint8)
    mask[[2, 8], 64:72, 128:192] = np.arange(64) % 2 * 255
    tiff.write_stack(tmp_path / "train/partly/images/s.tif", np.zeros_like(mask))
    tiff.write_stack(tmp_path / "train/partly/masks/s.tif", mask)
    cut = Patch(size=64, step=64, validation_fraction=0.1, gap=1, normalization="range")
    conventions = {"partly": Conventions(8, "partial")}
    store = write_store(tmp_path / "patches", read_pairs(tmp_path / "train"), cut, conventions)
    assert np.flatnonzero(store.train.labelled()).tolist() == [2 * 16 + 1 * 4 + 2]
    dataset = TrainPatches(store.train, 8, RECIPE.replace(foreground_fraction=0.0, orthoplanes=True))
    for axis, first, last in ((0, 2, 2), (1, 64, 71), (2, 128, 191)):
        places = [dataset.place(axis, np.random.default_rng(seed))[1] for seed in range(50)]
        assert first <= min(places) <= max(places) <= last


def test_a_deep_stack_that_nobody_looked_at_gives_no_orthogonal_planes(tmp_path: Path) -> None:
    """Of the other stack 3 slices train, and a network with two poolings sees planes of 4."""
    for name, depth, value in (("seen", 5, 255), ("unseen", 12, 128)):
        mask = np.full((depth, 64, 64), value, np.uint8)
        tiff.write_stack(tmp_path / "train/partly/images" / f"{name}.tif", np.zeros_like(mask))
        tiff.write_stack(tmp_path / "train/partly/masks" / f"{name}.tif", mask)
    cut = Patch(size=64, step=64, validation_fraction=0.2, gap=1, normalization="range")
    conventions = {"partly": Conventions(8, "partial")}
    store = write_store(tmp_path / "patches", read_pairs(tmp_path / "train"), cut, conventions)
    with pytest.raises(InputError, match="train.orthoplanes: found true, and stacks of at most 3 training slices"):
        TrainPatches(store.train, 8, RECIPE.replace(orthoplanes=True))


def test_crops_lie_inside_the_slice_and_reach_all_of_it(store: PatchStore) -> None:
    dataset = TrainPatches(store.train, 8, RECIPE.replace(foreground_fraction=0.0))
    corners = np.array([dataset.place(0, np.random.default_rng(seed))[2] for seed in range(400)])
    height, width = store.train.shapes[0][1:]
    assert corners.min(axis=0).tolist() == [0, 0]
    assert corners.max(axis=0).tolist() == [height - 64, width - 64]


def test_a_batch_depends_on_seed_epoch_and_place_alone(store: PatchStore) -> None:
    first, again = (TrainPatches(store.train, 8, RECIPE) for _ in range(2))
    first.epoch = again.epoch = 1
    again[0]
    assert np.array_equal(first[2][0], again[2][0])
    again.epoch = 2
    assert not np.array_equal(first[2][0], again[2][0])


def test_no_device_goes_without_a_patch_and_none_counts_twice(store: PatchStore) -> None:
    recipe = RECIPE.replace(batch_size=7)
    alone, shared = (ValidationPatches(store.validation, "phantom", 8, recipe, devices) for devices in (1, 4))
    assert [len(images) for images, _, _ in alone] == [7, 7, 7, 3]
    assert [len(images) for images, _, _ in shared] == [8, 8, 8, 4]
    for mine, theirs in zip(shared, alone, strict=True):
        assert all(np.array_equal(some[: len(all_)], all_) for some, all_ in zip(mine, theirs, strict=True))
        assert not mine[2][len(theirs[2]) :].any()


def test_validation_batches_are_those_of_one_set(unequal_sets: PatchStore) -> None:
    validation = unequal_sets.validation
    held = {name: ValidationPatches(validation, name, 8, RECIPE) for name in validation.sets}
    rows = {name: np.concatenate([batches[step][1] for step in range(len(batches))]) for name, batches in held.items()}
    assert [*rows] == ["phantom", "small"]
    assert sum(map(len, rows.values())) == len(validation)
    for name, masks in rows.items():
        stacks = [stack for stack, dataset in enumerate(validation.datasets) if dataset == name]
        of_set = np.isin(validation.index[:, 0], stacks)
        assert np.array_equal(masks[..., 0], validation.masks[of_set])


def texture(depth: int, apart: int) -> np.ndarray:
    """Return slices (Z, Y, X) uint8 of an isotropic texture, that many pixels apart."""
    volume = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(depth * apart, 64, 96)), 2)[::apart]
    return np.asarray(np.clip(128 + 40 * volume / volume.std(), 0, 255), np.uint8)


def test_neighbours_are_copies_where_slices_are_thick_or_unrelated(tmp_path: Path) -> None:
    """In training and in validation; and a network that saw copies alone says so."""
    stacks = {"1": texture(8, 1), "2": texture(8, 6), "3": texture(8, 40), "4": texture(1, 1)}
    for name, voxels in stacks.items():
        for kind, values in (("images", voxels), ("masks", np.uint8(255) * (voxels > 150))):
            (tmp_path / "train/cells" / kind).mkdir(parents=True, exist_ok=True)
            tiff.write_stack(tmp_path / "train/cells" / kind / f"{name}.tif", values)
    cut = Patch(size=64, step=64, validation_fraction=0.3, gap=0, normalization="range")
    store = write_store(tmp_path / "patches", read_pairs(tmp_path / "train"), cut, {"cells": Conventions(8, "nonzero")})
    seen = store.with_context_steps(2, store.slices())
    assert seen.train.context_steps == seen.validation.context_steps == {0: 2, 1: 0, 2: 0, 3: 0}
    assert store.with_context_steps(2, SliceDistance(pixels=6.0)).train.context_steps[1] == 2
    recipe = RECIPE.replace(augment_strength=0, affine_fraction=0, intensity_strength=0, patches_per_epoch=64)
    batches = TrainPatches(seen.train, 8, recipe)
    images = np.concatenate([batches[step][0] for step in range(len(batches))])
    copies = (images == images[..., :1]).all(axis=(1, 2, 3))
    assert 0 < copies.sum() < len(images)
    (held,) = (ValidationPatches(seen.validation, "cells", 8, recipe),)
    images = np.concatenate([held[step][0] for step in range(len(held))])
    of_first = seen.validation.index[:, 0] == 0
    assert (images[~of_first] == images[~of_first][..., :1]).all()
    assert not (images[of_first] == images[of_first][..., :1]).all()
    assert train._learned_step(store, recipe, store.slices()) == 2
    assert train._learned_step(store, recipe, SliceDistance(pixels=0.1)) == 0


def test_single_sections_do_not_switch_off_the_neighbours_of_stacks(tmp_path: Path) -> None:
    """Slices of a stack are 30 nm apart. Sections whose z size is 5 nm have no neighbours that could be closer."""
    stacks = {"stack/s": texture(8, 2), "sections/1": texture(1, 1), "sections/2": texture(1, 1)}
    for name, voxels in stacks.items():
        dataset, file = name.split("/")
        for kind, values in (("images", voxels), ("masks", np.uint8(255) * (voxels > 150))):
            tiff.write_stack(tmp_path / "train" / dataset / kind / f"{file}.tif", values)
    cut = Patch(size=64, step=64, validation_fraction=0.3, gap=0)
    sets = {
        "stack": Conventions(8, "nonzero", {"z": 30.0}),
        "sections": Conventions(8, "nonzero", {"z": 5.0}, unrelated=True),
    }
    store = write_store(tmp_path / "patches", read_pairs(tmp_path / "train"), cut, sets)
    learned = store.slices()
    assert learned is not None
    assert learned.nm == 30
    assert store.train.datasets == ["sections", "sections", "stack"]
    assert store.with_context_steps(1, learned).train.context_steps == {0: 0, 1: 0, 2: 1}


@pytest.mark.slow
def test_other_processes_make_the_same_batches(store: PatchStore) -> None:
    dataset, threads = (TrainPatches(store.train, 8, RECIPE) for _ in range(2))
    with loaded(dataset, 2) as batches:
        assert len(batches) == len(threads)
        for epoch in range(2):
            batches.begin(epoch)
            threads.begin(epoch)
            for step in range(len(threads)):
                for mine, theirs in zip(batches[step], threads[step], strict=True):
                    assert np.array_equal(mine, theirs)


@pytest.mark.slow
def test_a_process_that_was_killed_is_one_line(store: PatchStore) -> None:
    """Also where a backend wraps the error, as TensorFlow does, in one that does not name it."""
    killed = pytest.raises(InputError, match=r"machine.loaders: found 2, one of which was killed by SIGKILL")
    with killed as error, loaded(TrainPatches(store.train, 8, RECIPE), 2) as batches:
        batches[0]
        for process in multiprocessing.active_children():
            process.kill()
        try:
            while True:
                batches[0]
        except BrokenProcessPool:
            raise RuntimeError("the graph failed") from None
    assert "resumes the training" in str(error.value)


class Unusable(TrainPatches):
    """Cannot be made in another process, which ends with exit code 3."""

    def __reduce__(self) -> tuple:
        return sys.exit, (3,)


@pytest.mark.slow
def test_a_process_that_ends_by_itself_was_not_killed(store: PatchStore) -> None:
    """As in a script without a guard, which each process runs again: no memory ran out."""
    ended = pytest.raises(
        InputError, match="machine.loaders: found 2, one of which ended with exit code 3; its error is"
    )
    with ended as error, loaded(Unusable(store.train, 8, RECIPE), 2) as batches:
        batches[0]
    assert 'call this below `if __name__ == "__main__":`' in str(error.value)


def test_another_process_maps_the_files_of_patches(store: PatchStore) -> None:
    pickled = pickle.dumps(store.train)
    assert len(pickled) < store.train.images.nbytes / 10
    there = pickle.loads(pickled)
    assert isinstance(there.images, np.memmap)
    assert np.array_equal(there.images, store.train.images)
    assert there.context_steps == store.train.context_steps


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_contacts_go_the_way_of_the_mask(touching: PatchStore, strength: float) -> None:
    recipe = RECIPE.replace(contacts=True, augment_strength=strength, affine_fraction=1.0, foreground_fraction=1.0)
    batches = TrainPatches(touching.train, 8, recipe)
    for step in range(4):
        _, truth = batches[step]
        assert truth.shape == (4, 64, 64, 2)
        mask, contacts = truth[..., 0], truth[..., 1]
        assert np.array_equal(contacts != UNLABELLED, mask == 1)
        assert (contacts == 1).any()
    _, validating, _ = ValidationPatches(touching.validation, "cells", 8, recipe)[0]
    assert np.array_equal(validating[0, 30, :, 1] == 1, np.isin(np.arange(64), [30, 31, 32, 33]))


def test_contacts_under_a_sheath_of_myelin_are_unknown(touching: PatchStore) -> None:
    recipe = RECIPE.replace(contacts=True, augmentation={"myelin": {"share": 1.0}})
    _, truth = TrainPatches(touching.train, 8, recipe)[0]
    assert (truth[..., 1][truth[..., 0] == 0] == UNLABELLED).all()


def test_contacts_need_masks_that_tell_mitochondria_apart(store: PatchStore) -> None:
    with pytest.raises(InputError, match=r"train\.contacts: found true, and masks that do not tell mitochondria apart"):
        TrainPatches(store.train, 8, RECIPE.replace(contacts=True))

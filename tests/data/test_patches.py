import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitoflow.config.params import Patch
from mitoflow.data import patches
from mitoflow.data.pairs import Pair, read_pairs
from mitoflow.data.patches import Axis, PatchStore
from mitoflow.errors import InputError
from mitoflow.io import tiff

SETTINGS = Patch(size=64, step=64, validation_fraction=0.25, gap=2)


@given(length=st.integers(16, 700), size=st.integers(16, 256), data=st.data())
def test_every_pixel_is_owned_by_exactly_one_patch(length: int, size: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, size))
    axis = Axis(length, size, step)
    owners = np.zeros(length, int)
    for start, (first, end) in zip(axis.starts, axis.owned, strict=True):
        assert 0 <= first <= end <= size
        owners[start + first : start + end] += 1
    assert (owners == 1).all()


@given(rows=st.integers(64, 200), columns=st.integers(64, 200), step=st.sampled_from([24, 48, 64]))
def test_owned_rectangles_put_the_slice_together_again(rows: int, columns: int, step: int) -> None:
    image = np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns)
    cut, boxes = patches.cut(image, 64, step)
    inside = patches.owned(boxes[:, 2:], 64)
    assert inside.sum() == image.size
    assert np.array_equal(np.sort(cut[inside]), np.sort(image.ravel()))


def test_edges_are_reflected() -> None:
    image = np.arange(64 * 80, dtype=np.int64).reshape(64, 80)
    cut, boxes = patches.cut(image, 64, 64)
    assert boxes.tolist() == [[0, 0, 0, 64, 0, 64], [0, 64, 0, 64, 0, 16]]
    assert np.array_equal(cut[1][:, 16:32], image[:, 63:79][:, ::-1])


def test_split_leaves_a_gap_and_never_mixes_neighbours() -> None:
    sides = patches.split([20, 3], fraction=0.25, gap=3)
    assert sides["validation"] == [(0, z) for z in range(15, 20)]
    assert sides["train"] == [(0, z) for z in range(12)] + [(1, z) for z in range(3)]


def test_single_pages_are_split_as_one_stack() -> None:
    sides = patches.split([1] * 10, fraction=0.2, gap=1)
    assert sides["validation"] == [(8, 0), (9, 0)]
    assert sides["train"] == [(i, 0) for i in range(7)]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.floats(0.01, 0.99), st.integers(0, 5))
def test_split_keeps_the_gap_in_every_stack(depths: list[int], fraction: float, gap: int) -> None:
    sides = patches.split(depths, fraction, gap)
    assert not set(sides["train"]) & set(sides["validation"])
    for stack, depth in enumerate(depths):
        train = [z for i, z in sides["train"] if i == stack]
        held_out = [z for i, z in sides["validation"] if i == stack]
        if depth > 1 and held_out:
            assert min(held_out) - max(train) == gap + 1
        elif depth > 1:
            assert train == list(range(depth))


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    rng = np.random.default_rng(0)
    for name, shape in {"a": (12, 70, 100), "b": (9, 64, 130)}.items():
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        tiff.write_stack(tmp_path / "train/images" / f"{name}.tif", image)
        tiff.write_stack(tmp_path / "train/masks" / f"{name}.tif", (image > 200).astype(np.uint8) * 255)
    return read_pairs(tmp_path / "train")


def test_store_gives_back_every_slice(tmp_path: Path, pairs: list[Pair]) -> None:
    store = PatchStore.write(tmp_path / "patches", pairs, SETTINGS, mask_rule="nonzero", bit_depth=8)
    seen = []
    for side in (store.train, store.validation):
        assert isinstance(side.images, np.memmap)
        for stack, held in side.ranges.items():
            for z in held:
                image = pairs[stack].image.slice(z)
                assert np.array_equal(side.image(stack, z), image)
                assert np.array_equal(side.mask(stack, z), image > 200)
                box = (3, 61, 30, 95)
                assert np.array_equal(side.image(stack, z, box), image[3:61, 30:95])
                seen.append((stack, z))
    sides = patches.split([12, 9], SETTINGS.validation_fraction, SETTINGS.gap)
    assert seen == sides["train"] + sides["validation"]
    assert store.validation.owned(np.arange(len(store.validation))).sum() == 3 * 70 * 100 + 2 * 64 * 130


def test_patches_come_with_their_neighbours_of_the_same_side(tmp_path: Path, pairs: list[Pair]) -> None:
    store = PatchStore.write(tmp_path / "patches", pairs, SETTINGS, mask_rule="nonzero", bit_depth=8)
    side = store.validation
    rows = np.arange(len(side))[::3]
    images = side.with_neighbours(rows, context=1, step=2)
    for image, row in zip(images, rows, strict=True):
        stack, z, y, x, *_ = (int(value) for value in side.index[row])
        held = side.ranges[stack]
        for channel, near in enumerate((z - 2, z, z + 2)):
            near = min(max(near, held.start), held.stop - 1)
            whole = pairs[stack].image.slice(near)
            inside = whole[y : y + side.size, x : x + side.size]
            assert np.array_equal(image[: inside.shape[0], : inside.shape[1], channel], inside)


def test_foreground_is_counted_where_it_is_owned(tmp_path: Path, pairs: list[Pair]) -> None:
    side = PatchStore.write(tmp_path / "patches", pairs, SETTINGS, mask_rule="nonzero", bit_depth=8).train
    whole = sum(int(side.mask(stack, z).sum()) for stack, held in side.ranges.items() for z in held)
    assert side.foreground().sum() == whole > 0


def test_digest_follows_content(tmp_path: Path, pairs: list[Pair]) -> None:
    first = PatchStore.write(tmp_path / "one", pairs, SETTINGS, mask_rule="nonzero", bit_depth=8)
    again = PatchStore.write(tmp_path / "two", pairs, SETTINGS, mask_rule="nonzero", bit_depth=8)
    other = PatchStore.write(tmp_path / "three", pairs, SETTINGS, mask_rule="half", bit_depth=8)
    assert first.digest == again.digest == other.digest
    image = pairs[0].image.path
    changed = np.stack(list(pairs[0].image.slices()))
    changed[0, 0, 0] ^= 1
    tiff.write_stack(image, changed)
    pairs = read_pairs(image.parents[1])
    assert PatchStore.write(tmp_path / "four", pairs, SETTINGS, mask_rule="nonzero", bit_depth=8).digest != first.digest


def test_too_few_slices_leave_no_store(tmp_path: Path, pairs: list[Pair]) -> None:
    settings = SETTINGS.model_copy(update={"gap": 50})
    with pytest.raises(InputError, match="lower patch.gap"):
        PatchStore.write(tmp_path / "patches", pairs, settings, mask_rule="nonzero", bit_depth=8)
    assert not (tmp_path / "patches").exists()


@pytest.mark.parametrize("damage", ["missing", "half", "format", "no store"])
def test_broken_store_is_one_line(tmp_path: Path, pairs: list[Pair], damage: str) -> None:
    folder = tmp_path / "patches"
    PatchStore.write(folder, pairs, SETTINGS, mask_rule="nonzero", bit_depth=8)
    if damage == "missing":
        (folder / "train/masks.npy").unlink()
    elif damage == "half":
        content = (folder / "train/images.npy").read_bytes()
        (folder / "train/images.npy").write_bytes(content[: len(content) // 2])
    elif damage == "format":
        header = json.loads((folder / "store.json").read_text())
        (folder / "store.json").write_text(json.dumps(header | {"format": 0}))
    else:
        shutil.rmtree(folder)
    with pytest.raises(InputError, match="dvc repro -f patch"):
        PatchStore.open(folder)

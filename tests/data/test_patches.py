import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitoflow.config.params import Patch
from mitoflow.data import cutting
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.network_input import UNLABELLED, grey_range, stretched
from mitoflow.data.pairs import Pair, read_pairs, read_set
from mitoflow.data.patches import Axis, PatchStore
from mitoflow.errors import InputError
from mitoflow.io import tiff

SETTINGS = Patch(size=64, step=64, validation_fraction=0.25, gap=2, normalization="range")


@given(length=st.integers(16, 700), size=st.integers(16, 256), data=st.data())
def test_every_pixel_is_owned_by_exactly_one_patch(length: int, size: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, size))
    axis = Axis(length, size, step)
    owners = np.zeros(length, int)
    for start, (first, end) in zip(axis.starts, axis.owned, strict=True):
        assert 0 <= first <= end <= size
        owners[start + first : start + end] += 1
    assert (owners == 1).all()


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    rng = np.random.default_rng(0)
    for name, shape in {"a": (12, 70, 100), "b": (9, 64, 130)}.items():
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        tiff.write_stack(tmp_path / "train/lab/images" / f"{name}.tif", image)
        tiff.write_stack(tmp_path / "train/lab/masks" / f"{name}.tif", (image > 200).astype(np.uint8) * 255)
    return read_pairs(tmp_path / "train")


def test_store_gives_back_every_slice(tmp_path: Path, pairs: list[Pair]) -> None:
    store = write_store(tmp_path / "patches", pairs, SETTINGS, {"lab": Conventions(8, "nonzero")})
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
    sides = cutting.split([12, 9], SETTINGS.validation_fraction, SETTINGS.gap)
    assert seen == sides["train"] + sides["validation"]
    assert store.validation.owned(np.arange(len(store.validation))).sum() == 3 * 70 * 100 + 2 * 64 * 130
    assert (store.normalization, store.bit_depth, store.train.datasets) == ("range", 8, ["lab", "lab"])


def of_two_sets(tmp_path: Path) -> list[Pair]:
    """Ten slices of 8 bits, and three unrelated ones of 16 bits, of which one is larger."""
    rng = np.random.default_rng(0)
    stacks = {"em/s": rng.integers(0, 200, (10, 70, 100), dtype=np.uint8)}
    for k, side in enumerate((64, 90, 64)):
        stacks[f"few/p{k}"] = rng.integers(900, 3000, (1, side, side), dtype=np.uint16)
    for name, image in stacks.items():
        dataset, file = name.split("/")
        tiff.write_stack(tmp_path / "train" / dataset / "images" / f"{file}.tif", image)
        tiff.write_stack(tmp_path / "train" / dataset / "masks" / f"{file}.tif", (image > 150).astype(np.uint8))
    return read_pairs(tmp_path / "train")


SETS = {"em": Conventions(8, "nonzero", {"z": 30.0}), "few": Conventions(12, "nonzero", unrelated=True)}


def test_stretched_slices_of_several_sets_are_in_one_store(tmp_path: Path) -> None:
    pairs = of_two_sets(tmp_path)
    settings = SETTINGS.model_copy(update={"normalization": "percentiles"})
    store = write_store(tmp_path / "patches", pairs, settings, SETS)
    assert (store.normalization, store.bit_depth) == ("percentiles", 8)
    for side in (store.train, store.validation):
        assert side.images.dtype == np.uint8
        assert side.datasets == ["em", "few", "few", "few"]
        assert side.spacings == [{"z": 30.0}, {}, {}, {}]
        for stack, held in side.ranges.items():
            for z in held:
                image = pairs[stack].image.slice(z)
                assert np.array_equal(side.image(stack, z), stretched(image, *grey_range(image)))
                assert np.array_equal(side.mask(stack, z), pairs[stack].mask.slice(z))
    # Unrelated slices have no gap between them, and a set has its own share.
    assert {stack: [*held] for stack, held in store.validation.ranges.items()} == {0: [8, 9], 3: [0]}
    assert {stack: [*held] for stack, held in store.train.ranges.items()} == {0: [*range(6)], 1: [0], 2: [0]}


def test_a_set_that_is_too_small_trains_only(tmp_path: Path) -> None:
    pairs = of_two_sets(tmp_path)
    settings = SETTINGS.model_copy(update={"normalization": "percentiles", "gap": 3})
    related = SETS | {"few": Conventions(12, "nonzero")}
    store = write_store(tmp_path / "patches", pairs, settings, related)
    assert store.validation.sets == ["em"]
    assert store.train.sets == ["em", "few"]
    assert len(store.train.ranges) == 4


def test_sets_of_other_bit_depths_need_to_be_stretched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"patch\.normalization: found range, and 8 bits in em and 12 bits in few"):
        write_store(tmp_path / "patches", of_two_sets(tmp_path), SETTINGS, SETS)
    assert not (tmp_path / "patches").exists()


def test_patches_come_with_their_neighbours_of_the_same_side(tmp_path: Path, pairs: list[Pair]) -> None:
    store = write_store(tmp_path / "patches", pairs, SETTINGS, {"lab": Conventions(8, "nonzero")})
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
    side = write_store(tmp_path / "patches", pairs, SETTINGS, {"lab": Conventions(8, "nonzero")}).train
    whole = sum(int(side.mask(stack, z).sum()) for stack, held in side.ranges.items() for z in held)
    assert side.foreground().sum() == whole > 0


def test_digest_follows_content(tmp_path: Path, pairs: list[Pair]) -> None:
    first = write_store(tmp_path / "one", pairs, SETTINGS, {"lab": Conventions(8, "nonzero")})
    again = write_store(tmp_path / "two", pairs, SETTINGS, {"lab": Conventions(8, "nonzero")})
    other = write_store(tmp_path / "three", pairs, SETTINGS, {"lab": Conventions(8, "half")})
    assert first.digest == again.digest == other.digest
    image = pairs[0].image.path
    changed = np.stack(list(pairs[0].image.slices()))
    changed[0, 0, 0] ^= 1
    tiff.write_stack(image, changed)
    pairs = read_set(image.parents[1], "lab")
    assert write_store(tmp_path / "four", pairs, SETTINGS, {"lab": Conventions(8, "nonzero")}).digest != first.digest


def test_too_few_slices_leave_no_store(tmp_path: Path, pairs: list[Pair]) -> None:
    settings = SETTINGS.model_copy(update={"gap": 50})
    with pytest.raises(InputError) as raised:
        write_store(tmp_path / "patches", pairs, settings, {"lab": Conventions(8, "nonzero")})
    found = "data/train: found stacks of at most 12 slices, expected one that is long enough"
    for_what = "for patch.validation_fraction 0.25 behind patch.gap 50"
    remedy = "add slices, or lower patch.gap or patch.validation_fraction"
    assert str(raised.value) == f"{found} {for_what}; {remedy}"
    assert not (tmp_path / "patches").exists()


def test_a_set_without_mitochondria_where_it_would_validate_trains_only(tmp_path: Path) -> None:
    """Of its 10 slices 8 and 9 would validate, and 6 and 7 would be left out before them."""
    mask = np.zeros((10, 70, 100), np.uint8)
    mask[:8, 9, 9] = 1
    of_two_sets(tmp_path)
    tiff.write_stack(tmp_path / "train/em/masks/s.tif", mask)
    settings = SETTINGS.model_copy(update={"normalization": "percentiles"})
    store = write_store(tmp_path / "patches", read_pairs(tmp_path / "train"), settings, SETS)
    assert store.validation.sets == ["few"]
    assert {stack: [*held] for stack, held in store.train.ranges.items()} == {0: [*range(10)], 1: [0], 2: [0]}


@pytest.mark.parametrize("value", [0, 128])
def test_slices_without_mitochondria_cannot_validate(tmp_path: Path, value: int) -> None:
    """Somebody looked at the slices 9 to 11 and found none, or nobody looked."""
    mask = np.full((12, 64, 64), value, np.uint8)
    mask[:8, :9] = 1
    for kind, stack in (("images", np.zeros((12, 64, 64), np.uint8)), ("masks", mask)):
        tiff.write_stack(tmp_path / "train/lab" / kind / "a.tif", stack)
    with pytest.raises(InputError) as raised:
        write_store(tmp_path / "patches", read_pairs(tmp_path / "train"), SETTINGS, {"lab": Conventions(8, "partial")})
    found = "data/train: found no mitochondria in the slices that validate, counted from 0: lab/a z 9 to 11"
    remedy = "label a slice or a box with mitochondria there, or change patch.validation_fraction"
    assert str(raised.value) == f"{found}, expected some, which choose the epoch and the threshold; {remedy}"
    assert not (tmp_path / "patches").exists()


@pytest.mark.parametrize(("normalization", "dtype"), [("range", np.uint16), ("percentiles", np.uint8)])
def test_a_store_has_the_grey_values_of_the_images_or_eight_bits(
    tmp_path: Path, normalization: str, dtype: type
) -> None:
    image = np.random.default_rng(0).integers(900, 3000, (12, 64, 64), dtype=np.uint16)
    soft = np.where(image > 2000, 255, np.where(image > 1500, 100, 0)).astype(np.uint8)
    for kind, stack in (("images", image), ("masks", soft)):
        tiff.write_stack(tmp_path / "train/lab" / kind / "a.tif", stack)
    settings = SETTINGS.model_copy(update={"normalization": normalization})
    write_store(tmp_path / "patches", read_pairs(tmp_path / "train"), settings, {"lab": Conventions(12, "half")})
    side = PatchStore.open(tmp_path / "patches").train  # compares what is there with the digests
    assert side.images.dtype == dtype
    expected = image[3] if normalization == "range" else stretched(image[3], *grey_range(image[3]))
    assert np.array_equal(side.image(0, 3), expected)
    assert np.array_equal(side.mask(0, 3), image[3] > 2000)


def test_a_store_whose_pixels_changed_is_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    write_store(tmp_path / "patches", pairs, SETTINGS, {"lab": Conventions(8, "nonzero")})
    facts = json.loads((tmp_path / "patches/store.json").read_text(encoding="utf-8"))["stacks"]
    assert [stack["name"] for stack in facts] == ["a", "b"]
    with (tmp_path / "patches/validation/masks.npy").open("r+b") as masks:
        masks.seek(-1, 2)
        masks.write(b"\x02")
    with pytest.raises(InputError, match="dvc repro -f patch"):
        PatchStore.open(tmp_path / "patches")


@pytest.mark.parametrize("damage", ["missing", "half", "format", "no store"])
def test_broken_store_is_one_line(tmp_path: Path, pairs: list[Pair], damage: str) -> None:
    folder = tmp_path / "patches"
    write_store(folder, pairs, SETTINGS, {"lab": Conventions(8, "nonzero")})
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


def two_halves(depth: int = 8) -> np.ndarray:
    """Return two mitochondria side by side, with a number each."""
    labels = np.zeros((depth, 64, 64), np.uint16)
    labels[:, 20:40, 10:32], labels[:, 20:40, 32:50] = 3, 4
    return labels


def test_contacts_are_stored_where_masks_tell_mitochondria_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("counted", "merged"):
        tiff.write_stack(tmp_path / f"train/{name}/images/a.tif", rng.integers(0, 256, (8, 64, 64), np.uint8))
        tiff.write_stack(tmp_path / f"train/{name}/masks/a.tif", two_halves())
    pairs = read_pairs(tmp_path / "train")
    sets = {"counted": Conventions(8, "nonzero", instances=True), "merged": Conventions(8, "nonzero")}
    store = write_store(tmp_path / "patches", pairs, SETTINGS, sets)
    assert store.train.contacts is not None
    for dataset in sets:
        row = int(store.train.rows_of(dataset)[0])
        mask, contacts = store.train.masks[row], store.train.contacts[row]
        assert np.array_equal(mask, two_halves()[0] > 0)
        known = contacts != UNLABELLED
        assert np.array_equal(known, mask == 1) if dataset == "counted" else not known.any()
        if dataset == "counted":
            assert np.flatnonzero(contacts[30] == 1).tolist() == [30, 31, 32, 33]
    merged = write_store(tmp_path / "without", pairs, SETTINGS, dict.fromkeys(sets, Conventions(8, "nonzero")))
    assert merged.train.contacts is None
    assert merged.digest != store.digest
    assert merged.train.digest_of("counted") != store.train.digest_of("counted")


def test_contacts_that_changed_are_refused(tmp_path: Path) -> None:
    tiff.write_stack(
        tmp_path / "train/lab/images/a.tif", np.random.default_rng(0).integers(0, 256, (8, 64, 64), np.uint8)
    )
    tiff.write_stack(tmp_path / "train/lab/masks/a.tif", two_halves())
    sets = {"lab": Conventions(8, "nonzero", instances=True)}
    write_store(tmp_path / "patches", read_pairs(tmp_path / "train"), SETTINGS, sets)
    path = tmp_path / "patches/train/contacts.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="train has changed since it was written"):
        PatchStore.open(tmp_path / "patches")

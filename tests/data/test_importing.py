"""Pairing of masks with images, and the slices that become the test part."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from mitoflow.data.importing import Excerpt, Sources, find_pairs, hold_out, single_slices, whole, write_excerpts
from mitoflow.data.pairs import Pair
from mitoflow.errors import InputError
from mitoflow.io import ome
from mitoflow.io.spacing import read_tiff_spacing
from mitoflow.io.tiff import open_mask, open_stack, write_stack
from tests.services import HTTPFolder

OPTIONS = ("--images", "--masks")


def write(path: Path, depth: int = 1, dtype: type = np.uint8, side: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path)))
    write_stack(path, rng.integers(0, 200, (depth, side, side + 3)).astype(dtype))
    return path


def find(images: Path | str, masks: Path | str) -> Sources:
    return find_pairs([str(images)], [str(masks)], OPTIONS)


def partners(sources: Sources) -> dict[str, str]:
    return {pair.image.path.name: pair.mask.path.name for pair in sources.pairs}


def test_equal_names_are_pairs_in_any_order(tmp_path: Path) -> None:
    images = [str(write(tmp_path / "em" / f"s{n}.tif")) for n in (10, 2, 1)]
    masks = [str(write(tmp_path / "mito" / f"s{n}.tiff")) for n in (1, 10, 2)]
    sources = find_pairs(images, masks, OPTIONS)
    assert not sources.by_order
    assert partners(sources) == {"s1.tif": "s1.tiff", "s2.tif": "s2.tiff", "s10.tif": "s10.tiff"}
    assert [pair.name for pair in sources.pairs] == ["s1", "s2", "s10"]


@pytest.mark.parametrize("spell", [str, lambda folder: f"{folder}/*.tif", lambda folder: f"{folder.parent}/**/*.tif"])
def test_other_names_are_paired_in_natural_order_with_a_note(tmp_path: Path, spell: Callable[[Path], str]) -> None:
    for n in (2, 10, 1):
        write(tmp_path / "a" / "em" / f"img_{n}.tif")
        write(tmp_path / "b" / "mito" / f"mask_{n:03d}.tif")
    sources = find(spell(tmp_path / "a" / "em"), spell(tmp_path / "b" / "mito"))
    assert sources.by_order
    assert partners(sources) == {f"img_{n}.tif": f"mask_{n:03d}.tif" for n in (1, 2, 10)}


def zarr(path: Path, voxels: np.ndarray) -> Path:
    array = ome.create_multiscale(path, voxels.shape, voxels.dtype, 4)
    array[:] = voxels
    ome.finish_multiscale(path, ome.Description("zyx", {"z": 30.0, "y": 4.0, "x": 5.0}))
    return path


@pytest.mark.parametrize("masks", ["cell_mask.ome.zarr", "*_mask.ome.zarr"])
def test_an_ome_zarr_is_a_stack(tmp_path: Path, masks: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 256, (12, 64, 70), np.uint8)
    labels = (voxels > 200).astype(np.uint32) * 70_000
    image = zarr(tmp_path / "cell.ome.zarr", voxels)
    zarr(tmp_path / "cell_mask.ome.zarr", labels)
    sources = find(image, f"{tmp_path}/{masks}")
    train, test = hold_out(sources.pairs, 0.25, 2)
    for excerpt, places in ((train[0], slice(0, 7)), (test[0], slice(9, 12))):
        excerpt.write(tmp_path / "data", lambda _: None)
        written = tmp_path / "data/images/cell.ome.tif"
        np.testing.assert_array_equal(tifffile.imread(written), voxels[places])
        assert read_tiff_spacing(written) == {"z": 30, "y": 4, "x": 5}
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "data/masks/cell.ome.tif"), labels[places])


def test_an_ome_zarr_of_another_type_is_one_line(tmp_path: Path) -> None:
    whole = zarr(tmp_path / "a.ome.zarr", np.zeros((3, 64, 64), np.uint8))
    soft = zarr(tmp_path / "p.ome.zarr", np.zeros((3, 64, 64), np.float32))
    with pytest.raises(InputError, match=r"p.ome.zarr: found float32 voxels, expected a mask or labels, of integers"):
        find(whole, soft)
    with pytest.raises(InputError, match=r"p.ome.zarr: found float32 voxels, expected uint8 or uint16"):
        find(soft, whole)
    with pytest.raises(InputError, match=r"none.ome.zarr: found no such folder, expected an OME-Zarr"):
        find(whole, tmp_path / "none.ome.zarr")


def test_stacks_on_a_server_are_copied(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 256, (12, 64, 70), np.uint8)
    zarr(tmp_path / "lab/cell.ome.zarr", voxels)
    zarr(tmp_path / "lab/mito.ome.zarr", voxels // 200)
    with HTTPFolder(tmp_path / "lab") as served:
        addresses = [f"{served.url}/{name}.ome.zarr" for name in ("cell", "mito")]
        sources = find_pairs(addresses[:1], addresses[1:], OPTIONS)
        train, test = hold_out(sources.pairs, 0.25, 2)
        served.asked.clear()
        folder = tmp_path / "data"
        origins = write_excerpts({folder / "train": train, folder / "test": test})
        chunks = [path for path in served.asked if path.endswith("/0/0")]
        assert len(chunks) == len({*chunks}) == 2 * 3, "each chunk of four slices is asked for once"
    for part, places in (("train", slice(0, 7)), ("test", slice(9, 12))):
        written = folder / part / "images/cell.ome.tif"
        np.testing.assert_array_equal(tifffile.imread(written), voxels[places])
        np.testing.assert_array_equal(tifffile.imread(folder / part / "masks/cell.ome.tif"), voxels[places] // 200)
        assert read_tiff_spacing(written) == {"z": 30, "y": 4, "x": 5}
    assert origins[folder / "train/masks/cell.ome.tif"] == addresses[1]


def test_equal_names_on_several_servers_stay_apart(tmp_path: Path) -> None:
    for sample in ("s1", "s2"):
        for kind in ("em", "mito"):
            zarr(tmp_path / "lab" / sample / kind / "cell.zarr", np.zeros((1, 64, 64), np.uint8))
    with HTTPFolder(tmp_path / "lab") as served:
        images, masks = (
            [f"{served.url}/{sample}/{kind}/cell.zarr" for sample in ("s1", "s2")] for kind in ("em", "mito")
        )
        pairs = find_pairs(images, masks, OPTIONS).pairs
        assert [pair.name for pair in pairs] == ["s1_em_cell", "s2_em_cell"]
        assert [str(pair.mask.location) for pair in pairs] == masks
        with pytest.raises(InputError, match=f"^{served.url}/none.zarr: found no group of Zarr"):
            find_pairs([f"{served.url}/none.zarr"], masks[:1], OPTIONS)


def test_a_disk_without_room_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pair,) = find(write(tmp_path / "a.tif", 4), write(tmp_path / "b.tif", 4)).pairs
    half = Excerpt(pair, 0, 2, "a")
    assert half.size == 2 * 2 * 64 * 67
    assert Excerpt(pair, 0, 4, "a").size == sum((tmp_path / f"{name}.tif").stat().st_size for name in "ab")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=half.size - 1))
    with pytest.raises(InputError, match=r"found 0.0 GB of free disk, expected 0.0 GB for images and masks"):
        write_excerpts({tmp_path / "data/train": [half]})
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=half.size))
    write_excerpts({tmp_path / "data/train": [half]})


def test_names_without_numbers_go_together_in_order(tmp_path: Path) -> None:
    write(tmp_path / "training.tif")
    write(tmp_path / "training_groundtruth.tif")
    sources = find(tmp_path / "training.tif", tmp_path / "training_groundtruth.tif")
    assert sources.by_order
    assert partners(sources) == {"training.tif": "training_groundtruth.tif"}


def test_equal_names_in_several_folders_stay_apart(tmp_path: Path) -> None:
    for sample in ("s1", "s2"):
        write(tmp_path / sample / "em" / "img.tif")
        write(tmp_path / sample / "mito" / "img.tif")
    sources = find(f"{tmp_path}/*/em/img.tif", f"{tmp_path}/*/mito/*.tif")
    assert [pair.name for pair in sources.pairs] == ["s1_em_img", "s2_em_img"]
    assert [pair.mask.path.parts[-3] for pair in sources.pairs] == ["s1", "s2"]
    assert sources.by_order


def test_names_stay_apart_where_a_file_system_ignores_case(tmp_path: Path) -> None:
    for part in ("em", "mito"):
        write(tmp_path / part / "old" / "a.tif")
        write(tmp_path / part / "new" / "A.tif")
    sources = find(f"{tmp_path}/em/*/*.tif", f"{tmp_path}/mito/*/*.tif")
    assert {pair.name for pair in sources.pairs} == {"old_a", "new_A"}


@pytest.mark.parametrize("single", ["cell_1", "Cell_1"])
def test_slices_of_one_name_are_refused_before_one_replaces_the_other(single: str, tmp_path: Path) -> None:
    """Also where they differ in case alone, which some file systems ignore."""
    for part in ("em", "mito"):
        write(tmp_path / part / "cell.tif", depth=3)
        write(tmp_path / part / f"{single}.tif")
        write(tmp_path / part / "cell_3.tif")
    pairs = find(tmp_path / "em", tmp_path / "mito").pairs
    line = rf"found slice \d, which gets the name {single} as slice \d of .*, expected names that differ; rename one"
    with pytest.raises(InputError, match=rf"(?i){line}") as refused:
        single_slices(pairs)
    assert all(f"em/{name}.tif" in str(refused.value) for name in ("cell", single))
    names = [slice_.name for slice_ in single_slices([pair for pair in pairs if pair.name != single])]
    assert names == ["cell_0", "cell_1", "cell_2", "cell_3"]


def test_links_keep_their_own_names(tmp_path: Path) -> None:
    """Equal masks, such as empty ones, are one file in the cache of a tool for versioned data."""
    for kind in ("images", "masks", "cache"):
        (tmp_path / kind).mkdir()
    tifffile.imwrite(tmp_path / "cache/0a1b.tif", np.zeros((64, 64), np.uint8))
    for name in ("s1", "s2"):
        tifffile.imwrite(tmp_path / f"images/{name}.tif", np.full((64, 64), int(name[1]), np.uint8))
        (tmp_path / f"masks/{name}.tif").symlink_to(tmp_path / "cache/0a1b.tif")
    found = find_pairs([str(tmp_path / "images")], [str(tmp_path / "masks")], ("--images", "--masks"))
    assert [pair.name for pair in found.pairs] == ["s1", "s2"]
    assert [pair.mask.path.name for pair in found.pairs] == ["s1.tif", "s2.tif"]
    swapped = find_pairs([str(tmp_path / "masks")], [str(tmp_path / "images")], ("--images", "--masks"))
    assert [pair.name for pair in swapped.pairs] == ["s1", "s2"]


def test_a_file_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    image, mask = write(tmp_path / "em" / "a.tif"), write(tmp_path / "mito" / "a.tif")
    sources = find_pairs([str(image), str(image.parent)], [str(mask), f"{tmp_path}/mito/*"], OPTIONS)
    assert len(sources.pairs) == 1


def test_what_cannot_be_paired_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "em" / f"{name}.tif")
    write(tmp_path / "mito" / "a.tif")
    with pytest.raises(InputError, match=r"b\.tif: found an image without mask, expected b\.tif in --masks"):
        find(tmp_path / "em", tmp_path / "mito")
    with pytest.raises(InputError, match=r"b\.tif: found a mask without image, expected b\.tif in --images"):
        find(tmp_path / "mito", tmp_path / "em")
    write(tmp_path / "other" / "x.tif")
    with pytest.raises(InputError, match="found 2 and 1 files that share no name"):
        find(tmp_path / "em", tmp_path / "other")


def test_numbers_that_contradict_the_order_are_refused(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        write(tmp_path / "em" / f"img_{n}.tif")
    for n in (1, 3, 4):
        write(tmp_path / "mito" / f"mask_{n}.tif")
    with pytest.raises(InputError, match=r"img_2\.tif: found .*mask_3\.tif in the place of its mask"):
        find(tmp_path / "em", tmp_path / "mito")


NONE = "no TIFF, PNG, MRC, DM3 or DM4 file"
FOUND = [("", NONE), ("/*", NONE), ("/x", "no such file")]


@pytest.mark.parametrize(("spelled", "found"), FOUND)
def test_no_files_are_one_line(tmp_path: Path, spelled: str, found: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "em" / "a.tif")
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(InputError, match=rf"--images .*: found {found}"):
        find(f"{tmp_path}/empty{spelled}", tmp_path / "em")


def test_sizes_that_differ_name_the_source(tmp_path: Path) -> None:
    write(tmp_path / "em" / "a.tif", 3)
    write(tmp_path / "mito" / "a.tif", 4)
    with pytest.raises(InputError, match=r"mito/a\.tif: found 4 slices .* 3 slices"):
        find(tmp_path / "em", tmp_path / "mito")


def test_a_whole_pair_is_copied_byte_for_byte(tmp_path: Path) -> None:
    image, mask = write(tmp_path / "a.tif", 4), write(tmp_path / "m.tif", 4, np.int32)
    done: list[int] = []
    for excerpt in whole([Pair("a", open_stack(image), open_mask(mask))]):
        excerpt.write(tmp_path / "train", done.append)
    assert (tmp_path / "train/images/a.tif").read_bytes() == image.read_bytes()
    assert (tmp_path / "train/masks/a.tif").read_bytes() == mask.read_bytes()
    assert sum(done) == 8


def test_part_of_a_pair_equals_one_that_is_written_at_once(tmp_path: Path) -> None:
    image, mask = write(tmp_path / "a.tif", 6, np.uint16), write(tmp_path / "m.tif", 6, np.int32)
    pair = Pair("a", open_stack(image), open_mask(mask))
    done: list[int] = []
    Excerpt(pair, 2, 5, "a").write(tmp_path / "test", done.append)
    for stack, kind in ((pair.image, "images"), (pair.mask, "masks")):
        write_stack(tmp_path / "expected.tif", np.stack([*stack.slices()][2:5]))
        assert (tmp_path / "test" / kind / "a.tif").read_bytes() == (tmp_path / "expected.tif").read_bytes()
    assert done == [1] * 6


def test_part_of_a_pair_keeps_its_voxel_size_and_its_bytes(tmp_path: Path) -> None:
    image, mask = tmp_path / "em.tif", write(tmp_path / "mask.tif", 5)
    voxels = np.random.default_rng(0).integers(0, 200, (5, 64, 67), np.uint8)
    metadata = {"axes": "ZYX", "spacing": 40.0, "unit": "nm"}
    tifffile.imwrite(image, voxels, imagej=True, resolution=(1 / 4, 1 / 5), metadata=metadata)
    excerpt = Excerpt(Pair("s", open_stack(image), open_mask(mask)), 1, 4, "s")
    for part in ("once", "again"):
        excerpt.write(tmp_path / part, lambda _: None)
    once, again = (tmp_path / part / "images" / "s.tif" for part in ("once", "again"))
    assert read_tiff_spacing(once) == pytest.approx({"z": 40.0, "y": 5.0, "x": 4.0})
    assert once.read_bytes() == again.read_bytes()
    assert np.array_equal([*open_stack(once).slices()], voxels[1:4])


def test_consecutive_files_are_one_stack(tmp_path: Path) -> None:
    for n in (9, 10, 11):
        write(tmp_path / "em" / f"s{n}.tif")
        write(tmp_path / "mito" / f"s{n}.tif")
    options = [str(tmp_path / "em")], [str(tmp_path / "mito")], OPTIONS
    (pair,) = find_pairs(*options, consecutive=True).pairs
    (excerpt,) = whole([pair])
    reported: list[int] = []
    excerpt.write(tmp_path / "data", reported.append)
    assert sum(reported) == 2 * 3
    for kind, folder in (("images", "em"), ("masks", "mito")):
        written = open_stack(tmp_path / "data" / kind / "s9.tif")
        single = [tifffile.imread(tmp_path / folder / f"s{n}.tif") for n in (9, 10, 11)]
        assert np.array_equal([*written.slices()], single)
    write(tmp_path / "em" / "s12.tif", side=70)
    write(tmp_path / "mito" / "s12.tif", side=70)
    with pytest.raises(InputError, match=r"s12.tif: found 73 x 70 pixels of uint8, expected 67 x 64"):
        find_pairs(*options, consecutive=True)


def test_gaps_among_consecutive_files_are_reported(tmp_path: Path) -> None:
    for n in (8, 9, 11):
        write(tmp_path / "em" / f"s{n}.tif")
        write(tmp_path / "mito" / f"s{n}.tif")
    options = [str(tmp_path / "em")], [str(tmp_path / "mito")], OPTIONS
    assert find_pairs(*options).notes == ()
    assert find_pairs(*options, consecutive=True).notes == (
        f"note: {tmp_path / 'em'}: 3 slices, s8.tif to s11.tif",
        f"warning: {tmp_path / 'em'}: slices are missing between s9.tif and s11.tif",
    )


def test_masks_that_predict_wrote_are_no_images(tmp_path: Path) -> None:
    """As masks they may be learned from: people correct them."""
    image = write(tmp_path / "em" / "s.tif")
    array = ome.create_multiscale(tmp_path / "m.zarr", tifffile.imread(image).shape, np.dtype(np.uint8), 8)
    (tmp_path / "mito").mkdir()
    ome.write_tiff(tmp_path / "mito/s.tif", array, ome.Description("yx", lineage={"model": "unet"}))
    folders = [str(tmp_path / "em")], [str(tmp_path / "mito")]
    assert len(find_pairs(*folders, OPTIONS).pairs) == 1
    with pytest.raises(InputError, match=r"mito/s.tif: found an output of `mitoflow predict` among the input"):
        find_pairs(*folders[::-1], OPTIONS)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Pair]:
    """One pair of each depth from 1 to 12."""
    folder = tmp_path_factory.mktemp("pairs")
    paths = {depth: write(folder / f"{depth}.tif", depth) for depth in range(1, 13)}
    return {depth: Pair(str(depth), open_stack(path), open_mask(path)) for depth, path in paths.items()}


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=9),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_test_slices_come_last_and_keep_their_distance(
    pairs: dict[int, Pair], depths: list[int], fraction: float, gap: int
) -> None:
    try:
        train, test = hold_out([pairs[depth] for depth in depths], fraction, gap)
    except InputError:
        longest = max(*depths, depths.count(1))
        assert longest - max(1, round(fraction * longest)) - gap < 1
        return
    assert train
    assert test
    for excerpt in test:
        assert excerpt.stop == excerpt.pair.image.shape[0]
    stacks = [excerpt for excerpt in test if excerpt.pair.image.shape[0] > 1]
    for later in stacks:
        earlier = next(excerpt for excerpt in train if excerpt.pair is later.pair)
        assert earlier.start == 0
        assert later.start - earlier.stop in (gap, later.stop - earlier.stop - later.depth)
    pages = depths.count(1)
    used = [sum(e.pair.image.shape[0] == 1 for e in part) for part in (train, test)]
    assert sum(used) == (pages - gap if used[1] else pages)


def test_too_few_slices_are_refused(pairs: dict[int, Pair]) -> None:
    expected = "enough for --test-fraction 0.25 behind --gap 4, and for training before it"
    with pytest.raises(InputError, match=f"found at most 5 consecutive slices, expected {expected}; lower one of them"):
        hold_out([pairs[5], pairs[1]], 0.25, 4)

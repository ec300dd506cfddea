"""Files that were damaged on disk: refused in one line, or read with the content that they had."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from keras.callbacks import LambdaCallback

from mitoflow.config.params import Patch
from mitoflow.core import files
from mitoflow.data import patches
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.pairs import read_pairs
from mitoflow.data.patches import FORMAT, SPLITS, Patches, PatchStore
from mitoflow.errors import InputError
from mitoflow.models import unet
from mitoflow.training import fitting
from mitoflow.training.callbacks import Logs
from tests.training.conftest import RECIPE

from .injection import examples, fault
from .namespace import MOUNTS, UNSHARE
from .test_fuzz import fuzz


def flip(content: bytearray, chance: random.Random) -> None:
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def truncate(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


def overwrite(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    content[start : start + 512] = chance.randbytes(min(512, len(content) - start))


DAMAGES = {"a bit flipped": flip, "truncated": truncate, "512 bytes overwritten": overwrite}


def damage(file: Path, how: str, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    DAMAGES[how](content, chance)
    file.write_bytes(content)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, small_dataset: Path) -> PatchStore:
    folder = tmp_path_factory.mktemp("damage") / "patches"
    settings = Patch(size=64, step=64, validation_fraction=0.25, gap=2)
    pairs = read_pairs(small_dataset / "train")
    return write_store(folder, pairs, settings, {"phantom": Conventions(8, "nonzero")})


@pytest.fixture(scope="module")
def undisturbed(store: PatchStore) -> fitting.Fit:
    return fitting.fit(store, RECIPE)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, store: PatchStore) -> Path:
    """The checkpoints of a fit that is killed after its second epoch."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def kill(epoch: int, logs: Logs) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitting.fit(store, RECIPE, checkpoints=folder, callbacks=[LambdaCallback(on_epoch_end=kill)])
    return folder


@pytest.mark.parametrize("how", DAMAGES)
@fault("a checkpoint {how}", long=4)
def test_checkpoint(
    store: PatchStore,
    undisturbed: fitting.Fit,
    checkpoints: Path,
    tmp_path: Path,
    chance: random.Random,
    how: str,
    attempt: int,
) -> None:
    copy = tmp_path / "checkpoints"
    shutil.copytree(checkpoints, copy)
    damage(chance.choice(sorted(copy.glob("epoch-*.npz"))), how, chance)
    fitted = fitting.fit(store, RECIPE, checkpoints=copy)
    assert fitted.history == undisturbed.history
    for mine, theirs in zip(fitted.model.get_weights(), undisturbed.model.get_weights(), strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("how", DAMAGES)
@fault("a file of the patch store {how}", long=1)
def test_patch_store(
    store: PatchStore,
    small_dataset: Path,
    tmp_path: Path,
    chance: random.Random,
    how: str,
    attempt: int,
    record_property: Callable[[str, object], None],
) -> None:
    settings = Patch(size=64, step=64, validation_fraction=0.25, gap=2)
    pairs = read_pairs(small_dataset / "train")
    folder = tmp_path / "patches"
    write_store(folder, pairs, settings, {"phantom": Conventions(8, "nonzero")})
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    tried = examples(long=200, short=20)
    for _ in range(tried):
        file = chance.choice(files)
        content = file.read_bytes()
        # What describes the arrays is small, and worth more than its share of the damage.
        head = bytearray(content[:128]) if chance.random() < 0.5 else bytearray(content)
        DAMAGES[how](head, chance)
        file.write_bytes(head + content[128:] if len(head) <= 128 < len(content) else head)
        check_refused_or_equal(folder, store)
        file.write_bytes(content)
    record_property("tried", tried)


def check_refused_or_equal(folder: Path, store: PatchStore) -> bool:
    """Return whether a store can be opened; one that can must be equal to the original."""
    try:
        read = PatchStore.open(folder)
    except InputError as error:
        assert "dvc repro" in error.remedy
        return False
    assert (read.bit_depth, read.size) == (store.bit_depth, store.size)
    for side in SPLITS:
        mine, theirs = getattr(read, side), getattr(store, side)
        assert (mine.shapes, mine.step) == (theirs.shapes, theirs.step)
        for name in ("images", "masks", "index"):
            assert getattr(mine, name).dtype == getattr(theirs, name).dtype
            assert np.array_equal(getattr(mine, name), getattr(theirs, name))
    return True


ARRAYS = ("images", "masks", "index")
ABSURD = st.sampled_from([-(2**31), -1, 0, 1, 2, 3, 63, 64, 65, 95, 96, 2**31 - 1])
DTYPES = st.sampled_from(["<i4", ">i4", "<i8", "<u4", "<u2", "|u1", "|i1", "<f4", "<f8", "|b1", "<c8", "|S4", "<M8[s]"])
NUMBERS = st.one_of(ABSURD, st.sampled_from([16, 17, 64.0, float("nan"), None, True, "64", [], {}, 2**64]))


@fault("fuzzing: the index of the patch store", long=1)
def test_index(
    store: PatchStore, small_dataset: Path, tmp_path: Path, attempt: int, record_property: Callable[[str, object], None]
) -> None:
    """Stores whose digests fit, and nothing else does."""
    settings = Patch(size=64, step=64, validation_fraction=0.25, gap=2)
    pairs = read_pairs(small_dataset / "train")
    folder = tmp_path / "patches"
    write_store(folder, pairs, settings, {"phantom": Conventions(8, "nonzero")})
    whole = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    outcomes = []

    @given(st.data())
    @fuzz(long=2000, short=100)
    def check(data: st.DataObject) -> None:
        for file, content in whole.items():
            file.write_bytes(content)
        header = json.loads(whole[folder / "store.json"])
        if data.draw(st.booleans()):
            side, name = data.draw(st.sampled_from(SPLITS)), data.draw(st.sampled_from(["index", "index", *ARRAYS]))
            np.save(folder / side / f"{name}.npy", harmed(np.load(folder / side / f"{name}.npy"), data))
        else:
            place = data.draw(st.sampled_from([header, header["stacks"][0]["shape"]]))
            key = data.draw(st.sampled_from(["bit_depth", "size", "step"] if place is header else [1, 2]))
            place[key] = data.draw(NUMBERS)
            assume(key != "bit_depth" or place[key] not in range(1, 9))  # which may be so
        sign(folder, header)
        outcomes.append(check_refused_or_equal(folder, store))

    check()
    assert set(outcomes) == {True, False}
    record_property("tried", len(outcomes))


def harmed(array: np.ndarray, data: st.DataObject) -> np.ndarray:
    """Return an array with other values, rows, type or axes."""
    row = data.draw(st.integers(0, len(array) - 1))
    match data.draw(st.sampled_from(["value", "row", "order", "type", "axes"])):
        case "value" if array.ndim == 2:
            array[row, data.draw(st.integers(0, array.shape[1] - 1))] = data.draw(ABSURD)
        case "row":
            array = data.draw(
                st.sampled_from([np.delete(array, row, 0), np.insert(array, row, array[0], 0), array[:0]])
            )
        case "order" if array.ndim == 2:
            other = data.draw(st.integers(0, len(array) - 1))
            array[[row, other]] = array[[other, row]]
        case "type":
            dtype = data.draw(DTYPES)
            assume(array.ndim == 2 or dtype != "<u2")  # which images may have
            array = array.astype(dtype)
        case "axes":
            array = data.draw(st.sampled_from([array[0], array[..., :-1], array[None], array.ravel()]))
    return array


def sign(folder: Path, header: dict) -> None:
    """Write the header of a store, with the digests of what is there, where it has any."""
    header["sha256"].pop("layout")
    for side in SPLITS:
        read = {name: np.load(folder / side / f"{name}.npy") for name in ARRAYS}
        with suppress(Exception):  # some have no digest
            header["sha256"][side] = patches._digest(
                Patches(**read, contacts=None, shapes=[], datasets=[], spacings=[], step=64)
            )
    header["sha256"]["layout"] = files.short_digest(header)
    (folder / "store.json").write_text(json.dumps(header))


def _of_format_2(folder: Path) -> None:
    header = json.loads((folder / "store.json").read_text())
    del header["sha256"]["layout"]
    (folder / "store.json").write_text(json.dumps(header | {"format": 2}))


def _cut_off(folder: Path) -> None:
    (folder / "validation" / "index.npy").unlink()
    images = folder / "train" / "images.npy"
    images.write_bytes(images.read_bytes()[:1000])


def _without_header(folder: Path) -> None:
    (folder / "store.json").unlink()


@pytest.mark.parametrize("kind", [_of_format_2, _cut_off, _without_header])
@fault("a store of an older version, or half of one", long=1)
def test_older_store(store: PatchStore, small_dataset: Path, tmp_path: Path, kind: Callable, attempt: int) -> None:
    settings = Patch(size=64, step=64, validation_fraction=0.25, gap=2)
    pairs = read_pairs(small_dataset / "train")
    folder = tmp_path / "patches"
    write_store(folder, pairs, settings, {"phantom": Conventions(8, "nonzero")})
    kind(folder)
    with pytest.raises(InputError, match=f"expected a patch store of format {FORMAT}; run `dvc repro -f patch`"):
        PatchStore.open(folder)
    # What a killed process was writing is swept by the next.
    stale = of_process(2**22 + 1, folder)
    stale.mkdir()
    again = write_store(folder, pairs, settings, {"phantom": Conventions(8, "nonzero")})
    assert not stale.exists()
    assert again.digest == store.digest


@pytest.mark.parametrize("how", DAMAGES)
@fault("a model {how}", long=1)
def test_model(
    tmp_path: Path, chance: random.Random, how: str, attempt: int, record_property: Callable[[str, object], None]
) -> None:
    file = tmp_path / "unet.keras"
    unet.save_model(unet.build_unet(depth=1, base_width=2), file)
    weights, content = unet.load_model(file).get_weights(), file.read_bytes()
    tried = examples(long=40, short=4)
    for _ in range(tried):
        damage(file, how, chance)
        try:
            loaded = unet.load_model(file).get_weights()
        except InputError:
            loaded = weights
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(loaded, weights, strict=True))
        file.write_bytes(content)
    record_property("tried", tried)


def test_a_living_process_keeps_what_it_writes(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "a") as first:
        first.write_text("first")
        other = of_process(1, tmp_path / "a")  # which lives
        other.write_text("other")
        with files.replacing(tmp_path / "b") as second:
            second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"
    with files.replacing(tmp_path / "a") as again:
        again.write_text("again")
    assert other.read_text() == "other"


def of_process(number: int, path: Path) -> Path:
    """Return where a process with that number writes what becomes `path`."""
    mine = files.temporary(path, "new")
    return mine.with_name(mine.name.replace(f"-{os.getpid()}.", f"-{number}."))


@MOUNTS
def test_a_process_of_another_machine_leaves_it_alone(tmp_path: Path) -> None:
    """Another PID namespace, in which this process has no number, is as far away."""
    target = tmp_path / "a"
    code = "import pathlib, sys, mitoflow.core.files as w; w.write_text(pathlib.Path(sys.argv[1]), 'theirs')"
    with files.replacing(target) as ours:
        ours.write_text("ours")
        subprocess.run([*UNSHARE, "--pid", "--fork", sys.executable, "-c", code, target], check=True)
        assert target.read_text() == "theirs"
    assert target.read_text() == "ours"

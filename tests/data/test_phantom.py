from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mitoflow.data.pairs import read_pairs, read_set
from mitoflow.data.phantom import PHANTOM, make_phantom, random_look, write_phantom, write_randomised
from mitoflow.data.validation import correlation

SHAPE = (24, 192, 256)
PINNED = "085b5971312f9194d72e2d4b8f67961f1d5b665227140472e8abe5fc3d69ebd7"


@pytest.fixture(scope="module")
def phantom() -> tuple[np.ndarray, np.ndarray]:
    return make_phantom(SHAPE, 3)


def test_same_bytes_on_every_machine(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = phantom
    assert hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest() == PINNED


def test_image_and_mask_are_8_bit(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = phantom
    assert image.shape == mask.shape == SHAPE
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}


def test_greys_are_those_of_em(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = phantom
    assert 120 < image.mean() < 145
    assert 25 < image.std() < 40
    assert 20 < image[mask == 0].mean() - image[mask > 0].mean() < 45
    assert ((image == 0) | (image == 255)).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_mitochondria_fill_what_they_do_in_tissue(seed: int) -> None:
    _, mask = make_phantom((24, 128, 192), seed)
    assert 0.06 < np.mean(mask > 0) < 0.12


def test_slices_continue_but_do_not_repeat(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = phantom
    neighbours = [correlation(*pair) for pair in pairwise(image)]
    assert 0.75 < min(neighbours) <= max(neighbours) < 0.95
    assert correlation(image[0], image[20]) < 0.5
    overlap = [np.sum(a & b) / max(1, np.sum(a | b)) for a, b in pairwise(mask > 0)]
    assert np.median(overlap) > 0.8


def test_threshold_does_not_find_mitochondria(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = phantom
    truth = mask > 0
    dice = [
        2 * np.sum(found & truth) / (np.sum(found) + truth.sum())
        for low in range(0, 160, 20)
        for high in range(low + 10, 180, 5)
        if (found := (image >= low) & (image <= high)).any()
    ]
    assert max(dice) < 0.6


def test_seeds_are_different_tissue() -> None:
    one, other = (make_phantom((4, 64, 64), seed)[0] for seed in (0, 1))
    assert abs(correlation(one[0], other[0])) < 0.3


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 65, 90), (9, 100, 71)])
def test_any_shape_can_be_drawn(shape: tuple[int, int, int]) -> None:
    image, mask = make_phantom(shape, 5)
    assert image.shape == mask.shape == shape


def test_data_set_is_two_pairs_that_say_what_they_are(tmp_path: Path) -> None:
    write_phantom(tmp_path, train=(5, 80, 96), test=(3, 64, 64))
    (train,), (test,) = (read_pairs(tmp_path / part) for part in ("train", "test"))
    assert (train.name, train.image.shape, train.mask.shape) == ("phantom", (5, 80, 96), (5, 80, 96))
    assert test.image.shape == (3, 64, 64)
    for pair in (train, test):
        for stack in (pair.image, pair.mask):
            assert b"ynthetic" in stack.path.read_bytes()[:400]
    assert [pair.dataset for pair in (train, test)] == ["phantom", "phantom"]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 5  # and sets.yaml


def test_looks_differ_and_are_the_same_on_every_machine() -> None:
    looks = [random_look(seed) for seed in range(40)]
    assert looks == [random_look(seed) for seed in range(40)]
    assert PHANTOM not in looks
    darker = [look.matrix < look.cytoplasm for look in looks]
    assert 0.5 < np.mean(darker) < 1
    assert len({look.thickest for look in looks}) > 8
    assert all(0 < look.outer < 255 and look.thinnest < look.thickest for look in looks)


def test_randomised_stacks_are_drawn_by_their_looks(tmp_path: Path) -> None:
    write_randomised(tmp_path, 3, (6, 96, 128))
    pairs = read_set(tmp_path, "phantoms")
    assert [pair.name for pair in pairs] == ["00", "01", "02"]
    images = [np.stack([*pair.image.slices()]) for pair in pairs]
    masks = [np.stack([*pair.mask.slices()]) > 0 for pair in pairs]
    assert all(mask.any() for mask in masks)
    contrasts = [image[mask].mean() - image[~mask].mean() for image, mask in zip(images, masks, strict=True)]
    assert np.ptp(contrasts) > 10
    again, _ = make_phantom((6, 96, 128), 1000, random_look(1000))
    assert np.array_equal(images[0], again)

"""Masks in which nobody looked at some pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from mitoflow.config.params import Patch
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.masks import MaskValues, Rule, agree_on_rule, binarise
from mitoflow.data.pairs import read_pairs
from mitoflow.data.set_descriptions import SetDescription, write_sets
from mitoflow.data.validation import check_dataset
from mitoflow.errors import InputError
from mitoflow.io.tiff import write_stack

SETTINGS = Patch(size=64, step=64, validation_fraction=0.25, gap=2)
DEPTH = 12


def partial_mask(looked_at: slice) -> np.ndarray:
    """One mitochondrion in each slice; in some slices, the left half was looked at, and in the others nothing."""
    mask = np.zeros((DEPTH, 64, 80), np.uint8)
    mask[:, 20:40, 10:20] = 255
    mask[:, :, 40:] = 128
    mask[[z for z in range(DEPTH) if z not in range(DEPTH)[looked_at]]] = 128
    return mask


def write(folder: Path, mask: np.ndarray) -> None:
    image = np.random.default_rng(0).integers(10, 200, mask.shape, np.uint8)
    for part in ("train", "test"):
        write_stack(folder / part / "lab/images/s.tif", image if part == "train" else 255 - image)
        write_stack(folder / part / "lab/masks/s.tif", mask)
    write_sets(folder, {"lab": SetDescription()})


def values_of(mask: np.ndarray, name: str = "m.tif") -> MaskValues:
    values = MaskValues(Path(name))
    for one in mask:
        values.add(one)
    return values


def test_flat_areas_of_128_in_a_mask_were_not_looked_at() -> None:
    mask = partial_mask(slice(0, 6))
    assert values_of(mask).rule == "partial"
    assert np.unique(binarise(mask, "partial")).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(binarise(mask, "partial") == 2, mask == 128)
    mask[0, 0, :3] = 7
    assert values_of(mask).rule == "nonzero", "these are labels"


@pytest.mark.parametrize(
    ("other", "named"),
    [(np.repeat(np.arange(3, dtype=np.uint8)[None], 9, 0).repeat(9, 1), "labels"), (None, "antialiased edges")],
)
def test_masks_of_two_kinds_are_named(other: np.ndarray | None, named: str) -> None:
    if other is None:
        other = np.zeros((40, 40), np.uint8)
        other[10:30, 10:30], other[9, 10:30], other[30, 10:30] = 255, 128, 64
    both = [values_of(partial_mask(slice(0, 6))), values_of(other[None], "other.tif")]
    with pytest.raises(InputError, match=rf"m.tif: found 128 for pixels that .*, but {named} in other.tif"):
        agree_on_rule(both)


#: From the background to the middle of an object and back: 16 pixels from half of 1000 on, and 18 above 0.
EDGES = np.array([0, 0, 250, 600, 900, *[1000] * 12, 900, 600, 250, 0, 0])


def soft(white: int, count: int = 3) -> np.ndarray:
    """Slices of a square with antialiased edges, up to that value."""
    slopes = np.rint(EDGES * (white / 1000)).astype(np.uint16)
    return np.pad(np.minimum.outer(slopes, slopes)[None].repeat(count, 0), ((0, 0), (8, 8), (8, 8)))


@pytest.mark.parametrize("white", [100, 127, 250, 4095, 32767])
def test_antialiased_edges_may_end_at_any_value(white: int) -> None:
    values = values_of(soft(white))
    assert (values.rule, values.white) == ("half", white)
    assert [binarise(mask, "half", values.white).sum() for mask in soft(white)] == [16 * 16] * 3
    tip = (soft(white)[0] * 0.4).astype(np.uint16)  # the end of an object: no pixel reaches half
    assert binarise(tip, "half", values.white).sum() == 0


@pytest.mark.parametrize("white", [255, 65535])
def test_antialiased_edges_that_end_at_full_range_are_known_by_that(white: int) -> None:
    values = values_of(soft(white))
    assert (values.rule, values.white) == ("half", None)
    assert binarise(soft(white)[0], "half").sum() == 16 * 16


def test_one_slice_does_not_say_where_edges_end() -> None:
    """A slice with the end of a large object, before one with a small object of 255."""
    end, rest = (soft(255, 1) * 0.8).astype(np.uint8), np.zeros((1, 38, 38), np.uint8)
    rest[0, 10:13, 10:13] = 255
    assert values_of(end).white == 204
    assert values_of(np.concatenate([end, rest])).white is None


def labels_of_4095() -> np.ndarray:
    """Squares of 4 x 4 pixels, two pixels apart, as many as fit; the last is 4095."""
    labels = np.zeros((1, 400, 400), np.uint16)
    places = [(y, x) for y in range(1, 394, 6) for x in range(1, 394, 6)]
    for number, (y, x) in enumerate(places[:4095], start=1):
        labels[0, y : y + 4, x : x + 4] = number
    return labels


def thin_labels() -> np.ndarray:
    """Six labels of 2 x 2 pixels, and a large one of the highest number."""
    labels = np.zeros((1, 64, 64), np.uint16)
    labels[0, 5:30, 5:30] = 7
    for number in range(1, 7):
        labels[0, 40:42, 6 * number : 6 * number + 2] = number
    return labels


def touching_labels() -> np.ndarray:
    """Columns of 3 pixels: each touches one of a lower and one of a higher number."""
    return np.pad(np.arange(1, 20, dtype=np.uint16).repeat(3)[None, None].repeat(40, 1), ((0, 0), (40, 40), (40, 40)))


def outlined() -> np.ndarray:
    """An object of 2 with an outline of 1."""
    return np.pad(np.full((1, 20, 20), 1, np.uint16), ((0, 0), (20, 20), (20, 20))) + np.pad(
        np.full((1, 18, 18), 1, np.uint16), ((0, 0), (21, 21), (21, 21))
    )


@pytest.mark.parametrize("make", [labels_of_4095, thin_labels, touching_labels, outlined])
def test_labels_end_at_no_antialiased_edge(make: Callable[[], np.ndarray]) -> None:
    assert values_of(make()).white is None


def test_a_grey_image_ends_at_no_antialiased_edge() -> None:
    """Not even one with a tenth of it black, and a tenth white."""
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(3, 128, 128)), (0, 3, 3))
    low, high = np.quantile(image, (0.1, 0.9))
    stretched = (np.clip((image - low) / (high - low), 0, 1) * 4095).astype(np.uint16)
    assert values_of(stretched).white is None


def test_edges_that_end_elsewhere_are_no_masks_to_learn_from(tmp_path: Path) -> None:
    """Slices are read one by one, and the end of an object does not show where its edges end."""
    write(tmp_path, np.pad(soft(4095, DEPTH), ((0, 0), (13, 13), (21, 21))))
    errors = [str(error) for error in check_dataset(tmp_path, 0.995).errors if "antialiased" in str(error)]
    expected = "expected masks from 0 to 255, or to 65535 in 16 bits; scale its values to that"
    assert [error.partition("masks/")[2] for error in errors] == [
        f"s.tif: found antialiased edges that end at 4095, {expected}"
    ] * 2


def test_the_share_of_mitochondria_is_that_of_what_was_looked_at(tmp_path: Path) -> None:
    write(tmp_path, partial_mask(slice(0, 12, 3)))
    findings = check_dataset(tmp_path, 0.995)
    assert not findings.errors, [*map(str, findings.errors)]
    assert findings.conventions["lab"].mask_rule == "partial"
    assert findings.facts["train"]["foreground"] == pytest.approx(200 / (64 * 40))
    assert findings.facts["train"]["stacks"][0]["labelled"] == 4 * 64 * 40


def test_masks_without_any_label_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, partial_mask(slice(0, 0)))
    write_sets(tmp_path, {"lab": SetDescription(mask_rule="partial")})
    errors = [*map(str, check_dataset(tmp_path, 0.995).errors)]
    assert len(errors) == 2
    assert all("found no pixel that was looked at, expected other values than 128" in error for error in errors)


def test_the_store_keeps_what_was_not_looked_at_and_counts_none_of_it(tmp_path: Path) -> None:
    mask = partial_mask(slice(0, 12, 3))
    write(tmp_path, mask)
    pairs = read_pairs(tmp_path / "train")
    stores = {}
    for rule in ("partial", "nonzero"):
        stores[rule] = write_store(tmp_path / rule, pairs, SETTINGS, {"lab": Conventions(8, rule)})
    train = stores["partial"].train
    assert train.is_partial
    assert not stores["nonzero"].train.is_partial
    np.testing.assert_array_equal(train.mask(0, 0), binarise(mask[0], "partial"))
    assert train.foreground().sum() == 3 * 200  # of the slices 0, 3 and 6 of 0 to 6


@pytest.mark.parametrize(
    ("looked_at", "found"),
    [
        (slice(0, 6), "no mitochondria in the slices that validate"),
        (slice(9, 12), "no pixel that was looked at in the slices for train"),
    ],
)
def test_both_sides_of_the_split_need_labels(tmp_path: Path, looked_at: slice, found: str) -> None:
    write(tmp_path, partial_mask(looked_at))
    rule: Rule = "partial"
    with pytest.raises(InputError, match=f"found {found}"):
        write_store(tmp_path / "patches", read_pairs(tmp_path / "train"), SETTINGS, {"lab": Conventions(8, rule)})
    assert not (tmp_path / "patches").exists()

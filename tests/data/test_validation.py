from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from mitoflow.data.validation import Finding, Findings, check_dataset, correlation
from mitoflow.errors import InputError
from mitoflow.io.tiff import write_stack

LIMIT = 0.995


def pictures(seed: int, depth: int = 4, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(10, 200, (depth, 64, 72)).astype(dtype)


def marks(depth: int = 4) -> np.ndarray:
    mask = np.zeros((depth, 64, 72), np.uint8)
    mask[:, 16:32, 18:36] = 255
    return mask


def write(data: Path, part: str, name: str, image: np.ndarray, mask: np.ndarray | None = None) -> None:
    write_stack(data / part / "lab" / "images" / f"{name}.tif", image)
    write_stack(data / part / "lab" / "masks" / f"{name}.tif", marks(len(image)) if mask is None else mask)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path, "train", "a", pictures(0))
    write(tmp_path, "train", "b", pictures(1, 6))
    write(tmp_path, "test", "c", pictures(2))
    return tmp_path


def check(data: Path, rule: str = "auto") -> Findings:
    return check_dataset(data, rule, LIMIT)  # type: ignore[arg-type]


def only(findings: list[Finding]) -> str:
    assert len(findings) == 1, [*map(str, findings)]
    return str(findings[0])


def test_orthogonal_planes_need_voxels_like_cubes(data: Path) -> None:
    path = data / "test" / "lab" / "images" / "c.tif"
    for z, errors in ((7.0, 0), (40.0, 1)):
        metadata = {"axes": "ZYX", "spacing": z, "unit": "nm"}
        tifffile.imwrite(path, pictures(2), imagej=True, resolution=(1 / 5, 1 / 5), metadata=metadata)
        found = check_dataset(data, "auto", LIMIT, orthoplanes=True).errors
        assert len(found) == errors
        assert check_dataset(data, "auto", LIMIT).errors == []
    assert "c.tif: found voxels of 40 x 5 x 5 nm (z, y, x)" in only(found)


def test_sound_data_gives_facts_only(data: Path) -> None:
    findings = check(data)
    assert (findings.errors, findings.warnings) == ([], [])
    assert (findings.mask_rule, findings.bit_depth) == ("nonzero", 8)
    train = findings.facts["train"]
    assert (train["slices"], train["foreground"]) == (10, 16 * 18 / (64 * 72))
    assert [stack["name"] for stack in train["stacks"]] == ["a", "b"]
    stack = train["stacks"][1]
    image = pictures(1, 6)
    assert stack["shape"] == [6, 64, 72]
    assert (stack["dtype"], stack["mask_dtype"], stack["mask_values"]) == ("uint8", "uint8", [0, 255])
    assert (stack["minimum"], stack["maximum"], stack["mean"]) == (image.min(), image.max(), image.mean())
    assert stack["median_correlation"] == pytest.approx(0, abs=0.05)


def test_findings_are_json_and_repeatable(data: Path) -> None:
    write(data, "test", "d", pictures(0), np.zeros((4, 64, 72), np.uint8))
    once, again = (json.dumps(check(data).as_dict()) for _ in range(2))
    assert once == again
    assert json.loads(once)["errors"][0]["where"].endswith("test/lab/images")


def test_phantom_is_sound(small_dataset: Path) -> None:
    findings = check(small_dataset)
    assert (findings.errors, findings.warnings) == ([], [])


def test_all_errors_of_reading_are_reported(data: Path) -> None:
    (data / "train/lab/masks/a.tif").unlink()
    (data / "test/lab/images/c.tif").write_bytes((data / "test/lab/images/c.tif").read_bytes()[:5000])
    first, second = check(data).errors
    assert "an image without mask" in first.found
    assert "truncated" in second.found


def test_missing_part_is_an_error(data: Path) -> None:
    for kind in ("images", "masks"):
        (data / "test" / "lab" / kind / "c.tif").unlink()
    assert "an empty folder" in only(check(data).errors)


def test_constant_slices_are_a_warning(data: Path) -> None:
    image = pictures(3)
    image[1:3] = 0
    write(data, "train", "d", image)
    findings = check(data)
    assert "one value in every pixel of slice 1 of d.tif, slice 2 of d.tif" in only(findings.warnings)
    assert findings.facts["train"]["stacks"][2]["constant_slices"] == [1, 2]


def test_nothing_but_constant_slices_is_an_error(data: Path) -> None:
    write(data, "test", "c", np.full((4, 64, 72), 9, np.uint8))
    assert "one value in every pixel" in only(check(data).errors)


def test_slice_of_train_in_test_is_an_error_that_names_both(data: Path) -> None:
    image = pictures(3)
    image[2] = pictures(1, 6)[5]
    write(data, "test", "c", image)
    line = only(check(data).errors)
    assert "1 test slices that are also in train: slice 2 of c.tif is slice 5 of b.tif of train," in line


def test_shared_padding_is_no_leak(data: Path) -> None:
    for part, name, seed in (("train", "a", 0), ("test", "c", 2)):
        image = pictures(seed)
        image[0] = 0
        write(data, part, name, image)
    assert check(data).errors == []


def test_near_duplicates_are_a_warning_with_count_and_examples(data: Path) -> None:
    image = pictures(3, 7).astype(int)
    image[1:] = image[0] + np.arange(1, 7)[:, None, None] % 3
    write(data, "train", "a", image.astype(np.uint8))
    findings = check(data)
    line = only(findings.warnings)
    assert "slice 1 of a.tif, slice 2 of a.tif, slice 3 of a.tif, ... (6 in all)" in line
    assert findings.facts["train"]["stacks"][0]["near_duplicates"] == [1, 2, 3, 4, 5, 6]


def test_single_pages_are_neighbours_across_files(data: Path) -> None:
    for k, image in enumerate((pictures(3)[0], pictures(4)[0], pictures(4)[0])):
        write(data, "train", f"s{k + 9}", image, marks(1)[0])
    assert "near-duplicates of the slice before them: s11.tif," in only(check(data).warnings)


def test_labels_are_read_and_reported(data: Path) -> None:
    mask = marks().astype(np.uint16)
    mask[:, 40:50, 40:50] = 300
    write(data, "train", "a", pictures(0), mask)
    findings = check(data)
    assert "more than two values in a.tif, expected masks that mean mitochondrion above 0" in only(findings.warnings)
    assert findings.facts["train"]["stacks"][0]["mask_values"] == "many"
    assert findings.facts["train"]["stacks"][0]["foreground"] == (16 * 18 + 100) / (64 * 72)


def antialiased() -> np.ndarray:
    mask = marks()
    mask[:, 15, 18:36] = 100
    mask[:, 32, 18:36] = 160
    return mask


def test_antialiased_masks_are_cut_at_half_range(data: Path) -> None:
    write(data, "test", "c", pictures(2), antialiased())
    findings = check(data)
    assert findings.mask_rule == "half"
    assert "from half range on" in only(findings.warnings)
    assert findings.facts["test"]["foreground"] == 17 * 18 / (64 * 72)


def test_given_rule_is_taken(data: Path) -> None:
    write(data, "test", "c", pictures(2), antialiased())
    findings = check(data, "nonzero")
    assert findings.mask_rule == "nonzero"
    assert findings.facts["test"]["foreground"] == 18 * 18 / (64 * 72)


def test_masks_of_two_kinds_are_an_error(data: Path) -> None:
    write(data, "test", "c", pictures(2), antialiased())
    labels = marks()
    labels[:, 40:50, 40:50] = 3
    write(data, "train", "b", pictures(1), labels)
    findings = check(data)
    assert "antialiased edges, but labels in" in only(findings.errors)
    assert findings.mask_rule is None


@pytest.mark.parametrize("part", ["train", "test"])
def test_part_without_mitochondria_is_an_error(data: Path, part: str) -> None:
    for path in (data / part / "lab" / "masks").iterdir():
        write_stack(path, 0 * marks(6 if path.stem == "b" else 4))
    line = only(check(data).errors)
    assert "no mitochondrion" in line
    assert f"{part}/lab/masks" in line


def test_stack_without_mitochondria_is_a_warning(data: Path) -> None:
    write(data, "train", "a", pictures(0), 0 * marks())
    findings = check(data)
    assert "no mitochondrion in a.tif" in only(findings.warnings)
    assert findings.facts["train"]["stacks"][0]["slices_without_foreground"] == [0, 1, 2, 3]


def test_mask_without_background_is_an_error(data: Path) -> None:
    write(data, "train", "a", pictures(0), marks() | 1)
    assert "no background in a.tif" in only(check(data).errors)


@pytest.mark.parametrize("brighter", ["train", "test"])
def test_bit_depth_is_that_of_the_training_images(data: Path, brighter: str) -> None:
    for part, name, seed in (("train", "a", 0), ("train", "b", 1), ("test", "c", 2)):
        write(data, part, name, pictures(seed, dtype=np.uint16) * (20 if part == brighter else 1))
    findings = check(data)
    if brighter == "train":
        assert (findings.errors, findings.bit_depth) == ([], 12)
    else:
        assert "at most 10 bits, as in the training images" in only(findings.errors)


def test_mixed_bit_depths_are_an_error(data: Path) -> None:
    write(data, "test", "c", pictures(2, dtype=np.uint16))
    assert "uint16 pixels, but uint8 in" in only(check(data).errors)


def test_memory_is_a_few_slices(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        image = rng.integers(0, 200, (60, 256, 256), np.uint8)
        write(tmp_path, part, "a", image, image > 150)
    tracemalloc.start()
    check(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 * 256 * 256


@given(st.integers(0, 2**32), st.sampled_from([np.uint8, np.uint16]))
def test_correlation_is_pearsons(seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    one = rng.integers(0, np.iinfo(dtype).max, (9, 7), dtype, endpoint=True)
    other = (one // 2 + rng.integers(0, 99, (9, 7), dtype)).astype(dtype)
    assert correlation(one, other) == pytest.approx(np.corrcoef(one.ravel(), other.ravel())[0, 1])
    assert correlation(one, one) == 1
    assert correlation(one, np.zeros_like(one)) is None
    assert correlation(one, one[:5]) is None


def test_finding_reads_as_the_error_it_becomes() -> None:
    assert str(Finding("w", "f", "e", "r")) == str(InputError("w", "f", "e", "r"))

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from mitoflow.config.params import MaskRule
from mitoflow.data.conventions import Conventions, read_conventions, write_conventions
from mitoflow.data.set_descriptions import SetDescription, write_sets
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


def write(
    data: Path, part: str, name: str, image: np.ndarray, mask: np.ndarray | None = None, dataset: str = "lab"
) -> None:
    write_stack(data / part / dataset / "images" / f"{name}.tif", image)
    write_stack(data / part / dataset / "masks" / f"{name}.tif", marks(len(image)) if mask is None else mask)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path, "train", "a", pictures(0))
    write(tmp_path, "train", "b", pictures(1, 6))
    write(tmp_path, "test", "c", pictures(2))
    write_sets(tmp_path, {"lab": SetDescription()})
    return tmp_path


def check(data: Path, rule: str = "auto") -> Findings:
    write_sets(data, {"lab": SetDescription(mask_rule=rule)})  # type: ignore[arg-type]
    return check_dataset(data, LIMIT)


def only(findings: list[Finding]) -> str:
    assert len(findings) == 1, [*map(str, findings)]
    return str(findings[0])


def test_orthogonal_planes_need_voxels_like_cubes(data: Path) -> None:
    path = data / "test" / "lab" / "images" / "c.tif"
    for z, errors in ((7.0, 0), (40.0, 1)):
        metadata = {"axes": "ZYX", "spacing": z, "unit": "nm"}
        tifffile.imwrite(path, pictures(2), imagej=True, resolution=(1 / 5, 1 / 5), metadata=metadata)
        found = check_dataset(data, LIMIT, orthoplanes=True).errors
        assert len(found) == errors
        assert check_dataset(data, LIMIT).errors == []
    assert "train/lab: found voxels of 40 x 5 x 5 nm (z, y, x)" in only(found)


def test_doubts_about_a_voxel_size_are_warnings(data: Path) -> None:
    """Once for a set, where its description does not state the size."""
    metadata = {"axes": "ZYX", "spacing": 30, "unit": "nm", "zunit": "furlong"}
    for part, name in (("train", "a"), ("test", "c")):
        image = data / part / f"lab/images/{name}.tif"
        tifffile.imwrite(image, tifffile.imread(image), imagej=True, resolution=(1 / 4, 1 / 4), metadata=metadata)
    said = only(check(data).warnings)
    assert "train/lab/images/a.tif: found a voxel size in 'furlong', expected a unit of length" in said
    write_sets(data, {"lab": SetDescription(voxel_size={"z": 40.0})})
    findings = check_dataset(data, LIMIT)
    assert findings.warnings == []
    assert findings.conventions["lab"].spacing == pytest.approx({"z": 40, "y": 4, "x": 4})


def test_sound_data_gives_facts_only(data: Path) -> None:
    findings = check(data)
    assert (findings.errors, findings.warnings) == ([], [])
    assert findings.conventions == {"lab": Conventions(8, "nonzero", {})}
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
    findings = check_dataset(small_dataset, LIMIT)
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
    expected = "masks in which every value above 0 is mitochondrion"
    assert f"more than two values in a.tif, expected {expected}" in only(findings.warnings)
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
    assert findings.conventions["lab"].mask_rule == "half"
    assert "from half range on" in only(findings.warnings)
    assert findings.facts["test"]["foreground"] == 17 * 18 / (64 * 72)


def test_each_set_has_its_own_conventions_and_may_lack_a_test_part(data: Path) -> None:
    write(data, "train", "x", pictures(7, dtype=np.uint16) * 20, antialiased(), dataset="s10")
    write(data, "train", "y", pictures(8)[:1], marks(1), dataset="s2")
    size = {"z": 40.0, "y": 4.0, "x": 4.0}
    sets = {"lab": SetDescription(), "s10": SetDescription(voxel_size=size), "s2": SetDescription(unrelated=True)}
    write_sets(data, sets)
    findings = check_dataset(data, LIMIT)
    assert findings.errors == []
    assert findings.conventions == {
        "lab": Conventions(8, "nonzero"),
        "s10": Conventions(12, "half", size),
        "s2": Conventions(8, "nonzero", unrelated=True),
    }
    assert [*findings.facts["train"]["sets"]] == ["lab", "s2", "s10"]
    assert findings.facts["train"]["sets"]["s10"] == {"files": 1, "slices": 4, "foreground": 17 * 18 / (64 * 72)}
    assert [*findings.facts["test"]["sets"]] == ["lab"]
    unstretched = check_dataset(data, LIMIT, normalization="range")
    assert "patch.normalization: found range, and 8 bits in s2 and 12 bits in s10" in only(unstretched.errors)
    write_conventions(data / "conventions.yaml", findings.conventions)
    assert read_conventions(data / "conventions.yaml") == findings.conventions


def test_a_training_slice_of_one_set_in_the_test_part_of_another_is_an_error(data: Path) -> None:
    write(data, "train", "x", pictures(2), dataset="other")
    write_sets(data, {"lab": SetDescription(), "other": SetDescription()})
    assert "4 test slices that are also in train: slice 0 of c.tif is slice 0 of x" in only(
        check_dataset(data, LIMIT).errors
    )


def test_folders_and_entries_of_sets_belong_together(data: Path) -> None:
    write(data, "test", "x", pictures(7), dataset="other")
    first = only(check(data).errors)
    assert "sets.yaml: found no entry for the set other" in first
    write_sets(data, {"lab": SetDescription(), "other": SetDescription()})
    assert "train/other: found no such folder" in only(check_dataset(data, LIMIT).errors)


def test_stacks_of_unrelated_slices_are_an_error(data: Path) -> None:
    write_sets(data, {"lab": SetDescription(unrelated=True)})
    errors = check_dataset(data, LIMIT).errors
    assert [error.found for error in errors] == ["4 slices", "6 slices", "4 slices"]
    assert "files of one slice each" in errors[0].expected


def test_what_is_wrong_in_the_descriptions_names_the_key(data: Path) -> None:
    for text, said in {
        "lab: {voxel_size: {t: 5}}": "sets.yaml: lab: voxel_size: found .*an axis t",
        "lab: {voxel_size: {z: 0}}": "sets.yaml: lab: voxel_size.z: found 0",
        "lab: {tisue: liver}": "sets.yaml: lab: tisue: found an unknown key, .*did you mean tissue",
        "lab: 5": "sets.yaml: lab",
    }.items():
        (data / "sets.yaml").write_text(text)
        assert re.search(said, only(check_dataset(data, LIMIT).errors)), text
    (data / "sets.yaml").unlink()
    assert "sets.yaml: found no such file" in only(check_dataset(data, LIMIT).errors)


def test_given_rule_is_taken(data: Path) -> None:
    write(data, "test", "c", pictures(2), antialiased())
    findings = check(data, "nonzero")
    assert findings.conventions["lab"].mask_rule == "nonzero"
    assert findings.facts["test"]["foreground"] == 18 * 18 / (64 * 72)


def test_masks_of_two_kinds_are_an_error(data: Path) -> None:
    write(data, "test", "c", pictures(2), antialiased())
    labels = marks()
    labels[:, 40:50, 40:50] = 3
    write(data, "train", "b", pictures(1), labels)
    findings = check(data)
    assert "antialiased edges, but labels in" in only(findings.errors)
    assert findings.conventions == {}


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


def test_masks_that_were_saved_in_two_ways_read_alike(data: Path) -> None:
    write(data, "train", "a", pictures(0), marks() // 255)
    findings = check(data)
    assert findings.errors == []
    assert "train/lab/masks: found 1 in a.tif and 255 in b.tif, expected one value" in only(findings.warnings)
    share = 16 * 18 / (64 * 72)
    assert [stack["foreground"] for stack in findings.facts["train"]["stacks"]] == pytest.approx([share, share])


def test_an_inverted_mask_is_a_warning(data: Path) -> None:
    """The report shows it: 0 is on the mitochondria."""
    write(data, "train", "a", pictures(0), 255 - marks())
    findings = check(data)
    assert findings.errors == []
    said = only(findings.warnings)
    assert "train/lab/masks: found more than half of the pixels mitochondrion in a.tif, expected less" in said
    assert said.endswith("look at the masks; if they are black on mitochondria, invert them")


def test_antialiased_masks_of_16_bits_are_cut_at_half_range(data: Path) -> None:
    soft = np.stack([ndimage.gaussian_filter(each * 257.0, 1) for each in marks()]).astype(np.uint16)
    write(data, "train", "a", pictures(0), soft)
    findings = check(data)
    assert findings.conventions["lab"].mask_rule == "half"
    assert findings.facts["train"]["stacks"][0]["foreground"] == pytest.approx(16 * 18 / (64 * 72), rel=0.03)


def test_mask_without_background_is_an_error(data: Path) -> None:
    write(data, "train", "a", pictures(0), marks() | 1)
    assert "no background in a.tif" in only(check(data).errors)


@pytest.mark.parametrize("brighter", ["train", "test"])
def test_bit_depth_is_that_of_the_training_images(data: Path, brighter: str) -> None:
    for part, name, seed in (("train", "a", 0), ("train", "b", 1), ("test", "c", 2)):
        write(data, part, name, pictures(seed, dtype=np.uint16) * (20 if part == brighter else 1))
    assert check(data).errors == []  # stretched slices may be as bright as they like
    findings = check_dataset(data, LIMIT, normalization="range")
    if brighter == "train":
        assert (findings.errors, findings.conventions["lab"].bit_depth) == ([], 12)
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


def test_a_mask_of_1_and_2_names_the_likely_cause(data: Path) -> None:
    write(data, "train", "a", pictures(0), 1 + (marks() > 0).astype(np.uint8))
    (error,) = map(str, check(data).errors)
    assert "found no background in a.tif" in error
    assert error.endswith("where 1 is background, as ilastik exports it, subtract 1 from all values")


@pytest.mark.parametrize(
    ("values", "rule", "found"),
    [
        ([0, 255], "auto", "one value for all mitochondria in every mask"),
        ([0, 128, 255], "auto", "128 for pixels that nobody looked at, by the mask rule partial"),
        ([0, 90, 255], "half", "antialiased edges, by the mask rule half"),
        ([0, 1, 2], "auto", ""),
    ],
)
def test_masks_that_number_mitochondria_hold_numbers(
    tmp_path: Path, values: list[int], rule: MaskRule, found: str
) -> None:
    mask = np.zeros((4, 64, 72), np.uint8)
    for place, value in enumerate(values):
        mask[:, 10 * place : 10 * place + 8, 10:40] = value
    write(tmp_path, "train", "a", pictures(0), mask)
    write_sets(tmp_path, {"lab": SetDescription(mask_rule=rule, instances=True)})
    findings = check_dataset(tmp_path, LIMIT)
    if not found:
        assert findings.errors == []
        assert "more than two values" not in " ".join(map(str, findings.warnings))
        assert findings.conventions["lab"].instances
    else:
        expected = f"train/lab/masks: found {found}, expected a number for each mitochondrion, as instances: true"
        assert expected in only(findings.errors)

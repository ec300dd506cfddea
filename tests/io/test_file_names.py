from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from mitoflow.errors import InputError
from mitoflow.io.file_names import describe, natural_order, refuse_copies


@pytest.mark.parametrize(
    "names",
    [
        ["s1", "s2", "s10"],
        ["a9", "a10b2", "a10b10"],
        ["z=-1um", "z=-0.5um", "z=0.25um", "z=0.5um", "z=1.0um"],
        ["a_-0.5nm", "a_0.25nm", "a_0.5nm"],
        ["z=0,05um", "z=0,2um", "z=1,0um"],
        ["z=-1e-2", "z=1e-2", "z=2e-2", "z=1E-1", "z=5"],
        ["a_9e-3um", "a_0.01um", "a_1.5e+1um"],
        ["s_-2", "s_-1", "s_0", "s_1"],
        ["-1", "0", "1"],
        ["-2", "-1", "+1", "+2"],
        ["z_-2", "z_-1", "z_0", "z_+1"],
        ["s-1", "s-2", "s-10"],  # a hyphen, and no sign
        ["img_1.2", "img_1.9", "img_1.10"],  # two numbers, and no decimal
    ],
)
def test_slices_come_in_the_order_of_their_numbers(names: list[str]) -> None:
    shuffled = random.Random(0).sample(names, len(names))
    assert sorted(shuffled, key=natural_order) == names
    assert sorted([f"d/{name}.tif" for name in shuffled], key=natural_order) == [f"d/{name}.tif" for name in names]


def folder(*names: str) -> list[Path]:
    return [Path("d") / f"{name}.tif" for name in names]


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        (["s1", "s2", "s4", "s5"], "warning: d: slices are missing between s2.tif and s4.tif"),
        (["s1", "s3", "s4"], "warning: d: slices are missing between s1.tif and s3.tif"),
        (["z=0.25um", "z=0.5um", "z=1.0um", "z=1.25um"], "slices are missing between z=0.5um.tif and z=1.0um.tif"),
        (["s1", "s3", "s5"], ""),
        (
            ["s1_z1", "s1_z2", "s2_z1"],
            "names that differ in 2 numbers, such as s1_z1.tif and s2_z1.tif, become one stack",
        ),
        (["run1_s1", "run1_s2", "run2_s3", "run2_s4"], ""),
        (["2024-01-30_s1", "2024-01-31_s2", "2024-02-01_s3", "2024-02-02_s4"], ""),
        (["s1", "s001", "s2", "s3"], "warning: d: the same numbers in s1.tif and s001.tif"),
        (["a1", "a2", "b1"], "warning: d: names of 2 kinds, such as a1.tif, b1.tif, become one stack"),
    ],
)
def test_what_is_missing_or_unlike_among_slices_is_told(names: list[str], warning: str) -> None:
    note, *warnings = describe(folder(*names))
    assert note == f"note: d: {len(names)} slices, {names[0]}.tif to {names[-1]}.tif"
    assert len(warnings) == bool(warning)
    assert warning in " ".join(warnings)


@pytest.mark.parametrize(
    ("names", "first", "other"),
    [
        (["z0", "z1", "z-1"], "z-1", "z0"),
        (["z+1", "z+2", "z-1", "z-2"], "z-1", "z+1"),
        (["a1_z-1.5um", "a1_z1.5um"], "a1_z1.5um", "a1_z-1.5um"),
    ],
)
def test_what_may_be_a_sign_or_a_hyphen_is_refused(names: list[str], first: str, other: str) -> None:
    with pytest.raises(
        InputError, match=re.escape(f"d/{first}.tif: found a sign or a hyphen before a number, and {other}.tif")
    ):
        describe(folder(*names))


@pytest.mark.parametrize(
    ("names", "glob"),
    [
        (["s0_ch0", "s0_ch1", "s1_ch0", "s1_ch1"], "s*_ch0.tif"),
        ([f"det{d}_z{z:03d}" for d in (1, 2) for z in range(5)], "det1_z*.tif"),
        ([f"s{z}_r{r}_c{c}" for z in range(3) for r in range(2) for c in range(2)], "s*_r0_c0.tif"),
    ],
)
def test_channels_and_tiles_are_not_one_stack(names: list[str], glob: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"name one by a glob, such as '{glob}'")):
        describe(folder(*names))


def test_hyphens_before_all_numbers_are_no_signs() -> None:
    assert len(describe(folder("s-1", "s-2", "s-3"))) == 1
    assert len(describe(folder("2024-01-s1", "2024-01-s2"))) == 1


def test_of_many_gaps_a_few_are_named_and_all_are_counted() -> None:
    names = [f"s{z}" for z in range(60) if z % 10]
    assert describe(folder(*names))[1].endswith("; s29.tif and s31.tif (5 in all)")


@pytest.mark.parametrize(
    "copy",
    [
        *("s2 - Copy.tif", "s2 - Copy (2).tif", "s2 (1).tif", "s2_copy.tif", "s2 copy 3.tif", "s2.tiff"),
        *("s2 - Kopie.tif", "s2 - Kopie (2).tif", "s2 Kopie 2.tif", "s2 - copie.tif", "s2 - C\u00f3pia.tif"),
        *("s2 (Kopie).tif", "Copy of s2.tif", "Copy (2) of s2.tif", "Kopie von s2.tif", "Copia de s2.tif"),
    ],
)
def test_a_copy_is_no_slice(copy: str) -> None:
    paths = [*folder("s1", "s2", "s3"), Path("d") / copy]
    with pytest.raises(InputError, match=r"found (what looks like a copy|the name) of s2\.tif"):
        refuse_copies(paths)


@pytest.mark.parametrize("names", [["s (1)", "s (2)"], ["s1", "s10", "s1_2"], ["copy", "s1"]])
def test_numbers_in_brackets_are_no_copies_by_themselves(names: list[str]) -> None:
    refuse_copies(folder(*names))

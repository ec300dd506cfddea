"""The page that goes from a first mask to a better model, with the commands that it shows."""

from __future__ import annotations

import re
import textwrap

import numpy as np
import pytest
import tifffile

from tests.e2e.conftest import QUICK, REPOSITORY, Project, dice

pytestmark = pytest.mark.e2e


def sections() -> dict[str, str]:
    """Return the commands of each section of the page, as a script, by its title."""
    page = (REPOSITORY / "docs/learning-loop.md").read_text(encoding="utf-8")
    titles = re.split(r"^#+ (.*)$", page, flags=re.MULTILINE)[1:]
    scripts = {}
    for title, text in zip(titles[::2], titles[1::2], strict=True):
        blocks = re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)
        scripts[title] = "\n".join(map(textwrap.dedent, blocks))
    return scripts


@pytest.mark.timeout(2400)  # a training of the network that ships, if a short one
def test_the_commands_of_the_page(fresh: Project) -> None:
    printed = {}
    for title, script in sections().items():
        if title == "Learn":  # the same commands, with a shorter training
            imported, trained = script.split("dvc repro")
            fresh.run("bash", "-euc", imported)
            fresh.set(**QUICK)
            script = f"dvc repro{trained}"
        printed[title] = fresh.run("bash", "-euc", script).stdout
    assert [*printed] == [
        "Correct, learn, compare",
        "Predict",
        "Correct a few slices",
        "Learn",
        "Compare",
        "Add the next stack",
        "Where to label next",
    ]
    corrected, drawn = (tifffile.imread(fresh.folder / f"{name}.tif") for name in ("corrected", "drawn"))
    mask = tifffile.imread(fresh.folder / "mask.tif")
    looked_at = corrected != 128
    assert looked_at.mean() == pytest.approx(3 / 24)
    expected = dice(drawn[looked_at] > 0, mask[looked_at] > 0)
    assert re.search(rf"^dice +{expected:.4f}$", printed["Correct a few slices"], re.MULTILINE)

    compared = printed["Compare"]
    assert re.search(r"^test +pretrained:general +mitoflow version 1 +difference, paired$", compared, re.MULTILINE)
    assert re.search(r"^dice +[01]\.\d{4} \[.*\] +[01]\.\d{4} \[.*\] +[+-]\d\.\d{4} \[", compared, re.MULTILINE)
    assert "evaluated now on data/test: pretrained:general" in compared

    assert re.search(r"^first +train .* masks partial ", printed["Add the next stack"], re.MULTILINE)
    assert re.search(r"^second +train .* masks nonzero ", printed["Add the next stack"], re.MULTILINE)
    second = tifffile.imread(fresh.folder / "data/test/second/masks/second.tif")
    np.testing.assert_array_equal(second > 0, tifffile.imread(fresh.folder / "second_drawn.tif")[-len(second) :] > 0)

    suggested = printed["Where to label next"]
    named = re.findall(r"^\d +(\d+) +(\d+):\d+ +(\d+):\d+ .*(third_z\d+_y\d+_x\d+\.tif)$", suggested, re.MULTILINE)
    assert len(named) == 4
    assert re.search(r"^third +train +3 .* 256 x 256 ", suggested, re.MULTILINE)
    assert re.search(r"^third +test +1 .* 256 x 256 ", suggested, re.MULTILINE)
    third = tifffile.imread(fresh.folder / "third_drawn.tif")
    for z, y, x, name in named:
        (added,) = (fresh.folder / "data").glob(f"*/third/masks/{name}")
        corner = np.s_[int(z), int(y) : int(y) + 256, int(x) : int(x) + 256]
        np.testing.assert_array_equal(tifffile.imread(added) > 0, third[corner] > 0)

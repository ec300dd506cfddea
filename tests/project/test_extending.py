"""The examples of docs/extending.md run, in their order, and do what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import ENVIRONMENT

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
PARTS = {"A loss", "A block, or a network", "A score", "An augmentation", "A callback", "A dataset"}

# What the page promises of each part, after its examples.
CHECKS = """
from mitoflow.errors import InputError

assert "focal" in LOSSES and "residual_unet" in NETWORKS and "two-parts" in DATASETS
assert residual_unet(2, 4, 3).count_params() > build_unet(2, 4, 3).count_params()
assert SCORES["specificity"](np.array([80, 10, 10, 90])) == 0.9
assert len(notes.dice) == 2
levels = posterise(np.linspace(0, 1, 10_000).reshape(100, 100, 1), 1.0, np.random.default_rng(0))
assert 8 < len(np.unique(levels)) <= 64
try:
    fit(store, recipe.replace(loss="unheard"))
except InputError as error:
    assert "expected one of bce, bce_dice, focal" in str(error), error
else:
    raise AssertionError("an unknown loss was accepted")
"""


def test_the_page_has_an_example_of_every_part() -> None:
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert {section.splitlines()[0] for section in sections if "```python" in section} == PARTS


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    program = "\n".join(blocks) + CHECKS
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

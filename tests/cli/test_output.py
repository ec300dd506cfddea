from __future__ import annotations

import os
import subprocess

import pytest

from mitoflow.cli._output import shell_word
from mitoflow.errors import printable


@pytest.mark.parametrize(
    "name", ["a.tif", "-out.tif", "two words.tif", "two\nlines'.tif", "\x1b\\n\u202eü.tif", "\udcff\n1"]
)
def test_a_command_that_was_printed_finds_the_file(name: str) -> None:
    """What the terminal gets has no control characters, and the shell reads the name again."""
    printed = shell_word(name)
    assert printed == printable(printed)
    read = subprocess.run(["bash", "-c", f"printf %s {printed}"], capture_output=True, check=True).stdout
    assert os.fsdecode(read) == (f"./{name}" if name.startswith("-") else name)

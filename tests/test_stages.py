"""What a stage does before it begins."""

from __future__ import annotations

import subprocess
import sys

MULTIPLY = """
import resource
from pathlib import Path
import numpy as np
from mitoflow import stages

def main():
    (held,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line]
    resource.setrlimit(resource.RLIMIT_AS, (1024 * int(held), resource.RLIM_INFINITY))
    print((np.eye(3) @ np.full((3, 3), 7.0))[0])

stages.as_process(main)
"""


def test_a_product_of_matrices_ends_where_no_memory_is_left() -> None:
    done = subprocess.run([sys.executable, "-c", MULTIPLY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[7. 7. 7.]\n"

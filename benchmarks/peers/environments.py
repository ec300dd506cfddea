"""A virtual environment for each tool, from the package index, with the versions of the file beside this one."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from benchmarks.peers.commands import CannotRunError, Commands
from mitoflow.core import files

MARK = "installed.txt"  # written last: the requirements that are installed


def programs(folder: Path, tool: str) -> Path:
    """Return the folder with the programs of a tool; install it first where it is not there in these versions.

    Raises
    ------
    CannotRunError
        It cannot be installed.
    """
    requirements, environment = Path(__file__).with_name(f"{tool}.txt"), folder / tool
    wanted, mark = requirements.read_text(encoding="utf-8"), folder / tool / MARK
    if not (mark.exists() and mark.read_text(encoding="utf-8") == wanted):
        print(f"peers: installing {tool} into {environment}", flush=True)
        shutil.rmtree(environment, ignore_errors=True)
        environment.mkdir(parents=True)
        commands, start = Commands(environment, {"PYTHONPATH": ""}), time.monotonic()
        commands.run(sys.executable, "-m", "venv", environment)
        try:
            commands.run(environment / "bin/python", "-m", "pip", "install", "--requirement", requirements)
        except CannotRunError as error:
            raise CannotRunError(f"it cannot be installed: {error}") from None
        files.write_text(mark, wanted)
        print(f"peers: installed {tool} in {time.monotonic() - start:.0f} s", flush=True)
    return environment / "bin"


def pinned(tool: str, package: str) -> str:
    """Return the version in which a package is installed."""
    lines = Path(__file__).with_name(f"{tool}.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))

"""Python 3.11 and 3.12: one lock serves both, and `make` takes whichever it finds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSIONS = ("3.11", "3.12")
LOCKS = {"requirements.lock": "", "requirements-test.lock": "test"}


def pins(lock: str) -> dict[str, str]:
    """Return the version of each package of a lock file."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def holds(marker: Marker | None, python: str, extra: str) -> bool:
    return marker is None or marker.evaluate(
        {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
    )


def needed(python: str, extra: str) -> dict[str, list[Requirement]]:
    """Return each package that mitoflow needs under a version of Python, with all that is required of it."""
    extras = PROJECT["optional-dependencies"]
    pending = [Requirement(line) for line in PROJECT["dependencies"] + (extras[extra] if extra else [])]
    found: dict[str, list[Requirement]] = {}
    seen: set[tuple[str, str]] = set()
    while pending:
        requirement = pending.pop()
        name = canonical(requirement.name)
        if name == "mitoflow":
            pending += [Requirement(line) for extra in requirement.extras for line in extras[extra]]
            continue
        found.setdefault(name, []).append(requirement)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                further = [Requirement(line) for line in distribution(name).requires or []]
                pending += [each for each in further if holds(each.marker, python, wanted)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("python", VERSIONS)
@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_is_complete_and_consistent(lock: str, python: str) -> None:
    pinned = pins(lock)
    required = needed(python, LOCKS[lock])
    assert set(required) <= set(pinned)
    assert len(required) > 100
    for name, requirements in required.items():
        installed: Distribution = distribution(name)
        assert installed.version == pinned[name], f"{name}: run `make test`, which installs the lock"
        assert SpecifierSet(installed.metadata.get("Requires-Python", "")).contains(f"{python}.0"), name
        for requirement in requirements:
            assert requirement.specifier.contains(pinned[name], prereleases=True), f"{name}: {requirement}"


def test_the_lock_names_no_package_index() -> None:
    """Neither an address nor an option of pip, which stands at the start of a line; hashes are indented."""
    for lock in LOCKS:
        assert not re.search(r"https?://|^-", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE)


def executable(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def make(checkout: Path, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask `make` how it would make .venv where nothing but ``path`` is on the path."""
    shutil.copy(ROOT / "Makefile", checkout)
    command = [str(shutil.which("make")), "--dry-run", ".venv/bin/python", *arguments]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        command, cwd=checkout, env=environment | {"PATH": str(path)}, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not shutil.which("make"), reason="no make on this machine")
def test_make_takes_the_first_interpreter_that_works(tmp_path: Path) -> None:
    path = tmp_path / "bin"
    executable(path, "python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    executable(path, "python3", f'exec "{sys.executable}" "$@"')
    assert make(tmp_path, path).stdout == "python3 -m venv .venv\n"
    executable(path, "python3.12", f'exec "{sys.executable}" "$@"')
    assert make(tmp_path, path).stdout == "python3.12 -m venv .venv\n"
    assert make(tmp_path, path, "PYTHON=python3").stdout == "python3 -m venv .venv\n"


@pytest.mark.skipif(not shutil.which("make"), reason="no make on this machine")
def test_make_says_how_to_get_an_interpreter(tmp_path: Path) -> None:
    path = tmp_path / "bin"
    other = "import sys; sys.version_info = (3, {minor}); exec(sys.argv.pop(2))"
    for name, minor in {"python3.11": 10, "python3": 13}.items():
        executable(path, name, f'exec "{sys.executable}" -c "{other.format(minor=minor)}" "$@"')
    executable(
        path,
        "python3.12",
        f'exec "{sys.executable}" -c "import sys; sys.modules[\'ensurepip\'] = None; exec(sys.argv.pop(2))" "$@"',
    )
    done = make(tmp_path, path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r".*found no Python 3\.11 or 3\.12 .*`sudo apt install python3-venv`, .*uv python.*\n", done.stderr
    )


def interpreter(python: str) -> str | None:
    """Return an interpreter of that version on this machine: on the path, of pyenv, or of uv."""
    homes = (Path.home() / ".pyenv/versions", Path.home() / ".local/share/uv/python")
    candidates = [f"python{python}", *map(str, (p for home in homes for p in home.glob(f"*/bin/python{python}")))]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    return None


@pytest.mark.slow
@pytest.mark.parametrize("python", VERSIONS)
def test_the_sources_compile_without_a_warning(python: str, tmp_path: Path) -> None:
    found = interpreter(python)
    if found is None:
        pytest.skip(f"no Python {python} on this machine")
    folders = [ROOT / name for name in ("src", "tests", "benchmarks")]
    command = [found, "-W", "error", "-X", f"pycache_prefix={tmp_path}", "-m", "compileall", "-q", *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

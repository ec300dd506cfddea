"""Errors of the machine are one line each, and no name from elsewhere reaches the terminal as it is."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import sys
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import tifffile

from mitoflow import cli
from mitoflow.core import files
from mitoflow.errors import REFUSED, InputError, as_user_error, printable


def too_many_files(folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 8, limits[1]))
        for number in range(100):
            opened.enter_context((folder / str(number)).open("w"))


def too_large_file(folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        (folder / "large").write_bytes(bytes(1001))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def circle(folder: Path) -> None:
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "circle").read_bytes()


def file_as_folder(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "file/below").read_bytes()


def broken_disk(_: Path) -> None:
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:  # nothing is at its first byte
        memory.read(1)


def device(_: Path) -> None:
    with Path("/dev/null").open("rb") as nothing:
        mmap.mmap(nothing.fileno(), 1, access=mmap.ACCESS_READ)


def folder_in_use(folder: Path) -> None:
    (folder / "used").mkdir()
    (folder / "used/new").touch()
    (folder / "used").rmdir()


def simulated(name: str) -> Callable[[Path], object]:
    """Fail as only a broken disk, share or file system does."""

    def fail(folder: Path) -> None:
        number = getattr(errno, name)
        raise OSError(number, os.strerror(number), str(folder))

    return fail


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "EMFILE": (too_many_files, "too many open files, expected fewer than the limit; raise it with `ulimit -n`"),
    "EFBIG": (too_large_file, "a file that becomes too large, expected a file system and a limit that allow it"),
    "ELOOP": (circle, "links that lead in a circle, expected a file or a folder; correct the links"),
    "ENOTDIR": (file_as_folder, "a file in the place of a folder, expected a folder; check the path"),
    "EIO": (broken_disk, "a disk that fails to read or write, expected one that works"),
    "EISDIR": (lambda folder: folder.read_bytes(), "found a folder, expected a file; check the path"),
    "ENOENT": (lambda folder: (folder / "gone").read_bytes(), "no such file, expected one that stays while it is used"),
    "ENAMETOOLONG": (
        lambda folder: (folder / ("n" * 300)).read_bytes(),
        "a name that is too long, expected at most",
    ),
    "ENODEV": (device, "a disk that is gone, or cannot map files into memory, expected one that is there and can; "),
    "ENOTEMPTY": (
        folder_in_use,
        "used: found a folder in which something else writes, expected one that is left alone",
    ),
    "ENOTCONN": (simulated("ENOTCONN"), "a network share that is not connected, expected one that is; mount it again"),
    "EREMOTEIO": (simulated("EREMOTEIO"), "a network share that fails to read or write, expected one that works; look"),
    "EUCLEAN": (simulated("EUCLEAN"), "a damaged file system, expected an intact one; have it checked with `fsck`"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_machine_refuses_is_one_line_with_its_remedy(tmp_path: Path, name: str) -> None:
    refused, line = REFUSALS[name]
    with pytest.raises(OSError, check=lambda error: error.errno == getattr(errno, name)) as caught:
        refused(tmp_path)
    assert line in str(as_user_error(caught.value))


def test_every_refusal_has_found_expected_and_remedy() -> None:
    for number in REFUSED:
        assert str(as_user_error(OSError(number, os.strerror(number), "cell.tif"))).startswith("cell.tif: found ")
    assert as_user_error(OSError(errno.EINVAL, "invalid argument")) is None, "an error of the code keeps its traceback"


def test_a_clock_that_was_never_set_is_one_line() -> None:
    """What Python raises where Keras saves a model in 1970."""
    with pytest.raises(ValueError) as caught:
        zipfile.ZipInfo("metadata.json", (1970, 1, 2, 0, 0, 0))
    expected = "expected a year from 1980 on, which archives can hold; set the clock, and run it again: it resumes"
    assert str(as_user_error(caught.value)).startswith("the clock of this machine: found ")
    assert str(as_user_error(caught.value)).endswith(expected)


HOSTILE = "a\x1b]0;title\x07\r\nmitoflow: done\u202etif.exe\udcff"
SHOWN = r"a\x1b]0;title\x07\r\nmitoflow: done\u202etif.exe\udcff"


def test_control_characters_become_escapes() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("Größe in µm, 微米") == "Größe in µm, 微米"
    error = str(InputError("\x1b[2J.tif", HOSTILE, "\x00", "\x7f"))
    assert error.isprintable()
    assert error.startswith(r"\x1b[2J.tif: found a\x1b]0;title\x07 mitoflow: done")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").touch()
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["mitoflow", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.mark.parametrize("name", ["\x1b[2J.tif", "a\rb.tif", "n" * 300, "gone/\x07"])
def test_no_name_is_printed_as_it_is(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for arguments in (("score", name, name), (name,), ("score", f"--{name}")):
        assert run(monkeypatch, *arguments) == 2
        line = capsys.readouterr().err
        assert line.startswith("mitoflow: ")
        assert line.removesuffix("\n").isprintable()


def test_text_in_a_file_from_elsewhere_is_not_printed_as_it_is(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """XML has no ESC, but the control characters from U+0080 on, of which one begins the same sequences."""
    text = "\x9b2Jmodel\u202e"
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><StructuredAnnotations><MapAnnotation '
        f'Namespace="mitoflow/lineage"><Value><M K="model">{text}</M></Value></MapAnnotation>'
        "</StructuredAnnotations></OME>"
    )
    tifffile.imwrite("mask.tif", [[0]], description=xml.encode())
    monkeypatch.setattr(sys, "argv", ["mitoflow", "lineage", "mask.tif"])
    cli.main()
    printed = capsys.readouterr().out
    assert r"\x9b2Jmodel\u202e" in printed
    assert all(line.isprintable() for line in printed.splitlines())


def test_no_cell_of_a_table_is_a_formula(tmp_path: Path) -> None:
    rows = [["=cmd|' /C calc'!A0", "+1+2", "@SUM(A1)", "-x", "-0.5", "+3e-7", -2, "a=b", ""]]
    files.write_csv(tmp_path / "t.csv", list("abcdefghi"), rows)
    _, row = (tmp_path / "t.csv").read_text().splitlines()
    assert row == "'=cmd|' /C calc'!A0,'+1+2,'@SUM(A1),'-x,-0.5,+3e-7,-2,a=b,"

"""Fuzzing: input is accepted and read correctly, or refused in one line; no traceback and no hang."""

from __future__ import annotations

import copy
import io
import random
import resource
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from mitoflow import cli
from mitoflow.config import params
from mitoflow.errors import InputError, as_user_error
from mitoflow.io import tiff, volumes

from .injection import ROOT, examples, fault

GIB = 2**30
SLOW = 20_000  # milliseconds after which it counts as a hang


def fuzz(long: int, short: int) -> Callable[[Callable], Callable]:
    """Have hypothesis make that many inputs; each has `SLOW` milliseconds."""
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples(long, short), deadline=SLOW, suppress_health_check=health, database=None)


@contextmanager
def bounded_memory(more: int = GIB) -> Iterator[None]:
    """Let this process have so many more bytes of memory, and no more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@st.composite
def written_tiffs(draw: st.DrawFn) -> tuple[np.ndarray, bytes]:
    """A stack, and the TIFF that tifffile makes of it."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(64, 90), st.integers(64, 90)))
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    stack = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 255, shape).astype(dtype)
    tiled = draw(st.booleans())
    options: dict[str, Any] = {
        "bigtiff": draw(st.booleans()),
        "byteorder": draw(st.sampled_from("<>")),
        "compression": draw(st.sampled_from([None, "zlib", "lzw", "packbits"])),
        "tile": (draw(st.sampled_from([16, 64, 128])),) * 2 if tiled else None,
        "rowsperstrip": None if tiled else draw(st.integers(1, 100)),
        "photometric": draw(st.sampled_from(["minisblack", "miniswhite"])),
        "metadata": draw(st.sampled_from([None, {"axes": "ZYX"}])),
    }
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.invert(stack) if options["photometric"] == "miniswhite" else stack, **options)
    return stack, stream.getvalue()


def read_in_both_ways(path: Path) -> list[np.ndarray]:
    """Read a stack slice by slice, as the pipeline does, and box by box, as `predict` does."""
    stack = tiff.open_stack(path)
    volume = volumes.open_volume(str(path))
    assert volume.shape == stack.shape
    whole = (0, stack.shape[1], 0, stack.shape[2])
    return [
        np.stack([read(z) for z in range(stack.shape[0])]) for read in (stack.slice, lambda z: volume.read(z, whole))
    ]


@fault("fuzzing: TIFF files of any layout", long=1)
def test_tiff_layouts(tmp_path: Path, attempt: int, record_property: Callable[[str, object], None]) -> None:
    tried = []

    @given(written_tiffs())
    @fuzz(long=1000, short=60)
    def check(written: tuple[np.ndarray, bytes]) -> None:
        tried.append(1)
        stack, content = written
        path = tmp_path / "stack.tif"
        path.write_bytes(content)
        for read in read_in_both_ways(path):
            assert read.dtype == stack.dtype
            assert np.array_equal(read, stack)

    check()
    record_property("tried", len(tried))


@fault("fuzzing: headers of TIFF files", long=1)
def test_tiff_headers(
    tmp_path: Path, attempt: int, record_property: Callable[[str, object], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """What is accepted reads as tifffile reads the whole of it: damage may make another picture, but not two.

    tifffile does not invert where 0 is white.
    """
    tried = []

    @given(written_tiffs(), st.randoms(use_true_random=False))
    @fuzz(long=4000, short=250)
    def check(written: tuple[np.ndarray, bytes], chance: random.Random) -> None:
        tried.append(1)
        path = tmp_path / "stack.tif"
        path.write_bytes(harmed_directories(written[1], chance))
        with bounded_memory():
            try:
                found = read_in_both_ways(path)
            except InputError as error:
                assert "\n" not in str(error)
                return
            with tifffile.TiffFile(path) as file:
                truth, page = file.asarray().reshape(found[0].shape), file.series[0].keyframe
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            truth = (1 << page.bitspersample) - 1 - truth
        for read in found:
            assert np.array_equal(read, truth)

    check()
    record_property("tried", len(tried))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def harmed_directories(content: bytes, chance: random.Random) -> bytes:
    """Return a TIFF with another value in one to three entries of its directories, or other bytes anywhere."""
    harmed = bytearray(content)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        # An entry is 12 bytes, its value the last 4; 20 and 8 in a BigTIFF.
        entries = [tag.offset for page in file.pages for tag in page.tags]
        size, order = (20 if file.is_bigtiff else 12), ("little" if file.byteorder == "<" else "big")
    for _ in range(chance.randint(1, 3)):
        entry = chance.choice(entries)
        if chance.random() < 0.6:
            low, high = chance.choice([(4, size), (size * 2 // 3, size), (2, 4)])
            value = chance.choice(
                [0, 1, 2, 3, 4, 8, 16, 17, 255, 65535, 2**20, 2**31, 2**32 - 1, chance.getrandbits(31)]
            )
            width = high - low
            harmed[entry + low : entry + high] = (value % 256**width).to_bytes(width, order)
        else:
            place = chance.choice([chance.randrange(entry, entry + size), chance.randrange(len(harmed))])
            harmed[place] = chance.randrange(256)
    return bytes(harmed[: chance.choice([len(harmed), len(harmed), chance.randrange(8, len(harmed))])])


PARAMS = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["tuned", "none", "1e3"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
)


@fault("fuzzing: params.yaml", long=1)
def test_params(tmp_path: Path, attempt: int, record_property: Callable[[str, object], None]) -> None:
    tried = []

    @given(st.data())
    @fuzz(long=4000, short=200)
    def check(data: st.DataObject) -> None:
        tried.append(1)
        values = copy.deepcopy(PARAMS)
        for _ in range(data.draw(st.integers(1, 2))):
            section = values
            key = data.draw(st.sampled_from(sorted(section)))
            while isinstance(section[key], dict) and section[key] and data.draw(st.integers(0, 9)):
                section = section[key]
                key = data.draw(st.sampled_from(sorted(section, key=str)))
            section[data.draw(st.sampled_from([key, key, key, f"{key}s"]))] = data.draw(VALUES)
        path = tmp_path / "params.yaml"
        with path.open("w", encoding="utf-8") as stream:
            YAML().dump(values, stream)
        check_params(path)

    @given(st.one_of(st.binary(max_size=200), st.text(alphabet=string.printable, max_size=200).map(str.encode)))
    @fuzz(long=1000, short=100)
    def check_text(content: bytes) -> None:
        tried.append(1)
        text = (ROOT / "params.yaml").read_bytes()
        path = tmp_path / "params.yaml"
        for whole in (content, text + content, content + text):
            path.write_bytes(whole)
            check_params(path)

    check()
    check_text()
    record_property("tried", len(tried))


def check_params(path: Path) -> None:
    """It is refused in one line, or each value is the one that YAML says."""
    try:
        loaded = params.load(path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert loaded.model_dump(by_alias=True) == params.Params.model_validate(PARAMS).model_dump(by_alias=True) | YAML(
        typ="safe", pure=True
    ).load(path.read_text(encoding="utf-8"))


WORDS = st.one_of(
    st.sampled_from(
        ["", "-", "--", ".", "..", "/", "/dev/null", "a.tif", "empty.tif", "text.tif", "folder", "*.tif", "0"]
    ),
    st.sampled_from(["1", "-1", "nan", "1e400", "0:1", "1,1,1", "0:1,0:1,0:1", "5:1,,", "models:/mitoflow@champion"]),
    st.sampled_from(
        ["pretrained:", "pretrained:../..", "runs:/x", "x.keras", "empty.keras", "out.tif", "out.ome.zarr"]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),  # no program gets a NUL
)
NEVER = {"ui", "repro", "tune", "serve", "app"}  # they become other programs


@fault("fuzzing: arguments of the command line", long=1)
def test_arguments(
    tmp_path: Path, attempt: int, record_property: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    tried = []
    commands = [
        ["data", "import"],
        ["data", "verify"],
        *([name] for name in cli.mitoflow.commands if name not in {"data", *NEVER}),
    ]

    @given(st.data())
    @fuzz(long=1500, short=60)
    def check(data: st.DataObject) -> None:
        tried.append(1)
        lay_out(tmp_path)
        command = data.draw(st.sampled_from(commands))
        described = cli.mitoflow
        for name in command:
            described = described.commands[name]
        flags = [option for parameter in described.params for option in parameter.opts if option.startswith("--")]
        words = st.one_of(WORDS, st.sampled_from(flags)) if flags else WORDS
        arguments = [*command, *data.draw(st.lists(words, max_size=5))]
        check_command(arguments)

    check()
    record_property("tried", len(tried))


def lay_out(folder: Path) -> None:
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (folder / "folder").mkdir(exist_ok=True)
    for name in ("empty.tif", "empty.keras"):
        (folder / name).touch()
    (folder / "text.tif").write_text("no TIFF")
    if not (folder / "a.tif").exists():
        tiff.write_stack(folder / "a.tif", np.zeros((2, 64, 64), np.uint8))


def check_command(arguments: list[str]) -> None:
    """It does what was asked, or says in one line why not, as `mitoflow.cli.main` would print it."""
    result = CliRunner().invoke(cli.mitoflow, arguments, prog_name="mitoflow")
    error = result.exception
    if error is None or isinstance(error, SystemExit):  # click's own complaints
        assert result.exit_code in (0, 2), arguments
    else:
        user_error = as_user_error(error) if isinstance(error, Exception) else None
        assert user_error is not None, (arguments, error)
        assert "\n" not in str(user_error)

"""OME-Zarr images on servers: a plain HTTP server, and an object store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from s3fs import S3FileSystem

from mitoflow.errors import InputError
from mitoflow.evaluation.measuring import table_of
from mitoflow.instances.label_files import read_labels
from mitoflow.io import remote, volumes
from mitoflow.io.volumes import open_volume
from tests.io.test_ome import version_05
from tests.io.test_volumes import STACK, WHOLE, write_zarr
from tests.parts import free_port
from tests.services import HTTPFolder, ObjectStore


@pytest.fixture
def served(tmp_path: Path) -> Iterator[HTTPFolder]:
    with HTTPFolder(tmp_path) as served:
        yield served


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with ObjectStore() as store:
        yield store


@pytest.fixture
def bucket(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder behind the bucket, which the environment gives access to."""
    for name, value in {**store.credentials, "AWS_ENDPOINT_URL": store.uri}.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # which keeps the environment of an earlier test
    return store.folder / "objects" / store.bucket


@pytest.mark.slow
@pytest.mark.parametrize("version", [2, 3])
def test_blocks_are_read_over_http_as_they_are_needed(served: HTTPFolder, version: int) -> None:
    write_zarr(served.folder / "s.zarr", STACK, version=version)
    volume = open_volume(f"{served.url}/s.zarr")
    local = open_volume(str(served.folder / "s.zarr"))
    assert (volume.axes, volume.shape, volume.dtype) == ("zyx", STACK.shape, STACK.dtype)
    assert (volume.spacing, volume.origin, volume.files) == (local.spacing, local.origin, [])
    served.asked.clear()
    np.testing.assert_array_equal(volume.read(1, (0, 32, 0, 32)), STACK[1, :32, :32])
    assert len(served.asked) == 1, "one chunk"
    for z in (*range(len(STACK)), 0):
        np.testing.assert_array_equal(volume.read(z, WHOLE), STACK[z])
    assert len(served.asked) == len({*served.asked}) == 2 * 3 * 3, "each chunk once"
    assert volume.state() == [f"{served.url}/s.zarr/0"]
    assert volumes.name_of(f"{served.url}/s.zarr") == volumes.absolute(f"{served.url}/s.zarr") == f"{served.url}/s.zarr"


def test_what_is_kept_is_bounded(served: HTTPFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zarr(served.folder / "s.zarr", STACK)
    volume = open_volume(f"{served.url}/s.zarr")
    monkeypatch.setattr(remote, "KEPT", 9000)  # two chunks of four or one slice, and not three
    for corner in (0, 32, 64, 32, 0):
        volume.read(0, (corner, corner + 1, 0, 1))
    chunks = [path.rpartition("s.zarr/0/")[2] for path in served.asked if "/0/0/" in path]
    assert chunks == ["0/0/0", "0/1/0", "0/2/0", "0/0/0"]


def test_an_object_store_is_read_with_credentials_of_the_environment(bucket: Path) -> None:
    write_zarr(bucket / "a/s.zarr", STACK)
    volume = open_volume("s3://mitoflow/a/s.zarr")
    for z in range(len(STACK)):
        np.testing.assert_array_equal(volume.read(z, WHOLE), STACK[z])
    before = volume.state()
    assert open_volume("s3://mitoflow/a/s.zarr").state() == before
    zarr.open_array(bucket / "a/s.zarr/0")[4, 0, 0] = 1
    assert volume.state() != before


def test_wrong_credentials_are_one_line(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zarr(bucket / "b.zarr", STACK)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match=r"s3://mitoflow/b.zarr/.*: found a server that refuses .*set credentials"):
        open_volume("s3://mitoflow/b.zarr")


def test_a_bucket_without_the_image_is_one_line(bucket: Path) -> None:
    with pytest.raises(InputError, match=r"s3://mitoflow/none.zarr: found no group of Zarr"):
        open_volume("s3://mitoflow/none.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("source", ["http://127.0.0.1:{port}/s.zarr", "s3://mitoflow/s.zarr"])
def test_a_server_that_is_away_is_one_line(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match="found no answer that can be used"):
        open_volume(source.format(port=port))


def test_a_server_that_refuses_what_is_not_there_is_read(served: HTTPFolder) -> None:
    """Object stores refuse names that are not there to those who may not list them."""
    write_zarr(served.folder / "s.zarr", STACK, version=3)
    served.answers |= {".zgroup": (403, b""), ".zattrs": (403, b""), ".zarray": (403, b"")}
    np.testing.assert_array_equal(open_volume(f"{served.url}/s.zarr").read(2, WHOLE), STACK[2])
    served.answers["zarr.json"] = (403, b"")
    with pytest.raises(InputError, match="found a server that refuses"):
        open_volume(f"{served.url}/s.zarr")


def test_a_server_that_fails_midway_is_one_line(served: HTTPFolder) -> None:
    write_zarr(served.folder / "s.zarr", STACK)
    volume = open_volume(f"{served.url}/s.zarr")
    served.answers["/0/0/0/0"] = (500, b"")
    with pytest.raises(InputError, match=r"s.zarr/0/0/0/0: found no answer .*500.*`predict` continues"):
        volume.read(0, WHOLE)
    served.answers.clear()
    np.testing.assert_array_equal(volume.read(0, WHOLE), STACK[0])


def test_the_text_of_a_redirection_is_no_chunk(served: HTTPFolder) -> None:
    path = write_zarr(served.folder / "s.zarr", STACK)
    volume, another = open_volume(f"{served.url}/s.zarr"), (path / "0/1/0/0").read_bytes()
    served.answers["/0/0/0/0"] = (301, another)
    with pytest.raises(InputError, match=r"s.zarr/0/0/0/0: found no answer .*301 without another address"):
        volume.read(0, WHOLE)


def test_a_chunk_that_is_missing_is_an_error_unless_it_is_empty(served: HTTPFolder) -> None:
    path = write_zarr(served.folder / "s.zarr", STACK)
    (path / "0/1/0/2").unlink()
    volume = open_volume(f"{served.url}/s.zarr")
    np.testing.assert_array_equal(volume.read(3, WHOLE), STACK[3])
    with pytest.raises(InputError, match=r"1/0/2 is missing.*--fill-missing"):
        volume.read(4, WHOLE)
    assert not open_volume(f"{served.url}/s.zarr", fill_missing=True).read(4, (0, 32, 64, 90)).any()
    notes: list[str] = []
    write_zarr(served.folder / "m.zarr", (STACK > 127).astype(np.uint8))
    (served.folder / "m.zarr/0/1/0/2").unlink()
    assert not read_labels(f"{served.url}/m.zarr", notes.append)[0][4, :32, 64:].any()
    assert [note for note in notes if "m.zarr: 1 chunk is not there and read as empty" in note]


def test_an_array_outside_of_the_image_is_refused(served: HTTPFolder) -> None:
    path = write_zarr(served.folder / "s.zarr", STACK)
    shutil.copytree(path / "0", served.folder / "other")
    described = json.loads((path / ".zattrs").read_text())
    described["multiscales"][0]["datasets"][0]["path"] = "../other"
    (path / ".zattrs").write_text(json.dumps(described))
    with pytest.raises(InputError, match="which is outside of it"):
        open_volume(f"{served.url}/s.zarr")


def test_shards_need_a_server_that_sends_parts(served: HTTPFolder, bucket: Path) -> None:
    version_05(served.folder / "i.zarr", shards=(1, 1, 4, 512, 512))
    volume = open_volume(f"{served.url}/i.zarr")
    with pytest.raises(InputError, match="a server that sends whole files alone"):
        volume.read(0, (0, 8, 0, 8))
    shutil.copytree(served.folder / "i.zarr", bucket / "i.zarr")
    box = (0, 8, 0, 8)
    expected = open_volume(str(served.folder / "i.zarr")).read(0, box)
    np.testing.assert_array_equal(open_volume("s3://mitoflow/i.zarr").read(0, box), expected)


@pytest.mark.parametrize("address", ["https://me:secret@host/s.zarr", "https://host/s.zarr?token=secret"])
def test_credentials_in_an_address_are_not_repeated(address: str) -> None:
    with pytest.raises(InputError, match="credentials or a query in the address") as raised:
        open_volume(address)
    assert "secret" not in str(raised.value)


def test_labels_on_a_server_are_measured(served: HTTPFolder) -> None:
    labels = (STACK > 127).astype(np.uint8)
    write_zarr(served.folder / "m.zarr", labels)
    voxels, _ = read_labels(f"{served.url}/m.zarr")
    np.testing.assert_array_equal(voxels, labels)
    with pytest.raises(InputError, match="give --table"):
        table_of(f"{served.url}/m.zarr")

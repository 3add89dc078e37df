"""Where the files go: a folder, and an S3 server (rclone's)."""

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from coatcheck.objects.destinations import (
    DestinationDownError,
    DestinationError,
    Folder,
    ObjectStorage,
    open_destination,
)
from coatcheck.training.exporting import manifest_path
from tests.integration.s3_server import S3Server


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder behind `s3://bucket`, served with signed requests; credentials are in the environment."""
    root = tmp_path / "s3"
    (root / "bucket").mkdir(parents=True)
    server = S3Server(root, tmp_path)
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    server.start()
    try:
        yield root / "bucket"
    finally:
        server.kill()


def test_s3_takes_whole_files_and_gives_them_back(bucket: Path, tmp_path: Path) -> None:
    """Small and of several parts, over what was there before."""
    store = open_destination("s3://bucket/training")
    assert isinstance(store, ObjectStorage)
    path = manifest_path(date(2026, 11, 21))
    assert store.get(path) is None
    source = tmp_path / "source"
    for content in (b"one", b"0123456789" * 2_000_000, json.dumps({"a": 1}).encode()):
        source.write_bytes(content)
        store.put(path, source)
        assert store.get(path) == content
        assert (bucket / "training" / path).read_bytes() == content


def test_parts_and_listings_are_the_same_everywhere(bucket: Path, tmp_path: Path) -> None:
    """A part ends with the file, an empty file is one, and what is being written is not listed."""
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / ".x.part").write_bytes(b"half")
    for place in (f"s3://{bucket.name}/out", str(tmp_path / "out")):
        store = open_destination(place)
        for path, data in {"a/one": b"0123456789", "a/none": b"", "a/b/two": b"2", "c": b"3"}.items():
            store.put(path, data)
        assert store.entries("a") == ["b", "none", "one"]
        assert store.entries("nowhere") == []
        parts = [store.get_range("a/one", start, 4) for start in (0, 8, 10)]
        assert parts == [b"0123", b"89", b""]
        assert (store.get("a/none"), store.get_range("a/none", 0, 4)) == (b"", b"")
        assert (store.get("a/nothing"), store.get_range("a/nothing", 0, 4)) == (None, None)


def test_s3_refusals_are_told_apart_from_outages(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong credentials do not get better by waiting."""
    assert bucket.is_dir()
    source = tmp_path / "source"
    source.write_bytes(b"one")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(DestinationError, match="refused"):
        open_destination("s3://bucket/training").put("a", source)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DestinationDownError):
        ObjectStorage("s3://bucket/training", patience_seconds=1).put("a", source)


def test_a_folder_has_a_file_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dies while writing leaves what was there before."""
    folder, source = Folder(tmp_path / "out"), tmp_path / "source"
    source.write_bytes(b"old")
    folder.put("a/b.csv", source)
    source.write_bytes(b"new")

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coatcheck.objects.destinations.os.fsync", dies)
    with pytest.raises(KeyboardInterrupt):
        folder.put("a/b.csv", source)
    assert folder.get("a/b.csv") == b"old"
    monkeypatch.undo()
    folder.put("a/b.csv", source)
    assert folder.get("a/b.csv") == b"new"
    assert [path.name for path in (tmp_path / "out" / "a").iterdir()] == ["b.csv"], "what was begun is taken away"


def test_what_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    """A file in the way, and a scheme that nobody knows."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DestinationError, match="cannot write"):
        Folder(tmp_path / "file").put("a/b", tmp_path / "file")
    with pytest.raises(DestinationError, match="ftp"):
        open_destination("ftp://host/path")

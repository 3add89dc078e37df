"""Where the files go: a folder, and an S3 server (rclone's)."""

import json
import shutil
import socket
import subprocess
import sys
import time
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

KEY, SECRET = "key-of-the-test", "secret-of-the-test"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder behind `s3://bucket`, served with signed requests; credentials are in the environment."""
    root = tmp_path / "s3"
    (root / "bucket").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = shutil.which("rclone", path=str(Path(sys.executable).parent))
    assert program is not None
    arguments = ["serve", "s3", str(root), "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"]
    with (tmp_path / "rclone.log").open("w") as log:
        server = subprocess.Popen(
            [program, *arguments, "--config", str(tmp_path / "rclone.conf"), "--vfs-cache-mode", "off"], stderr=log
        )
        try:
            _until_it_listens(port)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            monkeypatch.setenv("AWS_REGION", "us-east-1")
            monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
            yield root / "bucket"
        finally:
            server.kill()
            server.wait()


def _until_it_listens(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the S3 server does not listen")


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
    assert [path.name for path in (tmp_path / "out" / "a").iterdir()] == ["b.csv"], "what was begun is taken up again"


def test_what_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    """A file in the way, and a scheme that nobody knows."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DestinationError, match="cannot write"):
        Folder(tmp_path / "file").put("a/b", tmp_path / "file")
    with pytest.raises(DestinationError, match="ftp"):
        open_destination("ftp://host/path")

"""`coatcheck fetch --out`: the files of a deliverable, all or none, never outside the folder."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coatcheck.localstack import LocalStack
from coatcheck.messaging.artifacts import ArtifactStore
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.streams import ensure_streams
from schemas.deliverable import DeliverableRef
from schemas.streams import AGENTS, STREAMS, bucket_streams
from tests.acceptance.program import Outcome, coatcheck
from tests.integration.nats_clients import client_as, deliverable

Fetch = Callable[..., Outcome]
FILES = {"app.py": b"print('hello')\n", "tests/test_app.py": b"", "ui/src/page.ts": os.urandom(200_000)}
SUBJECT = "agog.deliverables.roy.backend.{feature}"


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A stack of which only NATS runs; all that `fetch` needs."""
    with LocalStack(tmp_path_factory.mktemp("files") / "stack", servers=("nats",), workers=()) as running:
        yield running


async def _deliver(stack: LocalStack, feature: str, files: dict[str, bytes], *, store: bool = True) -> DeliverableRef:
    server = stack.status().nats
    assert server is not None
    report = deliverable("roy", "backend", feature, "# The report")
    async with client_as(server, "core") as core, client_as(server, "roy") as roy:
        await ensure_streams(core, [*STREAMS, *bucket_streams(AGENTS)])
        report.artifacts = await ArtifactStore(roy).put("roy", files)
        if not store:
            report.artifacts[-1] = report.artifacts[-1].model_copy(update={"sha256": "0" * 64})
        published = await DeliverableService(roy).publish_report(
            report, task_key=feature, stream="agog_features_backend", subject=SUBJECT.format(feature=feature)
        )
        return published.ref


@pytest.fixture(scope="module")
def delivered(nats: LocalStack) -> str:
    """Roy's deliverable with three files, as `STREAM:SEQ`."""
    ref = asyncio.run(_deliver(nats, "with-files", FILES))
    return f"{ref.stream}:{ref.sequence}"


@pytest.fixture
def fetch(nats: LocalStack) -> Fetch:
    """Run `coatcheck fetch`."""

    def run(*arguments: str | Path) -> Outcome:
        return coatcheck("fetch", *map(str, arguments), data_dir=Path(nats.config.data_dir))

    return run


def written(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, drafts too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def test_without_out_the_files_are_listed(delivered: str, fetch: Fetch) -> None:
    """On stderr; stdout is the text and nothing else, so that it can be piped."""
    outcome = fetch(delivered)
    assert (outcome.code, outcome.out) == (0, "# The report\n")
    assert "3 files, 200,015 bytes" in outcome.err
    assert "ui/src/page.ts" in outcome.err
    assert f"coatcheck fetch {delivered} --out DIR" in outcome.err
    assert len(fetch(delivered, "--json").json["deliverable"]["artifacts"]) == 3


def test_the_files_are_written(delivered: str, fetch: Fetch, tmp_path: Path) -> None:
    """By number and by subject, into a folder that is made; stdout says what was written."""
    out = tmp_path / "new" / "folder"
    outcome = fetch(delivered, "--out", out)
    assert outcome.code == 0, outcome.err
    assert written(out) == FILES
    assert [line.split()[0] for line in outcome.out.splitlines()[1:]] == [str(out / path) for path in sorted(FILES)]
    assert f"3 files, 200,015 bytes of {delivered} written to {out}" in outcome.err
    as_json = fetch(SUBJECT.format(feature="with-files"), "--out", tmp_path / "second", "--json")
    assert [item["path"] for item in as_json.json["written"]] == sorted(FILES)
    assert Path(as_json.json["written"][0]["file"]).read_bytes() == FILES["app.py"]
    assert written(tmp_path / "second") == FILES


def test_nothing_is_overwritten_unasked(delivered: str, fetch: Fetch, tmp_path: Path) -> None:
    """One file in the way keeps all from being written; --force overwrites it and leaves the others alone."""
    (tmp_path / "app.py").write_text("mine")
    (tmp_path / "other.py").write_text("mine too")
    outcome = fetch(delivered, "--out", tmp_path)
    assert (outcome.code, outcome.out) == (1, "")
    assert "1 of 3 files are there already: app.py; nothing was written" in outcome.err
    assert "--force" in outcome.err
    assert written(tmp_path) == {"app.py": b"mine", "other.py": b"mine too"}
    assert fetch(delivered, "--out", tmp_path, "--force").code == 0
    assert written(tmp_path) == {**FILES, "other.py": b"mine too"}
    assert fetch(delivered, "--force").code == 2


@pytest.mark.parametrize(
    "obstacle", ["folder link", "file link", "file for folder", "folder for file", "out is a file"]
)
def test_nothing_is_written_elsewhere(delivered: str, fetch: Fetch, tmp_path: Path, obstacle: str) -> None:
    """Links in the folder are not followed, whatever --force says; and nothing is written before that is known."""
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (outside / "app.py").write_text("outside")
    if obstacle == "out is a file":
        out.write_text("a file")
    else:
        out.mkdir()
    if obstacle == "folder link":
        (out / "ui").symlink_to(outside)
    elif obstacle == "file link":
        (out / "app.py").symlink_to(outside / "app.py")
    elif obstacle == "file for folder":
        (out / "ui").write_text("a file")
    elif obstacle == "folder for file":
        (out / "ui" / "src" / "page.ts").mkdir(parents=True)  # the last one to be written
    before = written(tmp_path)
    outcome = fetch(delivered, "--out", out, "--force")
    assert written(outside) == {"app.py": b"outside"}
    if obstacle == "file link":  # the link itself is replaced by the file
        assert outcome.code == 0
        assert not (out / "app.py").is_symlink()
    else:
        assert outcome.code in {1, 2}
        assert written(tmp_path) == before


def test_a_file_that_is_missing_keeps_all_from_being_written(nats: LocalStack, fetch: Fetch, tmp_path: Path) -> None:
    """Everything is fetched and verified first; the error names the file."""
    ref = asyncio.run(_deliver(nats, "one-missing", FILES, store=False))
    outcome = fetch(f"{ref.stream}:{ref.sequence}", "--out", tmp_path / "out")
    assert (outcome.code, outcome.out) == (1, "")
    assert "ui/src/page.ts (artifacts_roy/0000" in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_deliverable_without_files(nats: LocalStack, fetch: Fetch, tmp_path: Path) -> None:
    """Is no error; nothing is made."""
    ref = asyncio.run(_deliver(nats, "no-files", {}))
    message = f"{ref.stream}:{ref.sequence}"
    outcome = fetch(message, "--out", tmp_path / "out")
    assert (outcome.code, outcome.out) == (0, "")
    assert "has no files" in outcome.err
    assert fetch(message).err == ""
    assert not (tmp_path / "out").exists()

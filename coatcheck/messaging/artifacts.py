"""`ArtifactStore`: the files of deliverables, by content, in each agent's own object store bucket.

The layout is that of every NATS client (chunks under `$O.<bucket>.C.<upload>`, one JSON message under
`$O.<bucket>.M.<name>` that makes them an object), so `nats object get` reads it; the name is the sha256 of the content.
nats-py's own `ObjectStore` is not used: it purges what it replaces, and it reads through a consumer. Here nobody may
purge, delete or roll up, and an identity outside the hub's account may not have a consumer.

A writer that dies leaves chunks that no object names; they expire. What is visible is therefore whole, and a reader
believes nobody: it takes only the bytes whose sha256 the deliverable gives, even when the bucket's owner lies.
"""

import asyncio
import base64
import hashlib
import mimetypes
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from coatcheck.errors import (
    ArtifactInvalidError,
    DeliverableCorruptError,
    DeliverableExpiredError,
    DeliverableNotFoundError,
    KeyChangedError,
    MessagingRefusedError,
)
from coatcheck.failpoints import failpoint
from coatcheck.messaging.archive import ArchiveClient
from coatcheck.messaging.client import STREAM_FULL, NatsClient, StoredMessage
from coatcheck.messaging.keyvalue import publish_at
from schemas.deliverable import MAX_ARTIFACT_BYTES, MAX_ARTIFACTS, Artifact, check_artifact_path
from schemas.streams import artifact_bucket, artifact_stream
from schemas.subjects import check_slug

CHUNK_BYTES: Final = 128 * 1024
"""The size that NATS's own clients use; small enough not to hold up other messages on the connection."""
REUSE: Final = timedelta(days=6)
"""A copy that is older is stored again. With 14 days in the bucket it then outlives a deliverable (7 days) by a day:
the time from the upload to the publication, and the difference of two clocks."""
CONCURRENT_FILES: Final = 16
"""Each waits for one disk sync at a time; more gained nothing, and 16 chunks bound what is in flight to 2 MiB."""

_UPLOAD_TRIES: Final = 3
"""Each one lost means that another writer has just stored an object under this name."""
_DIGEST: Final = "SHA-256="
_UPLOAD: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TYPES: Final = {
    ".jsx": "text/javascript",
    ".md": "text/markdown",
    ".rs": "text/x-rust",
    ".sql": "application/sql",
    ".toml": "application/toml",
    ".ts": "text/typescript",
    ".tsx": "text/typescript",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
"""What Python's table does not know, or takes for something that no agent writes (`.ts` as video)."""

_T = TypeVar("_T")


class _Object(BaseModel):
    """The message that makes chunks an object; fields and names are NATS's."""

    name: str
    bucket: str
    nuid: str = ""
    size: int = 0
    chunks: int = 0
    digest: str = ""
    deleted: bool = False
    mtime: datetime
    options: dict[str, int] = {"max_chunk_size": CHUNK_BYTES}


class ArtifactStore:
    """Files in and out, on the identity of `client`.

    Args:
        client: An agent's connection to put into its own bucket; any identity's to get.
        now: The time, for the age of what is stored.
        archived: Whether to ask the archive for what the bucket does not keep any more.
    """

    def __init__(
        self,
        client: NatsClient,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        archived: bool = True,
    ) -> None:
        self._client = client
        self._now = now
        self._archive = ArchiveClient(client) if archived else None

    async def put(self, agent: str, files: Mapping[str, bytes]) -> list[Artifact]:
        """Store the files of one deliverable and list them, in order of their paths.

        Only what the bucket does not hold is sent. Idempotent: the key is the content's sha256.

        Args:
            agent: Whose bucket.
            files: Path → content.

        Raises:
            ArtifactInvalidError: a bad path, or too many files or bytes; nothing was sent.
            NotAuthorizedError: it is not this identity's bucket.
            MessagingUnavailableError: NATS is away; try again, what has been stored stays.
            MessagingRefusedError: the bucket is full.
            StreamMissingError: the agent has no bucket.
        """
        _check_agent(agent)
        _check_listing([(path, len(data)) for path, data in files.items()])
        artifacts = await asyncio.to_thread(_list, files)
        contents = {artifact.sha256: files[artifact.path] for artifact in artifacts}
        await failpoint("artifact.before_put")

        async def store(content: tuple[str, bytes]) -> None:
            await self._store(agent, *content)

        await _each(store, contents.items())
        await failpoint("artifact.after_put")
        return artifacts

    async def get(self, agent: str, artifact: Artifact) -> bytes:
        """Read one file, from the archive when the bucket does not keep it any more.

        Raises:
            DeliverableCorruptError: what is stored has not the size or sha256 that the deliverable gives.
            DeliverableExpiredError: the bucket does not keep it any more, nor does the archive.
            DeliverableNotFoundError: it was never stored.
            ArtifactInvalidError: it claims to be larger than all files of a deliverable may be.
            NotAuthorizedError: this identity may not read that bucket.
            MessagingUnavailableError: no answer.
            StreamMissingError: the agent has no bucket.
        """
        _check_agent(agent)
        _check_listing([(artifact.path, artifact.bytes)])
        try:
            return await self._from_bucket(agent, artifact)
        except (DeliverableExpiredError, DeliverableCorruptError):
            # Retention drops chunks before the message that names them, which looks like corruption.
            if self._archive is None or not _has_dropped(await self._state(agent)):
                raise
            if (data := await self._archive.content(artifact.sha256, artifact.bytes)) is None:
                raise
            return data

    async def get_all(self, agent: str, artifacts: Sequence[Artifact]) -> dict[str, bytes]:
        """Read all files of a deliverable, path → content, in its order; raises as `get` does.

        Equal contents are read once. The limits of a deliverable bound the memory, and are checked first.
        """
        _check_listing([(artifact.path, artifact.bytes) for artifact in artifacts])
        contents: dict[tuple[str, int], bytes] = {}

        async def read(artifact: Artifact) -> None:
            contents[artifact.sha256, artifact.bytes] = await self.get(agent, artifact)

        await _each(read, {(artifact.sha256, artifact.bytes): artifact for artifact in artifacts}.values())
        return {artifact.path: contents[artifact.sha256, artifact.bytes] for artifact in artifacts}

    async def _from_bucket(self, agent: str, artifact: Artifact) -> bytes:
        found = await self._last(agent, artifact.sha256)
        if found is None:
            raise await self._why_gone(agent, artifact)
        where = _where(agent, artifact)
        info = _parse(found)
        if info is None or not _names(info, artifact.sha256, artifact.bytes):
            raise DeliverableCorruptError(f"{where} is not what the deliverable names: other size, digest or form")
        data = await self._chunks(agent, info, where)
        if hashlib.sha256(data).hexdigest() != artifact.sha256:
            raise DeliverableCorruptError(f"{where} has another sha256 than the deliverable gives")
        return data

    async def _store(self, agent: str, sha256: str, data: bytes) -> None:
        for _ in range(_UPLOAD_TRIES):
            found = await self._last(agent, sha256)
            if found is not None and self._serves(found, sha256, len(data)):
                return
            try:
                await self._upload(agent, sha256, data, replaced=found.sequence if found else 0)
            except KeyChangedError:
                continue  # by a writer of the same content, as a rule: then it serves
            except MessagingRefusedError as error:
                raise _explained(error, agent) from error
            return
        raise DeliverableCorruptError(f"{artifact_bucket(agent)}: others keep replacing the object {sha256}")

    def _serves(self, found: StoredMessage, sha256: str, size: int) -> bool:
        """Whether what is stored is this content, and will be for long enough."""
        info = _parse(found)
        return info is not None and _names(info, sha256, size) and self._now() - found.stored_at < REUSE

    async def _upload(self, agent: str, sha256: str, data: bytes, *, replaced: int) -> None:
        """Chunks first, each acknowledged before the next: an object is visible when the last message is stored."""
        bucket, stream, upload = artifact_bucket(agent), artifact_stream(agent).name, secrets.token_hex(11)
        starts = range(0, len(data), CHUNK_BYTES)
        for start in starts:
            await self._client.publish(
                f"$O.{bucket}.C.{upload}",
                data[start : start + CHUNK_BYTES],
                message_id=f"{upload}.{start}",
                stream=stream,
            )
        await failpoint("artifact.after_chunks")
        info = _Object(
            name=sha256,
            bucket=bucket,
            nuid=upload,
            size=len(data),
            chunks=len(starts),
            digest=_digest(sha256),
            mtime=self._now(),
        )
        body = to_json(info, exclude={"deleted"})
        await publish_at(self._client, _meta_subject(agent, sha256), body, stream=stream, revision=replaced)

    async def _last(self, agent: str, sha256: str) -> StoredMessage | None:
        try:
            return await self._client.fetch_by_subject(artifact_stream(agent).name, _meta_subject(agent, sha256))
        except DeliverableNotFoundError:
            return None

    async def _chunks(self, agent: str, info: _Object, where: str) -> bytes:
        subject, stream = f"$O.{artifact_bucket(agent)}.C.{info.nuid}", artifact_stream(agent).name
        data, sequence = bytearray(), 0
        while len(data) < info.size:
            try:
                chunk = await self._client.fetch_next(stream, subject, sequence + 1)
            except DeliverableNotFoundError as error:
                raise DeliverableCorruptError(f"{where} ends after {len(data):,} of {info.size:,} bytes") from error
            if len(chunk.data) != min(CHUNK_BYTES, info.size - len(data)):  # byte by byte, it would take days
                raise DeliverableCorruptError(f"{where} is not stored in chunks of {CHUNK_BYTES:,} bytes")
            data += chunk.data
            sequence = chunk.sequence
        return bytes(data)

    async def _why_gone(self, agent: str, artifact: Artifact) -> Exception:
        state, where = await self._state(agent), _where(agent, artifact)
        if _has_dropped(state):
            return DeliverableExpiredError(f"{where} is no longer kept: the bucket begins at {state['first_ts']}")
        return DeliverableNotFoundError(f"{where} has never been stored")

    async def _state(self, agent: str) -> dict[str, Any]:
        state: dict[str, Any] = (await self._client.api(f"STREAM.INFO.{artifact_stream(agent).name}"))["state"]
        return state


def _has_dropped(state: Mapping[str, Any]) -> bool:
    """Nobody can delete, so a bucket that has dropped messages has dropped them for their age."""
    first: int = state["first_seq"]
    return first > 1


def media_type(path: str) -> str:
    """The media type that a file's name suggests, the same on every system."""
    kind, encoding = _types().guess_type(path)
    return "application/octet-stream" if kind is None or encoding is not None else kind


@cache
def _types() -> mimetypes.MimeTypes:
    """Python's own table, without the system's files, and ours on top."""
    types = mimetypes.MimeTypes()
    for extension, kind in _TYPES.items():
        types.add_type(kind, extension)
    return types


def _list(files: Mapping[str, bytes]) -> list[Artifact]:
    return [
        Artifact(path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), media_type=media_type(path))
        for path, data in sorted(files.items())
    ]


def _check_listing(files: Sequence[tuple[str, int]]) -> None:
    """Refuse what no deliverable may hold: by number, by bytes, by a path, by two paths that are one somewhere."""
    if len(files) > MAX_ARTIFACTS:
        raise ArtifactInvalidError(f"{len(files):,} files; a deliverable has at most {MAX_ARTIFACTS:,}")
    if (total := sum(size for _, size in files)) > MAX_ARTIFACT_BYTES:
        raise ArtifactInvalidError(f"{total:,} bytes of files; a deliverable has at most {MAX_ARTIFACT_BYTES:,}")
    taken: dict[str, str] = {}
    for path, _ in files:
        try:
            plain = check_artifact_path(path) == path
        except ValueError as error:
            raise ArtifactInvalidError(str(error)) from error
        if not plain:
            raise ArtifactInvalidError(f"the path {path!r} is not a plain relative path such as 'src/app.py'")
        if (other := taken.get(path.casefold())) is not None:
            raise ArtifactInvalidError(f"the paths {other!r} and {path!r} are one file where case does not count")
        taken[path.casefold()] = path
    _check_folders(taken)


def _check_folders(taken: Mapping[str, str]) -> None:
    for folded, path in taken.items():
        parts = folded.split("/")
        for end in range(1, len(parts)):
            if (file := taken.get("/".join(parts[:end]))) is not None:
                raise ArtifactInvalidError(f"{file!r} is a file, but {path!r} needs it as a folder")


def _check_agent(agent: str) -> None:
    try:
        check_slug(agent)
    except ValueError as error:
        raise ArtifactInvalidError(f"{agent!r} is no agent's name: {error}") from error


def _meta_subject(agent: str, sha256: str) -> str:
    return f"$O.{artifact_bucket(agent)}.M.{base64.urlsafe_b64encode(sha256.encode()).decode()}"


def _digest(sha256: str) -> str:
    return _DIGEST + base64.urlsafe_b64encode(bytes.fromhex(sha256)).decode()


def _parse(message: StoredMessage) -> _Object | None:
    """`None` for what is no object's message: only a bucket's owner can have written it."""
    try:
        return _Object.model_validate_json(message.data)
    except ValidationError:
        return None


def _names(info: _Object, sha256: str, size: int) -> bool:
    """Whether it says that it is that content; the upload's name becomes a subject, so it must be plain."""
    says = (info.name, info.size, info.digest, info.deleted) == (sha256, size, _digest(sha256), False)
    return says and _UPLOAD.fullmatch(info.nuid) is not None


def _where(agent: str, artifact: Artifact) -> str:
    return f"{artifact.path} ({artifact_bucket(agent)}/{artifact.sha256})"


def _explained(error: MessagingRefusedError, agent: str) -> MessagingRefusedError:
    if error.err_code != STREAM_FULL:
        return error
    spec = artifact_stream(agent)
    return MessagingRefusedError(
        f"the bucket {artifact_bucket(agent)} is full: it keeps at most {spec.max_bytes:,} bytes",
        err_code=error.err_code,
        hint=f"files leave it after {spec.max_age_seconds // 86_400} days; `coatcheck streams` shows how full it is",
    )


async def _each(work: Callable[[_T], Awaitable[None]], items: Iterable[_T]) -> None:
    """Do `work` for every item, a bounded number at a time; the first failure ends all and is raised as it is."""
    queue = iter(items)

    async def take() -> None:
        for item in queue:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENT_FILES):
                group.create_task(take())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures

"""Finds earlier deliverables that are like one: texts from NATS as `observer`, the rest from PostgreSQL."""

import asyncio
from pathlib import Path
from typing import Final

from coatcheck.cli.output import columns, emit, emit_json, moment, one_line
from coatcheck.cli.reading import named_deliverable, split_message
from coatcheck.cli.session import load_settings, open_database, open_nats
from coatcheck.cli.voice import tell
from coatcheck.config import load_config
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.similarity.embedding import open_embedder
from coatcheck.similarity.search import Found, nearest
from coatcheck.similarity.vectors import FILE, VectorCache
from coatcheck.storage import state
from schemas.deliverable import DeliverableRef

_SUMMARY_SHOWN: Final = 60


async def similar(message: str, *, task_type: str | None, limit: int, as_json: bool, data_dir: Path) -> None:
    """Print the earlier deliverables of other features that are most like one.

    Raises:
        MisuseError: `message` names nothing that can be fetched.
        DeliverableError: it does not exist (any more), or is corrupt.
        EmbeddingError: there is no model, or it refuses.
        DependencyDownError: a server or the endpoint does not answer.
    """
    split_message(message)  # a mistake is told before anybody is asked
    settings = load_settings(data_dir)
    embedder = await asyncio.to_thread(
        open_embedder, settings.embedding_model, api_key=settings.openai_api_key, base_url=settings.openai_base_url
    )
    known = load_config(settings.config_file).streams
    async with open_nats(settings) as client, open_database(settings) as pool:
        service = DeliverableService(client, streams=known)
        asked = await named_deliverable(service, message, known)

        async def read(ref: DeliverableRef) -> str:
            return (await service.fetch(ref)).deliverable.content

        earlier = await state.earlier_deliverables(
            pool, asked.ref, feature=asked.deliverable.metadata.feature, task_type=task_type
        )
        cache = VectorCache(settings.data_dir / FILE, embedder.name)
        found = await nearest(
            asked.deliverable.content, earlier, read=read, embedder=embedder, cache=cache, limit=limit
        )
    _show(found, as_json=as_json)
    tell(f"compared with {found.compared} earlier ones by {embedder.name}")
    if found.gone:
        tell(f"{found.gone} more are not on their streams any more")


def _show(found: Found, *, as_json: bool) -> None:
    if as_json:
        lines = [{"similarity": match.similarity, **match.record.model_dump(mode="json")} for match in found.matches]
        emit_json(lines)
        return
    header = ("similarity", "stage", "message", "subject", "when", "summary")
    cells = [
        [
            f"{match.similarity:.2f}",
            match.record.stage,
            f"{match.record.ref.stream}:{match.record.ref.sequence}",
            match.record.subject,
            moment(match.record.completed_at),
            one_line(match.record.summary, _SUMMARY_SHOWN),
        ]
        for match in found.matches
    ]
    emit(columns(header, cells))

"""Nearest texts: the order, what is read once, what is gone, and the two kinds of models."""

import json
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr

from coatcheck.errors import DeliverableExpiredError, DependencyDownError
from coatcheck.similarity import embedding
from coatcheck.similarity.embedding import EmbeddingError, EndpointEmbedder, LocalEmbedder, open_embedder
from coatcheck.similarity.search import BATCH, nearest
from coatcheck.similarity.vectors import Vector, VectorCache
from coatcheck.storage.state import DeliverableRecord
from schemas.deliverable import DeliverableRef


class LetterEmbedder:
    """Counts letters; remembers what it was asked."""

    name = "letters"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One direction per letter."""
        self.asked += texts
        counts = [[text.count(letter) for letter in "abc"] for text in texts]
        return [embedding._normalised(count) for count in counts]


def record(number: int) -> DeliverableRecord:
    """A recorded deliverable; its body is found by its sequence."""
    ref = DeliverableRef(stream="agog_features_research", sequence=number, sha256=f"{number:064x}", bytes=1)
    return DeliverableRecord(
        run_key=f"run/{number}",
        task_key=f"run/{number}/research-1",
        agent="cynthia",
        stage="research",
        task_type="research",
        round=1,
        subject=f"agog.deliverables.cynthia.research.feature-{number}",
        summary="",
        verdict=None,
        ref=ref,
        files=0,
        completed_at=datetime(2026, 11, 1, tzinfo=UTC),
    )


class Bodies:
    """Deliverables on a stream; counts how often each is read."""

    def __init__(self, *texts: str | None) -> None:
        self.texts = texts
        self.read: list[int] = []

    async def __call__(self, ref: DeliverableRef) -> str:
        """The text; one that is `None` was dropped by retention."""
        self.read.append(ref.sequence)
        text = self.texts[ref.sequence]
        if text is None:
            raise DeliverableExpiredError("gone")
        return text

    @property
    def records(self) -> list[DeliverableRecord]:
        """One per text."""
        return [record(number) for number in range(len(self.texts))]


async def test_the_nearest_come_first_and_what_is_gone_is_counted(tmp_path: Path) -> None:
    """By direction, not by length."""
    bodies = Bodies("bbb", "aaaaaaab", None, "aab")
    found = await nearest(
        "aaaa",
        bodies.records,
        read=bodies,
        embedder=LetterEmbedder(),
        cache=VectorCache(tmp_path / "x" / "vectors", "letters"),
        limit=2,
    )
    assert [match.record.ref.sequence for match in found.matches] == [1, 3]
    assert found.matches[0].similarity == pytest.approx(7 / 50**0.5)
    assert (found.compared, found.gone) == (3, 1)


async def test_a_body_is_read_and_embedded_once(tmp_path: Path) -> None:
    """Also by another process; one that is gone now, but was compared before, still is."""
    bodies = Bodies(*["abc"[: number % 3 + 1] for number in range(BATCH + 3)])
    embedder = LetterEmbedder()
    for _ in range(2):
        cache = VectorCache(tmp_path / "vectors", embedder.name)
        found = await nearest("a", bodies.records, read=bodies, embedder=embedder, cache=cache, limit=1)
        assert found.matches[0].similarity == pytest.approx(1)
        assert found.compared == BATCH + 3
    assert sorted(bodies.read) == list(range(BATCH + 3))
    assert len(embedder.asked) == BATCH + 3 + 2
    other = VectorCache(tmp_path / "vectors", "another model")
    assert other.get([entry.ref.sha256 for entry in bodies.records]) == {}


async def test_what_was_done_before_a_failure_is_kept(tmp_path: Path) -> None:
    """The second time goes on behind the first batch."""
    bodies = Bodies(*["abc"] * (BATCH + 1))
    cache = VectorCache(tmp_path / "vectors", "letters")

    class Failing(LetterEmbedder):
        async def embed(self, texts: Sequence[str]) -> list[Vector]:
            if len(texts) < BATCH:
                raise EmbeddingError("no more")
            return await super().embed(texts)

    with pytest.raises(EmbeddingError):
        await nearest("a", bodies.records, read=bodies, embedder=Failing(), cache=cache, limit=1)
    assert len(cache.get([entry.ref.sha256 for entry in bodies.records])) == BATCH


async def test_the_model_of_this_machine_knows_what_texts_are_about() -> None:
    """Without the network; length 1, whatever the text is."""
    model = LocalEmbedder()
    texts = [
        "Export invoices as PDF and CSV files for accounting.",
        "Bills can be downloaded as spreadsheet or document by the finance team.",
        "A map that shows tomorrow's weather with rain and wind.",
        "",
        "\ud800 x \0",
        "word " * 200_000,
    ]
    vectors = await model.embed(texts)
    assert {len(vector) for vector in vectors} == {256}
    assert all(sum(value * value for value in vector) == pytest.approx(1, abs=1e-3) for vector in vectors[:3])
    near, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:3])
    assert near > far + 0.1


def test_without_the_extra_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """And an endpoint is one."""

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(embedding.importlib, "import_module", missing)
    with pytest.raises(EmbeddingError) as refused:
        open_embedder(None, api_key=None, base_url=None)
    assert "coatcheck[embeddings]" in (refused.value.hint or "")
    assert open_embedder("small", api_key=None, base_url="http://127.0.0.1:1/v1").name == "http://127.0.0.1:1/v1:small"


@pytest.fixture
def endpoint() -> Iterator[str]:
    """An endpoint that gives vectors in the wrong order, and refuses the model `unknown`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            vectors = [
                {"index": n, "embedding": [1, 0] if text == "a" else [0, 2], "object": "embedding"}
                for n, text in enumerate(asked["input"])
            ]
            answer = {
                "data": vectors[::-1],
                "model": asked["model"],
                "object": "list",
                "usage": {"prompt_tokens": 1, "total_tokens": 1},
            }
            known = asked["model"] != "unknown"
            body = json.dumps(answer if known else {"error": {"message": "no such model"}}).encode()
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_an_endpoint(endpoint: str) -> None:
    """Vectors of length 1 in the order of the texts; its refusal and its absence are told apart."""
    key = SecretStr("sk-test")
    vectors = await EndpointEmbedder("small", api_key=key, base_url=endpoint).embed(["a", "bb"])
    assert [vector.tolist() for vector in vectors] == [[1, 0], [0, 1]]
    with pytest.raises(EmbeddingError, match="no such model"):
        await EndpointEmbedder("unknown", api_key=key, base_url=endpoint).embed(["a"])
    with pytest.raises(DependencyDownError):
        await EndpointEmbedder("small", api_key=key, base_url="http://127.0.0.1:1/v1").embed(["a"])

"""Texts as vectors: by a small model on this machine, or by an endpoint that speaks OpenAI's protocol.

The local one is WordLlama, whose wheel carries its weights (16 MB): a table of token vectors, averaged, so it needs
neither a GPU nor torch, and no network. It knows what a text is about, not what it argues. Nothing leaves the machine
unless an endpoint is set.
"""

import asyncio
import importlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import SecretStr

from coatcheck.errors import CoatcheckError, DependencyDownError
from coatcheck.similarity.vectors import Vector

MAX_CHARACTERS: Final = 24_000
"""Of each text: some 6,000 tokens, what common endpoints take at most being 8,192."""
ENDPOINT_SECONDS: Final = 60.0


class EmbeddingError(CoatcheckError):
    """A text cannot be made a vector."""

    code = "embedding.failed"


class Embedder(Protocol):
    """Makes vectors of length 1."""

    @property
    def name(self) -> str:
        """Of the model; vectors of two models cannot be compared."""

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One vector per text.

        Raises:
            EmbeddingError: the model refuses.
            DependencyDownError: the endpoint does not answer.
        """


class LocalEmbedder:
    """The model of the extra `embeddings`.

    Raises:
        EmbeddingError: the extra is not installed.
    """

    name: Final = "wordllama:l2_supercat:256"

    def __init__(self) -> None:
        try:
            wordllama = importlib.import_module("wordllama")
        except ImportError as error:
            raise EmbeddingError(
                "no model for embeddings is installed here",
                hint="pip install 'coatcheck[embeddings]', or name a model of your endpoint: COATCHECK_EMBEDDING_MODEL",
            ) from error
        # Its own folder as the cache: it looks for the tokenizer that it ships in a folder that does not exist, and
        # would fetch it from the network.
        shipped = Path(str(wordllama.__file__)).parent
        self._model: Any = wordllama.WordLlama.load(cache_dir=shipped, disable_download=True)

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """A millisecond per text of some pages."""
        vectors = await asyncio.to_thread(self._model.embed, [_cut(text) for text in texts], norm=True)
        return [array("f", vector.tolist()) for vector in vectors]


class EndpointEmbedder:
    """A model of an endpoint, such as `text-embedding-3-small`."""

    def __init__(self, model: str, *, api_key: SecretStr | None, base_url: str | None) -> None:
        self.name = f"{base_url or 'openai'}:{model}"
        self._model = model
        self._api_key = api_key.get_secret_value() if api_key else "none"
        self._base_url = base_url

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One request for all of them."""
        import openai  # noqa: PLC0415  it takes 0.8 s

        client = openai.AsyncOpenAI(
            api_key=self._api_key, base_url=self._base_url, timeout=ENDPOINT_SECONDS, max_retries=1
        )
        try:
            async with client:
                answer = await client.embeddings.create(
                    model=self._model, input=[_cut(text) for text in texts], encoding_format="float"
                )
        except openai.APIConnectionError as error:
            raise DependencyDownError(f"the endpoint for embeddings does not answer: {error}") from error
        except openai.APIStatusError as error:
            raise EmbeddingError(f"the endpoint refuses {self._model}: {error.message}") from error
        if len(answer.data) != len(texts):
            raise EmbeddingError(f"{len(answer.data)} vectors came for {len(texts)} texts")
        return [_normalised(item.embedding) for item in sorted(answer.data, key=lambda item: item.index)]


def open_embedder(model: str | None, *, api_key: SecretStr | None, base_url: str | None) -> Embedder:
    """The endpoint's model when one is named, else the local one.

    Raises:
        EmbeddingError: there is none.
    """
    return EndpointEmbedder(model, api_key=api_key, base_url=base_url) if model else LocalEmbedder()


def _cut(text: str) -> str:
    """What a model takes; an empty text has no direction."""
    return text[:MAX_CHARACTERS].encode("utf-8", "replace").decode() or " "


def _normalised(vector: Sequence[float]) -> Vector:
    length = sum(value * value for value in vector) ** 0.5 or 1.0
    return array("f", (value / length for value in vector))

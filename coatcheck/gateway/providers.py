"""Model providers behind the LLM proxy: names to pydantic-ai models, with SDK retries off.

Retries belong to the journal and to Temporal: an SDK that retries by itself would pay twice without a trace.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from pydantic import SecretStr
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model, infer_model

from coatcheck.agents.scripted import ScriptedModel
from coatcheck.gateway.prices import SCRIPTED, PriceTable, openai_endpoints
from coatcheck.gateway.provider_errors import ProviderFailure, classify
from coatcheck.redaction import redacted
from schemas.config import Price

if TYPE_CHECKING:  # each SDK takes 0.8 s to import, so a gateway imports only the ones it uses
    import anthropic
    import openai

DEFAULT_OPENAI_MODEL: Final = "openai:gpt-5-mini"
DEFAULT_ANTHROPIC_MODEL: Final = "anthropic:claude-sonnet-5-5"
"""Its predecessor 4.5 is switched off on 30 November 2026 (the SDK warns)."""


class Providers:
    """Resolves `provider:model` names; holds the keys, which no agent ever sees, and the connections.

    An async context manager: leaving it closes the connections of the clients that it has made.
    """

    def __init__(
        self,
        *,
        models: Sequence[str],
        openai_api_key: SecretStr | None,
        openai_base_url: str | None,
        anthropic_api_key: SecretStr | None,
        timeout_seconds: float,
        scripted: ScriptedModel,
        prices: Mapping[str, Price] | None = None,
        also: Iterable[str] = (),
    ) -> None:
        self.prices = PriceTable(prices or {}, own_endpoints=openai_endpoints(openai_base_url))
        """Of the configuration, then of the bundled table."""
        self._openai_api_key = openai_api_key
        self._openai_base_url = openai_base_url
        self._anthropic_api_key = anthropic_api_key
        self.timeout_seconds = timeout_seconds
        """Most time that one call may take, from connecting to the last byte."""
        self._models: dict[str, Model] = {SCRIPTED: scripted}
        self._clients: list[openai.AsyncOpenAI | anthropic.AsyncAnthropic] = []
        self.chain = tuple(models) or (self._best_default(),)
        """Asked by turns that name no models of their own, in this order; what the keys allow when none were given."""
        self.allowed = frozenset((*self.chain, *also))
        """What any turn may name: an agent that was taken over must not choose a dearer model."""

    async def __aenter__(self) -> Self:
        with contextlib.suppress(UserError):  # whoever asks for it is told
            self.model(self.chain[0])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            await client.close()

    def explain(self, error: Exception) -> ProviderFailure:
        """What a failed call means, in words that are stored and shown: without keys, which some providers repeat."""
        failure = classify(error)
        keys = (self._openai_api_key, self._anthropic_api_key)
        text = redacted(failure.message, [key.get_secret_value() for key in keys if key is not None])
        return replace(failure, message=text)

    def _best_default(self) -> str:
        if self._openai_api_key or self._openai_base_url:
            return DEFAULT_OPENAI_MODEL
        return DEFAULT_ANTHROPIC_MODEL if self._anthropic_api_key else SCRIPTED

    def model(self, name: str) -> Model:
        """The model of that name.

        Raises:
            UserError: the provider is unknown, not installed, or has no key.
        """
        if name not in self._models:
            self._models[name] = self._create(name)
        return self._models[name]

    def _create(self, name: str) -> Model:
        provider, _, model_name = name.partition(":")
        if provider == "openai" and model_name:
            return self._openai(model_name)
        if provider == "anthropic" and model_name:
            return self._anthropic(model_name)
        try:
            return infer_model(name)
        except ImportError as error:
            raise UserError(f"{name}: {error}") from error

    def _openai(self, model_name: str) -> Model:
        import openai  # noqa: PLC0415
        from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415
        from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415

        if self._openai_api_key is None and self._openai_base_url is None:
            raise UserError("no OpenAI key: set OPENAI_API_KEY where the gateway worker runs")
        # Local endpoints want no key, but the SDK does.
        key = self._openai_api_key.get_secret_value() if self._openai_api_key else "none"
        client = openai.AsyncOpenAI(
            api_key=key, base_url=self._openai_base_url, max_retries=0, timeout=self.timeout_seconds
        )
        self._clients.append(client)
        return OpenAIChatModel(model_name, provider=OpenAIProvider(openai_client=client))

    def _anthropic(self, model_name: str) -> Model:
        import anthropic  # noqa: PLC0415
        from pydantic_ai.models.anthropic import AnthropicModel  # noqa: PLC0415
        from pydantic_ai.providers.anthropic import AnthropicProvider  # noqa: PLC0415

        if self._anthropic_api_key is None:
            raise UserError("no Anthropic key: set ANTHROPIC_API_KEY where the gateway worker runs")
        client = anthropic.AsyncAnthropic(
            api_key=self._anthropic_api_key.get_secret_value(), max_retries=0, timeout=self.timeout_seconds
        )
        self._clients.append(client)
        return AnthropicModel(model_name, provider=AnthropicProvider(anthropic_client=client))

    def cost_usd(self, name: str, response: ModelResponse) -> Decimal | None:
        """Price of one answer; `None` when no price is known, which is not 0."""
        usage = response.usage
        return self.prices.cost_usd(
            name,
            tokens_in=usage.input_tokens,
            tokens_out=usage.output_tokens,
            tokens_cached=usage.cache_read_tokens,
            response=response,
        )

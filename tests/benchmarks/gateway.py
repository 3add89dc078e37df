"""The gateway worker with a model that costs nothing: `python -m tests.benchmarks.gateway`.

It is the product's own gateway but for the provider, which answers at once, or after a fixed time, with a prepared
report. So the figures are what the orchestration costs, and not what the scripted author does to write a text.
"""

import asyncio
import functools
import os
import random
from pathlib import Path
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from coatcheck.gateway.prices import SCRIPTED
from coatcheck.gateway.providers import Providers
from coatcheck.settings import Settings
from schemas.roles import SUBMIT_REPORT
from workers import gateway
from workers.runner import run_main

ROOT = Path(__file__).parents[2]
WORDS = " ".join(path.read_text() for path in sorted(ROOT.glob("docs/**/*.md"))).split()
"""As often as people use them, but in an order of their own: the stores compress, and no report is like another."""
VERDICTS: dict[str, dict[str, Any]] = {
    'kind="review" round="1"': {
        "verdict": "revise",
        "findings": [{"id": "F1", "severity": "major", "where": "R1", "claim": "vague", "wanted_change": "a number"}],
    },
    'kind="review"': {"verdict": "approve"},
    'kind="test"': {"verdict": "pass"},
}


class PreparedModel(Model):
    """Submits a report of a fixed size; the critique revises once, as the scripted author does."""

    def __init__(self, *, latency_seconds: float, report_bytes: int) -> None:
        super().__init__()
        self._latency_seconds = latency_seconds
        self._report_bytes = report_bytes
        self._random = random.Random()

    @property
    def model_name(self) -> str:
        """For the journal."""
        return "prepared"

    @property
    def system(self) -> str:
        """For telemetry."""
        return "benchmark"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,  # noqa: ARG002
        model_request_parameters: ModelRequestParameters,  # noqa: ARG002
    ) -> ModelResponse:
        """The one answer."""
        if self._latency_seconds:
            await asyncio.sleep(self._latency_seconds)
        words = self._random.choices(WORDS, k=self._report_bytes // 4)
        report = " ".join(words).encode()[: self._report_bytes].decode(errors="ignore")
        arguments = {"report": report, "summary": "Prepared report for a benchmark.", "complexity": "Medium"}
        call = ToolCallPart(SUBMIT_REPORT, {**arguments, **_verdict(str(messages[0].parts[-1].content))}, "call-1")
        usage = RequestUsage(input_tokens=5000, output_tokens=5000)
        return ModelResponse(parts=[call], usage=usage, model_name="prepared")


def _verdict(prompt: str) -> dict[str, Any]:
    head = prompt[: prompt.index(">")]
    stage = next(part for part in head.split() if part.startswith("kind="))
    number = next(part for part in head.split() if part.startswith("round="))
    return VERDICTS.get(f"{stage} {number}") or VERDICTS.get(stage) or {}


class PreparedProviders(Providers):
    """The prepared model under the name of the scripted one, which costs 0 as well."""

    def model(self, name: str) -> Model:
        """The prepared model."""
        assert name == SCRIPTED
        return _MODEL


_MODEL = PreparedModel(
    latency_seconds=float(os.environ["BENCH_LATENCY_SECONDS"]), report_bytes=int(os.environ["BENCH_REPORT_BYTES"])
)

if __name__ == "__main__":
    gateway.Providers = PreparedProviders  # type: ignore[misc]
    settings = Settings()
    run_main("gateway", functools.partial(gateway.run, settings), settings)

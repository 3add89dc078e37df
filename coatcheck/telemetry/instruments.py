"""What is measured: every metric of ours with its name, unit, buckets and labels, and a method per thing that happens.

Names and labels of what everybody measures come from the semantic conventions, ours are under `coatcheck.*` with UCUM
units. No label names a run, a task or a person: a label's values are stages, agents, models, streams and outcomes, so
the number of series does not grow with the work. Without a provider the meter is the API's own, which does nothing.

What runs do is counted where their rows are written, once per step and from what the step says anyway; a step that is
made again, since its worker died, is counted again by the worker that makes it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import chain, product
from typing import Final, TypeAlias

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import error_attributes

from schemas import events
from schemas.activities import RecordInput
from schemas.events import SystemEvent, TurnCompleted
from schemas.notice import MAX_NOTICE_BYTES
from schemas.pipeline import Pipeline, RunStatus
from schemas.streams import StreamSpec, StreamStatus

STAGE_DURATION: Final = "coatcheck.stage.duration"
STAGE_ROUNDS: Final = "coatcheck.stage.rounds"
RUN_DURATION: Final = "coatcheck.run.duration"
RUNS_STARTED: Final = "coatcheck.run.started"
RUNS_ENDED: Final = "coatcheck.run.ended"
NOTICE_SIZE: Final = "coatcheck.notice.size"
DELIVERABLE_SIZE: Final = "coatcheck.deliverable.size"
TURN_COST: Final = "coatcheck.turn.cost"
TURNS_UNPRICED: Final = "coatcheck.turn.unpriced"
CALLS_PAID_AGAIN: Final = "coatcheck.call.paid_again"
BREAKER_STATE: Final = "coatcheck.breaker.state"
BUDGET_REFUSED: Final = "coatcheck.budget.refused"
LEDGER_IMBALANCE: Final = "coatcheck.ledger.imbalance"
BACKBONE_UP: Final = "coatcheck.backbone.up"
PROJECTOR_LAG: Final = "coatcheck.projector.lag"
TRACER_LAG: Final = "coatcheck.tracer.lag"
DEAD_LETTERS: Final = "coatcheck.dead_letters"
STREAM_SIZE: Final = "coatcheck.stream.size"
STREAM_SIZE_LIMIT: Final = "coatcheck.stream.size.limit"
STREAM_MESSAGES: Final = "coatcheck.stream.messages"
STREAM_AGE: Final = "coatcheck.stream.age"
STREAM_AGE_LIMIT: Final = "coatcheck.stream.age.limit"

STAGE: Final = "coatcheck.stage"
AGENT: Final = "coatcheck.agent"
OUTCOME: Final = "coatcheck.outcome"
STREAM: Final = "coatcheck.stream"

LLM_SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
"""A provider call may take 10 minutes, a round an hour (`STAGE_START_TO_CLOSE`)."""
RUN_SECONDS: Final = (1, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 43_200, 86_400)
"""A run waits for people, too."""
NOTICE_BYTES: Final = (128, 256, 384, 512, 640, 768, 896, MAX_NOTICE_BYTES)
DELIVERABLE_BYTES: Final = tuple(1024 * 4**power for power in range(8))
"""1 KiB to 16 MiB; the largest deliverable has 10."""
TOKENS: Final = tuple(4**power for power in range(14))
"""As the conventions ask for: 1 to 67,108,864."""

_BREAKER_STATES: Final[Mapping[str, int]] = {"closed": 0, "half_open": 1, "open": 2}
_OPEN: Final = (RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.WAITING)
_ROUND_OUTCOMES: Final = ("completed", "failed", "cancelled")
_RoundEnded: TypeAlias = events.StageCompleted | events.StageFailed | events.StageCancelled
_RUN_ENDED: Final = (
    events.RunCompleted,
    events.RunRejected,
    events.RunExpired,
    events.RunCancelled,
    events.RunFailed,
)


class RunInstruments:
    """Runs and stages, as the core worker records them.

    Args:
        meter: Of the process.
        pipelines: Whose stages are counted. Counters are there from the beginning, at 0: of one that appears at 1,
            Prometheus does not see the step.
    """

    def __init__(self, meter: Meter, pipelines: Iterable[Pipeline] = ()) -> None:
        self._stages = _seconds(meter, STAGE_DURATION, "From order to notice, failure or cancellation.", LLM_SECONDS)
        self._runs = _seconds(meter, RUN_DURATION, "From start to end of a run.", RUN_SECONDS)
        self._started = meter.create_counter(RUNS_STARTED, "{run}", "Runs that began.")
        self._finished = meter.create_counter(RUNS_ENDED, "{run}", "Runs that ended.")
        self._rounds = meter.create_counter(STAGE_ROUNDS, "{round}", "Rounds that ended.")
        self._notices = _bytes(meter, NOTICE_SIZE, "Notices on the wire.", NOTICE_BYTES)
        self._deliverables = _bytes(meter, DELIVERABLE_SIZE, "Deliverables as published.", DELIVERABLE_BYTES)
        self._cost = meter.create_counter(TURN_COST, "{USD}", "Of turns whose price is known.")
        self._unpriced = meter.create_counter(TURNS_UNPRICED, "{turn}", "Turns whose price is not known.")
        self._started.add(0)
        self._unpriced.add(0)
        for status in RunStatus:
            if status not in _OPEN:
                self._finished.add(0, {OUTCOME: status.value})
        for stage, outcome in product(chain.from_iterable(pipeline.stages for pipeline in pipelines), _ROUND_OUTCOMES):
            self._rounds.add(0, {STAGE: stage.name, AGENT: stage.agent, OUTCOME: outcome})

    def recorded(self, step: RecordInput, turns: Iterable[TurnCompleted]) -> None:
        """A step of a run was stored, and with it the turns of the rounds that it ended."""
        begun = {task.task_key: task.started_at for task in step.tasks}
        for event in step.events:
            self._happened(event, begun, step.run.started_at)
        for turn in turns:
            self._paid(turn)

    def _happened(self, event: SystemEvent, begun: Mapping[str, datetime], run_began: datetime) -> None:
        match event:
            case events.RunStarted():
                self._started.add(1)
            case events.StageCompleted():
                self._completed(event)
                self._ended(event, begun)
            case events.StageFailed() | events.StageCancelled():
                self._ended(event, begun)
            case _ if isinstance(event, _RUN_ENDED):
                labels = {OUTCOME: event.payload.run.status}
                self._finished.add(1, labels)
                self._runs.record((event.occurred_at - run_began).total_seconds(), labels)

    def _completed(self, event: events.StageCompleted) -> None:
        notice, labels = event.payload.notice, {STAGE: event.payload.stage, AGENT: event.agent or ""}
        self._notices.record(len(notice.to_wire()), labels)
        self._deliverables.record(notice.metadata.bytes, labels)

    def _ended(self, event: _RoundEnded, begun: Mapping[str, datetime]) -> None:
        outcome = event.event_type.rpartition(".")[2]
        labels = {STAGE: event.payload.stage, AGENT: event.agent or "", OUTCOME: outcome}
        self._rounds.add(1, labels)
        began = begun.get(event.entity_id)
        if began is not None:
            self._stages.record((event.occurred_at - began).total_seconds(), labels)

    def _paid(self, turn: TurnCompleted) -> None:
        said = turn.payload
        labels = {STAGE: said.stage, AGENT: turn.agent or "", gen_ai.GEN_AI_REQUEST_MODEL: said.model}
        if said.cost_usd is None:
            self._unpriced.add(1, labels)
        else:
            self._cost.add(float(said.cost_usd), labels)


class ModelInstruments:
    """Provider calls, as the gateway makes them.

    Args:
        meter: Of the process.
        models: `provider:model` of every model that may be asked; each is there from the beginning, closed.
    """

    def __init__(self, meter: Meter, models: Iterable[str]) -> None:
        self._seconds = _seconds(
            meter, gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION, "Provider calls, failed ones too.", LLM_SECONDS
        )
        self._tokens = meter.create_histogram(
            gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE,
            "{token}",
            "Tokens of answered calls.",
            explicit_bucket_boundaries_advisory=TOKENS,
        )
        self._again = meter.create_counter(
            CALLS_PAID_AGAIN, "{call}", "Calls whose turn had one before that was lost and may have been paid."
        )
        self._over_budget = meter.create_counter(
            BUDGET_REFUSED, "{turn}", "Turns and calls of tools that no budget had room for."
        )
        self._over_budget.add(0)
        self._breakers = meter.create_gauge(BREAKER_STATE, "1", "0 closed, 1 half open, 2 open.")
        for model in models:
            self._again.add(0, _model(model))
            self.breaker(model, "closed")

    @contextmanager
    def asking(self, model: str) -> Iterator[None]:
        """Around one provider call."""
        labels, began = _model(model), time.perf_counter()
        try:
            yield
        except BaseException as error:
            labels |= {error_attributes.ERROR_TYPE: type(error).__name__}
            raise
        finally:
            self._seconds.record(time.perf_counter() - began, labels)

    def answered(self, model: str, tokens_in: int, tokens_out: int) -> None:
        """A call was answered; cached tokens are among those that went in."""
        for kind, count in (
            (gen_ai.GenAiTokenTypeValues.INPUT, tokens_in),
            (gen_ai.GenAiTokenTypeValues.OUTPUT, tokens_out),
        ):
            self._tokens.record(count, _model(model) | {gen_ai.GEN_AI_TOKEN_TYPE: kind.value})

    def paid_again(self, model: str) -> None:
        """A call is made whose turn had one before that nobody knows the end of."""
        self._again.add(1, _model(model))

    def over_budget(self) -> None:
        """A turn is refused, since no budget has room for it."""
        self._over_budget.add(1)

    def breaker(self, model: str, state: str) -> None:
        """A breaker is `closed`, `half_open` or `open` now."""
        self._breakers.set(_BREAKER_STATES[state], {gen_ai.GEN_AI_REQUEST_MODEL: model})


class BackboneInstruments:
    """The streams, the projector and the dead letters as they were at the last look; nothing is said without one."""

    def __init__(self, meter: Meter) -> None:
        self._up = meter.create_gauge(BACKBONE_UP, "1", "Whether the last look at NATS had an answer.")
        self._values: Mapping[str, Sequence[Observation]] = {}
        for name, unit, description in (
            (PROJECTOR_LAG, "{event}", "Events that are not known to be in the table."),
            (TRACER_LAG, "{event}", "Events whose spans the endpoint is not known to have."),
            (DEAD_LETTERS, "{message}", "Messages that could not be digested."),
            (STREAM_SIZE, "By", "Bytes of a stream."),
            (STREAM_SIZE_LIMIT, "By", "Bytes that a stream may have."),
            (STREAM_MESSAGES, "{message}", "Messages of a stream."),
            (STREAM_AGE, "s", "Age of a stream's oldest message."),
            (STREAM_AGE_LIMIT, "s", "Age at which a stream drops a message."),
        ):
            meter.create_observable_gauge(name, [self._observer(name)], unit, description)

    def looked(
        self,
        *,
        lag: int,
        dead_letters: int,
        streams: Iterable[tuple[StreamSpec, StreamStatus]],
        tracer_lag: int | None = None,
    ) -> None:
        """The backbone has been looked at; `tracer_lag` is `None` where no traces are sent."""
        pairs = [(spec, status, {STREAM: spec.name}) for spec, status in streams]
        self._values = {
            PROJECTOR_LAG: [Observation(lag)],
            TRACER_LAG: [] if tracer_lag is None else [Observation(tracer_lag)],
            DEAD_LETTERS: [Observation(dead_letters)],
            STREAM_SIZE: [Observation(status.bytes, labels) for _, status, labels in pairs],
            STREAM_SIZE_LIMIT: [Observation(spec.max_bytes, labels) for spec, _, labels in pairs],
            STREAM_MESSAGES: [Observation(status.messages, labels) for _, status, labels in pairs],
            STREAM_AGE: [Observation(status.age_seconds, labels) for _, status, labels in pairs],
            STREAM_AGE_LIMIT: [
                Observation(spec.max_age_seconds, labels) for spec, _, labels in pairs if spec.max_age_seconds
            ],
        }
        self._up.set(1)

    def away(self) -> None:
        """NATS did not answer: what was seen before is not true any more."""
        self._values = {}
        self._up.set(0)

    def _observer(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            return self._values.get(name, ())

        return observe


class LedgerInstruments:
    """Whether the ledger adds up."""

    def __init__(self, meter: Meter) -> None:
        self._imbalance = meter.create_gauge(
            LEDGER_IMBALANCE, "{account}", "Accounts that are not what their entries say, and one if all are not zero."
        )

    def looked(self, unbalanced: int) -> None:
        """The ledger has been added up."""
        self._imbalance.set(unbalanced)


def _model(model: str) -> dict[str, str]:
    """The labels of a call: `openai:gpt-5-mini` is a model of a provider."""
    return {
        gen_ai.GEN_AI_OPERATION_NAME: gen_ai.GenAiOperationNameValues.CHAT.value,
        gen_ai.GEN_AI_PROVIDER_NAME: model.partition(":")[0],
        gen_ai.GEN_AI_REQUEST_MODEL: model,
    }


def _seconds(meter: Meter, name: str, description: str, buckets: Sequence[float]) -> Histogram:
    return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=buckets)


def _bytes(meter: Meter, name: str, description: str, buckets: Sequence[float]) -> Histogram:
    return meter.create_histogram(name, "By", description, explicit_bucket_boundaries_advisory=buckets)

"""The LLM proxy: every model call of every agent, each paid once.

A turn is claimed in the journal before the provider is called and completed in the same transaction that stores its
messages, usage and cost. A request for a turn that is journalled is answered from there; one that is in flight is
joined, in this process or in another gateway's. The call belongs to the proxy: when the asking worker dies, it is
finished and journalled all the same, and the worker's successor is given the answer.
"""

import asyncio
import logging

from pydantic import ValidationError

from coatcheck.errors import CoatcheckError, StorageUnavailableError
from coatcheck.gateway.chain import ModelChain
from coatcheck.gateway.turns import Reply, TurnDesk
from coatcheck.storage.journal import TurnJournal
from coatcheck.telemetry.scope import working_on_task
from schemas import errors
from schemas.conversation import TurnError, TurnPending, TurnReply, TurnRequest
from schemas.streams import MAX_DELIVERABLE_BYTES

POLL_SECONDS = 5.0
"""How long a request waits before it is told to ask again. Short, since a dead gateway is noticed by its silence."""
BEAT_SECONDS = 1.5
"""Of the sign of life in `llm_gateways`; a silent gateway's turns are taken over after 6 s."""

_log = logging.getLogger(__name__)


class LLMProxy:
    """Serves `agog.svc.llm.<agent>`; any number of them can run.

    Args:
        turns: Settles them.
        journal: The desk's, for the sign of life.
        chain: The desk's, for its share of the limits and for stopping.
    """

    def __init__(self, turns: TurnDesk, *, journal: TurnJournal, chain: ModelChain) -> None:
        self._turns = turns
        self._journal = journal
        self._chain = chain
        self._calls: dict[tuple[str, str, int], asyncio.Task[bytes]] = {}
        """Turns under way, and those refused whose time to try again has not come; by agent, since nobody may join
        another's."""

    async def beat(self) -> None:
        """Show for ever that this gateway lives; an outage of the database only ends its claims on turns."""
        while True:
            try:
                self._chain.share_with(await self._journal.beat())
            except StorageUnavailableError as error:
                _log.warning("sign of life not written: %s", error)
            except Exception:  # noqa: BLE001  without beats, others would take over calls that are being paid for here
                _log.exception("sign of life not written")
            await asyncio.sleep(BEAT_SECONDS)

    def stop_waiting(self) -> None:
        """Let turns that wait for a model be asked of another gateway, since this one is stopping."""
        self._chain.close()

    async def drain(self) -> None:
        """Wait for the calls in flight: they are paid, so they are journalled before the process ends."""
        self.stop_waiting()
        if self._calls:
            await asyncio.wait(self._calls.values())

    async def handle(self, agent: str, payload: bytes) -> bytes:
        """Answer one request of `agent`, whose name comes from the subject and never from the body.

        Args:
            agent: Who asks.
            payload: A `TurnRequest` as JSON.

        Returns:
            A `TurnReply` as JSON, at most `MAX_DELIVERABLE_BYTES`. `TurnPending` after 5 s without a result: the
            call goes on, also when nobody asks again.
        """
        try:
            request = TurnRequest.model_validate_json(payload)
        except ValidationError as error:
            return _encode(TurnError(code=errors.REQUEST_INVALID, message=str(error), retryable=False))
        key = (agent, request.task_key, request.turn)
        call = self._calls.get(key)
        if call is None:
            with working_on_task(request.task_key):
                call = self._calls[key] = asyncio.create_task(self._settle(agent, request))
        await asyncio.wait({call}, timeout=POLL_SECONDS)
        return call.result() if call.done() else _encode(TurnPending())

    async def _settle(self, agent: str, request: TurnRequest) -> bytes:
        """The encoded reply; joined requests share it."""
        rest_seconds = 0.0
        try:
            reply = await self._reply(agent, request)
            if isinstance(reply, TurnError) and reply.retryable:
                rest_seconds = reply.retry_after_seconds or 0
            data = _encode(reply)
        finally:
            # A refused turn rests here as long as was asked for, whoever asks; a bit less, since clocks differ.
            key = (agent, request.task_key, request.turn)
            asyncio.get_running_loop().call_later(0.9 * rest_seconds, self._calls.pop, key)
        if len(data) <= MAX_DELIVERABLE_BYTES:
            return data
        text = f"the model's answer has {len(data):,} bytes, at most {MAX_DELIVERABLE_BYTES:,} fit into a message"
        return _encode(TurnError(code=errors.DELIVERABLE_TOO_LARGE, message=text, retryable=False))

    async def _reply(self, agent: str, request: TurnRequest) -> Reply:
        try:
            reply = await self._turns.settle(agent, request)
        except CoatcheckError as error:
            _log.warning("turn %d: %s", request.turn, error)
            return TurnError(code=error.code, message=str(error), retryable=error.retryable)
        except Exception as error:  # noqa: BLE001  the edge: the asker must get an answer
            _log.exception("turn %d of %s", request.turn, request.task_key)
            text = f"the LLM proxy failed: {type(error).__name__}: {error}"
            return TurnError(code=errors.PROVIDER_UNAVAILABLE, message=text, retryable=True)
        _log.info("turn %d: %s", request.turn, reply.kind)
        return reply


def _encode(reply: Reply) -> bytes:
    return TurnReply(reply=reply).model_dump_json().encode()

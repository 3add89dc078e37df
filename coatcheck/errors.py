"""Every exception that Coatcheck raises on purpose.

    CoatcheckError
    ├── DependencyDownError          a server that we need is away; exit code 3
    │   ├── MessagingUnavailableError
    │   │   └── NobodyListensError
    │   ├── StorageUnavailableError
    │   └── TelemetryUnavailableError
    ├── ConfigError                  `coatcheck.toml` is wrong; exit code 2
    ├── NotAuthorizedError           this identity may not use that subject or task
    ├── MessagingRefusedError        JetStream's own refusal, with its error code
    ├── KeyChangedError              somebody else wrote the key-value entry since it was read
    ├── PayloadKeyMissingError       Temporal holds what this process has no key for
    ├── MessagingUnsafeError         the NATS server would lose acknowledged messages
    ├── DeliverableError
    │   ├── DeliverableTooLargeError
    │   ├── DeliverableNotFoundError
    │   ├── DeliverableExpiredError
    │   ├── DeliverableLostError
    │   ├── DeliverableCorruptError
    │   └── DeliverableUnverifiedError
    ├── StreamMissingError
    ├── AgentOutputError
    ├── AgentLimitError
    ├── WorkerStoppingError
    ├── TaskClosedError              the task failed or was cancelled, so no model call is made for it
    ├── EventRefusedError
    ├── LedgerError                  money did not move
    │   ├── InsufficientCreditsError
    │   ├── AccountMissingError
    │   └── TransferConflictError
    ├── BudgetError                  the run has no budget as asked for
    ├── TurnOutOfOrderError
    ├── ArtifactInvalidError         a path that leads out, too many files or bytes
    ├── CommandFailedError           a command agent failed, ran out of time or left no deliverable
    ├── ChecksUnavailableError       the isolation that checks must have is not to be had here
    ├── ToolKeyConflictError         a tool call's id was used before, for something else
    ├── ToolServerError              an MCP server gave no usable answer
    ├── StageParkedError             no model can be asked for a while: the workflow waits, no attempt is used up
    └── TurnRefusedError             the LLM proxy's typed refusal

`code` is the dotted name that crosses process borders (`schemas.errors`), `retryable` says whether trying again can
help. Expected business outcomes (a rejected critique, a failed test) are results, not exceptions.
"""

from typing import ClassVar

from schemas import errors as codes


class CoatcheckError(Exception):
    """An error of Coatcheck's own; `str()` is a message for people."""

    code: ClassVar[str] = "coatcheck.error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        """What to try, shown after `hint:`."""


class DependencyDownError(CoatcheckError):
    """A server that we need does not answer."""

    code = "dependency.down"
    retryable = True


class MessagingUnavailableError(DependencyDownError):
    """NATS is away, or a publish is indeterminate: it must be retried with the same message id."""

    code = codes.MESSAGING_UNAVAILABLE


class NobodyListensError(MessagingUnavailableError):
    """Nobody serves the subject, as far as this identity's account reaches; known at once."""


class StorageUnavailableError(DependencyDownError):
    """PostgreSQL is away."""

    code = codes.STORAGE_UNAVAILABLE


class TelemetryUnavailableError(DependencyDownError):
    """The telemetry endpoint does not take anything now."""

    code = "telemetry.unavailable"


class ConfigError(CoatcheckError):
    """`coatcheck.toml` cannot be read, or something in it is wrong; one line per mistake, with file, line and key."""

    code = "config.invalid"


class NotAuthorizedError(CoatcheckError):
    """This identity may not publish or subscribe there, or the task is not its own."""

    code = codes.NOT_AUTHORIZED


class MessagingRefusedError(CoatcheckError):
    """JetStream refused a request for a reason that has no class of its own here."""

    code = "messaging.refused"

    def __init__(self, message: str, *, err_code: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.err_code = err_code
        """JetStream's `err_code`; several of them share one HTTP-like code, so branch on this."""


class KeyChangedError(CoatcheckError):
    """The entry is not at the revision that its writer has read: read it again, then decide."""

    code = "keyvalue.changed"


class PayloadKeyMissingError(CoatcheckError):
    """A payload of Temporal is encrypted with a key that this process does not have; one that has it goes on."""

    code = "payload.key_missing"
    retryable = True


class MessagingUnsafeError(CoatcheckError):
    """The NATS server does not sync every write, or will not say: a power cut would lose acknowledged messages."""

    code = "messaging.unsafe"


class DeliverableError(CoatcheckError):
    """A deliverable cannot be stored or read."""

    code = "deliverable.error"


class DeliverableTooLargeError(DeliverableError):
    """The encoded deliverable is over the server's message limit."""

    code = codes.DELIVERABLE_TOO_LARGE


class DeliverableNotFoundError(DeliverableError):
    """No message is stored under that subject, or that sequence was never written."""

    code = codes.DELIVERABLE_NOT_FOUND


class DeliverableExpiredError(DeliverableError):
    """Retention has dropped it: its sequence is below the stream's first."""

    code = codes.DELIVERABLE_EXPIRED


class DeliverableLostError(DeliverableError):
    """A reference names a sequence beyond the stream's last: acknowledged data is gone."""

    code = codes.DELIVERABLE_LOST


class DeliverableCorruptError(DeliverableError):
    """The stored bytes do not have the sha256 of the reference."""

    code = codes.DELIVERABLE_CORRUPT


class DeliverableUnverifiedError(DeliverableError):
    """It does not carry its agent's signature over subject, message id and contents; the message says what is wrong."""

    code = codes.DELIVERABLE_UNVERIFIED


class StreamMissingError(CoatcheckError):
    """A stream that must exist does not, or has lost messages that were recorded."""

    code = codes.STREAM_MISSING


class AgentOutputError(CoatcheckError):
    """The model did not give a usable answer within its bounded tries."""

    code = codes.AGENT_INVALID_OUTPUT


class AgentLimitError(CoatcheckError):
    """The agent used up its turns or tokens."""

    code = codes.AGENT_LIMIT


class WorkerStoppingError(CoatcheckError):
    """The worker is shutting down and stops before the next turn; another attempt goes on from the journal."""

    code = codes.WORKER_STOPPING
    retryable = True


class TaskClosedError(CoatcheckError):
    """A model turn was asked for in a task that is not running: an agent of a run that failed or was cancelled."""

    code = codes.TASK_CLOSED


class EventRefusedError(CoatcheckError):
    """An event is not the reporter's to tell, or is not what its type must be; nothing of its report was stored."""

    code = codes.EVENT_REFUSED


class LedgerError(CoatcheckError):
    """A movement of credits was refused; nothing has moved."""

    code = "ledger.refused"


class InsufficientCreditsError(LedgerError):
    """The account has less than that free."""

    code = codes.INSUFFICIENT_CREDITS


class AccountMissingError(LedgerError):
    """There is no such account."""

    code = codes.ACCOUNT_MISSING


class TransferConflictError(LedgerError):
    """The idempotency key belongs to a movement with other contents."""

    code = codes.TRANSFER_CONFLICT


class BudgetError(CoatcheckError):
    """A request names a budget that is not configured, or that its tenant cannot pay."""

    code = codes.BUDGET_REFUSED


class TurnOutOfOrderError(CoatcheckError):
    """A model turn was asked for while an earlier one of its task is not finished."""

    code = "turn.out_of_order"


class ArtifactInvalidError(CoatcheckError):
    """A file's path is no plain relative path, or there are too many files or bytes."""

    code = codes.ARTIFACT_INVALID


class CommandFailedError(CoatcheckError):
    """A command agent ended with an error, ran out of time, or left no usable deliverable."""

    code = codes.COMMAND_FAILED


class ChecksUnavailableError(CoatcheckError):
    """Checks must be isolated here, and this system cannot do it."""

    code = codes.CHECKS_UNAVAILABLE


class ToolKeyConflictError(CoatcheckError):
    """Another call was made under that key: the tool, its server or the arguments differ."""

    code = codes.TOOL_KEY_CONFLICT


class ToolServerError(CoatcheckError):
    """An MCP server gave no usable answer; the instance carries the code, and whether the call may have had effect."""

    def __init__(self, message: str, *, code: str, reached: bool) -> None:
        super().__init__(message)
        self.tool_code = code
        self.reached = reached
        """Whether the server may have been given the call."""


class StageParkedError(CoatcheckError):
    """Every model of the chain is closed; the workflow waits durably and begins the round again."""

    code = codes.PROVIDER_PARKED

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TurnRefusedError(CoatcheckError):
    """The LLM proxy's refusal; the instance carries the code, and whether and when to try again."""

    def __init__(self, message: str, *, code: str, retryable: bool, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.turn_code = code
        self.turn_retryable = retryable
        self.retry_after_seconds = retry_after_seconds

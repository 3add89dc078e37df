"""What every workflow and activity of ours is wrapped in: input checks, the claim-check rule, error mapping."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    ExecuteWorkflowInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

from coatcheck.errors import CoatcheckError, StageParkedError, TurnRefusedError
from schemas import errors
from schemas.activities import MAX_RESULT_BYTES
from schemas.tracing import TRACE_NOTE
from workers.temporal import DATA_CONVERTER


class CoatcheckInterceptor(Interceptor):
    """To be given to every worker and to the replayer.

    Args:
        trace_note: Run key → what the Web UI says of its trace, in Markdown. Workflows know no settings.
    """

    def __init__(self, trace_note: Callable[[str], str] = lambda _run_key: "") -> None:
        self._trace_note = trace_note

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap activities."""
        return _ActivityEdge(next)

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002
    ) -> type[WorkflowInboundInterceptor]:
        """Wrap workflows."""
        input.unsafe_extern_functions[TRACE_NOTE] = self._trace_note
        return _WorkflowEdge


class _WorkflowEdge(WorkflowInboundInterceptor):
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002
        """Fail on a wrong number of inputs, which would otherwise retry a TypeError for ever."""
        if len(input.args) > 1:
            raise ApplicationError(
                f"a workflow takes one input, got {len(input.args)}", type=errors.REQUEST_INVALID, non_retryable=True
            )
        return await super().execute_workflow(input)


class _ActivityEdge(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        """Map our errors to Temporal's and refuse a result that should have been a reference."""
        try:
            result = await super().execute_activity(input)
        except TurnRefusedError as error:
            raise _application_error(
                error, error.turn_code, retryable=error.turn_retryable, delay_seconds=error.retry_after_seconds
            ) from error
        except StageParkedError as error:
            raise ApplicationError(
                str(error),
                error.retry_after_seconds,
                type=error.code,
                non_retryable=True,
                category=ApplicationErrorCategory.BENIGN,
            ) from error
        except CoatcheckError as error:
            raise _application_error(error, error.code, retryable=error.retryable) from error
        size = sum(payload.ByteSize() for payload in DATA_CONVERTER.payload_converter.to_payloads([result]))
        if size > MAX_RESULT_BYTES:
            raise ApplicationError(
                f"the result has {size:,} bytes, at most {MAX_RESULT_BYTES:,} are allowed: return a reference",
                type=errors.RESULT_TOO_LARGE,
                non_retryable=True,
            )
        return result


def _application_error(
    error: CoatcheckError, code: str, *, retryable: bool, delay_seconds: float | None = None
) -> ApplicationError:
    """A retryable failure is expected business for us, so it is benign: no error log, no failure metric."""
    return ApplicationError(
        str(error),
        type=code,
        non_retryable=not retryable,
        next_retry_delay=timedelta(seconds=delay_seconds) if delay_seconds is not None else None,
        category=ApplicationErrorCategory.BENIGN if retryable else ApplicationErrorCategory.UNSPECIFIED,
    )

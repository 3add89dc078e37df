"""How we speak to Temporal: one converter, one sandbox, one set of interceptors, for workers, clients and replays."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import temporalio.api.common.v1
import temporalio.api.operatorservice.v1
from pydantic import SecretStr, ValidationError
from temporalio.client import Client
from temporalio.contrib.pydantic import PydanticPayloadConverter, ToJsonOptions, pydantic_data_converter
from temporalio.converter import DataConverter
from temporalio.exceptions import ApplicationError
from temporalio.runtime import Runtime
from temporalio.service import TLSConfig

from coatcheck.errors import CoatcheckError, DependencyDownError
from schemas import errors, search_attributes
from workers.encryption import ENCODING, encrypted, missing_key

if TYPE_CHECKING:
    from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

    from coatcheck.settings import Settings
    from coatcheck.telemetry.provider import ObservabilityProvider

STICKY_TIMEOUT: Final = timedelta(seconds=2)
"""After this a dead worker's cached workflows go to another one (default 10 s; 2 s recovers in 1.2 to 4.8 s)."""

BUILD_ID: Final = version("coatcheck")
"""Named by every finished workflow task; Temporal's default hashes all loaded code and is four times as long."""

PASSTHROUGH: Final = (
    "annotated_types",
    "pydantic",
    "pydantic_core",
    "schemas",
    # Plain data and pure functions, kept pure by lint; re-importing it would cost each workflow 50 ms.
    "workflows.convergence",
    "workflows.outcomes",
    "workflows.program_state",
    "workflows.run_state",
)
"""Modules that the workflow sandbox shares with the process instead of loading them again for each workflow."""


class _PayloadConverter(PydanticPayloadConverter):
    """Pydantic JSON, unset fields left out.

    Every byte is stored in the history of each run. Input in an unknown encoding fails the workflow instead of
    leaving it running for ever.
    """

    def __init__(self) -> None:
        super().__init__(ToJsonOptions(exclude_unset=True))

    def from_payloads(
        self, payloads: Sequence[temporalio.api.common.v1.Payload], type_hints: list[type] | None = None
    ) -> list[Any]:
        for payload in payloads:
            if payload.metadata.get("encoding") == ENCODING:
                raise missing_key(payload)  # fails the task, not the workflow: a worker that has the key goes on
        try:
            return super().from_payloads(payloads, type_hints)
        except KeyError as error:
            raise _invalid(f"unreadable input: {error}; JSON is expected") from error
        except ValidationError as error:
            raise _invalid(readable(error)) from None


def readable(error: ValidationError) -> str:
    """`feature: a slug is …; brief: Field required`: what is wrong, without pydantic's addresses and types."""
    problems = [(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors(include_url=False)]
    return "; ".join(f"{place}: {text}" if place else text for place, text in problems).replace("Value error, ", "")


def _invalid(message: str) -> ApplicationError:
    return ApplicationError(message, type=errors.REQUEST_INVALID, non_retryable=True)


DATA_CONVERTER: Final[DataConverter] = dataclasses.replace(
    pydantic_data_converter, payload_converter_class=_PayloadConverter
)


def sandbox_runner() -> "SandboxedWorkflowRunner":
    """The one sandbox; `Worker` and `Replayer` must use the same."""
    from temporalio.worker.workflow_sandbox import (  # noqa: PLC0415  half a client's import time, for workers only
        SandboxedWorkflowRunner,
        SandboxRestrictions,
    )

    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*PASSTHROUGH))


def tls_config(settings: "Settings") -> TLSConfig | bool:
    """How to speak TLS with Temporal, from the variables that the `temporal` program knows, too; `False` for not.

    Raises:
        CoatcheckError: a file cannot be read.
    """
    ca, certificate, key = settings.temporal_ca_file, settings.temporal_cert_file, settings.temporal_key_file
    if not (ca or certificate or key):
        return settings.temporal_tls
    return TLSConfig(server_root_ca_cert=_read(ca), client_cert=_read(certificate), client_private_key=_read(key))


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise CoatcheckError(
            f"{path} cannot be read: {error.strerror}", hint="see the variables TEMPORAL_TLS_…"
        ) from error


async def connect(
    address: str,
    namespace: str,
    *,
    tls: TLSConfig | bool = False,
    runtime: Runtime | None = None,
    payload_keys: SecretStr | None = None,
) -> Client:
    """Connect to Temporal; `runtime` says where the SDK measures, nowhere by default.

    Raises:
        CoatcheckError: the payload keys are wrong.
        DependencyDownError: the server does not answer, or is not the one that it should be.
    """
    try:
        return await Client.connect(
            address,
            namespace=namespace,
            data_converter=encrypted(DATA_CONVERTER, payload_keys),
            tls=tls,
            runtime=runtime,
        )
    except RuntimeError as error:
        hint = "is it the authority that signed its certificate?" if tls else "start the stack with `coatcheck up`"
        raise DependencyDownError(f"Temporal does not answer at {address}: {error}", hint=hint) from error


@contextlib.asynccontextmanager
async def measured_client(settings: "Settings", telemetry: "ObservabilityProvider") -> AsyncIterator[Client]:
    """The client of a worker, whose SDK measures where the process does.

    Raises:
        DependencyDownError: the server does not answer.
    """
    address, namespace = settings.require_temporal_address(), settings.temporal_namespace
    tls, keys = tls_config(settings), settings.payload_keys
    if not telemetry.has_metrics:
        yield await connect(address, namespace, tls=tls, payload_keys=keys)
        return
    from coatcheck.telemetry.temporal import measured_runtime  # noqa: PLC0415

    async with measured_runtime(telemetry.meter) as runtime:
        yield await connect(address, namespace, tls=tls, runtime=runtime, payload_keys=keys)


async def check_search_attributes(client: Client) -> None:
    """Refuse to start where a workflow would hang on its first upsert.

    Raises:
        DependencyDownError: the server does not know all of `schemas.search_attributes`.
    """
    known = await client.operator_service.list_search_attributes(
        temporalio.api.operatorservice.v1.ListSearchAttributesRequest(namespace=client.namespace)
    )
    missing = [key.name for key in search_attributes.ALL if key.name not in known.custom_attributes]
    if missing:
        commands = "; ".join(
            f"temporal operator search-attribute create --name {name} --type Keyword" for name in missing
        )
        raise DependencyDownError(f"Temporal lacks the search attributes {', '.join(missing)}", hint=commands)

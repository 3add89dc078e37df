"""Settings from the environment, read once by entry points and passed down in small pieces.

Every variable is `COATCHECK_<NAME>`, except the well-known ones of the servers and providers
(`TEMPORAL_ADDRESS`, `NATS_URL`, `DATABASE_URL`, `OPENAI_API_KEY`, …).
"""

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from coatcheck.errors import CoatcheckError
from schemas.streams import Placement

CONFIG_FILE: Final = "coatcheck.toml"
"""Taken by commands from the current folder when no other file is named."""


def _none_if_empty(value: Any) -> Any:
    """A stack without a file says so to its workers, whatever the environment that it was started in says.

    And the file of a secret that is empty holds none.
    """
    return value or None


class Settings(BaseSettings):
    """What an operator can set.

    Also by files: in the folder that `COATCHECK_SECRETS_DIR` names, `database_url` stands for `DATABASE_URL`. What is
    in the environment wins.
    """

    model_config = SettingsConfigDict(env_prefix="COATCHECK_", extra="ignore", frozen=True, populate_by_name=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the library's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add the folder of secrets, which is known only now."""
        folder = os.environ.get("COATCHECK_SECRETS_DIR")
        files = (SecretsSettingsSource(settings_cls, secrets_dir=folder),) if folder else ()
        return (init_settings, env_settings, *files)

    tls: bool = False
    """Whether the servers that `coatcheck up` starts speak TLS."""
    secrets_dir: Path | None = None
    """Where the files of secrets are."""
    data_dir: Path = Path(".coatcheck")
    """Data, logs, keys and status of the local stack."""
    config_file: Annotated[Path | None, BeforeValidator(_none_if_empty)] = Field(
        None, validation_alias=AliasChoices("COATCHECK_CONFIG")
    )
    """`coatcheck.toml`; the defaults when absent or empty. Workers take just this, commands look for the file too."""

    temporal_address: str | None = Field(None, validation_alias=AliasChoices("TEMPORAL_ADDRESS"))
    temporal_namespace: str = Field("default", validation_alias=AliasChoices("TEMPORAL_NAMESPACE"))
    temporal_tls: bool = Field(default=False, validation_alias=AliasChoices("TEMPORAL_TLS"))
    """With the system's authorities; the three files below need no such word."""
    temporal_ca_file: Path | None = Field(None, validation_alias=AliasChoices("TEMPORAL_TLS_SERVER_CA_CERT_PATH"))
    temporal_cert_file: Path | None = Field(None, validation_alias=AliasChoices("TEMPORAL_TLS_CLIENT_CERT_PATH"))
    temporal_key_file: Path | None = Field(None, validation_alias=AliasChoices("TEMPORAL_TLS_CLIENT_KEY_PATH"))
    nats_url: str | None = Field(None, validation_alias=AliasChoices("NATS_URL"))
    """Several servers of one cluster, separated by commas: any of them will do."""
    nats_monitor_url: str | None = Field(None, validation_alias=AliasChoices("NATS_MONITOR_URL"))
    """One for each server, separated by commas."""
    nats_ca_file: Path | None = Field(None, validation_alias=AliasChoices("NATS_CA"))
    """Who must have signed the servers' certificates; with it, NATS is spoken to with TLS or not at all."""
    replicas: int = Field(1, ge=1, le=5)
    """Of every stream, bucket and consumer; 3 in a cluster."""
    placement_tags: str = ""
    """Separated by commas: streams are kept on servers that have all of these `server_tags`."""
    nats_isolation: Literal["accounts", "shared"] = "accounts"
    """`shared`: one unauthenticated account for all, for a first try on a server of your own; no isolation."""
    nats_keys_dir: Path | None = None
    """Folder of the NATS keys and passwords; `<data_dir>/nats/keys` by default."""
    database_url: SecretStr | None = Field(None, validation_alias=AliasChoices("DATABASE_URL"))
    gateway_database_url: SecretStr | None = Field(None, validation_alias=AliasChoices("GATEWAY_DATABASE_URL"))
    """A role that may only journal turns; `DATABASE_URL` when absent."""

    archive: Annotated[str | None, BeforeValidator(_none_if_empty)] = None
    """Where deliverables outlive retention: a folder, or `s3://…`, `gs://…`, `az://…`; `<data_dir>/archive` by default.
    Credentials come from the variables of the storage's vendor, such as `AWS_ACCESS_KEY_ID`."""

    model: str | None = None
    """`provider:model`, such as `openai:gpt-5-mini`, `anthropic:claude-sonnet-4-5` or `scripted`; several, separated by
    commas, are asked in that order."""
    openai_api_key: Annotated[SecretStr | None, BeforeValidator(_none_if_empty)] = Field(
        None, validation_alias=AliasChoices("OPENAI_API_KEY")
    )
    openai_base_url: str | None = Field(None, validation_alias=AliasChoices("OPENAI_BASE_URL"))
    anthropic_api_key: Annotated[SecretStr | None, BeforeValidator(_none_if_empty)] = Field(
        None, validation_alias=AliasChoices("ANTHROPIC_API_KEY")
    )
    provider_timeout_seconds: float = 600
    provider_failures: int = 5
    """Failed calls of one turn (5xx, time-outs, cut connections) before its stage fails for good."""
    scripted_latency_seconds: float = 0.6
    """How long the scripted author pretends to think per turn, so that progress can be watched."""
    scripted_report_bytes: int = 0
    """Pads the scripted reports to at least this size; for load tests."""

    payload_keys: Annotated[SecretStr | None, BeforeValidator(_none_if_empty)] = None
    """`ID:KEY[,ID:KEY…]`, 32 bytes in base64 each: Temporal's payloads are encrypted with the first, read with any."""
    codec_token: Annotated[SecretStr | None, BeforeValidator(_none_if_empty)] = None
    """What a client of `coatcheck codec-server` has to show."""
    mcp_token: Annotated[SecretStr | None, BeforeValidator(_none_if_empty)] = None
    """What a client of `coatcheck mcp --port` has to show to do everything."""
    mcp_read_token: Annotated[SecretStr | None, BeforeValidator(_none_if_empty)] = None
    """The same, to read alone."""
    metrics_host: str = Field("127.0.0.1", validation_alias=AliasChoices("OTEL_EXPORTER_PROMETHEUS_HOST"))
    """Where the Prometheus endpoint of a worker listens."""
    metrics_port: Annotated[int | None, BeforeValidator(_none_if_empty)] = Field(
        None, validation_alias=AliasChoices("OTEL_EXPORTER_PROMETHEUS_PORT")
    )
    """Its port, 0 for a free one; there is no endpoint when absent or empty."""
    otlp_endpoint: str | None = Field(None, validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_ENDPOINT"))
    """Where traces, logs and metrics go, over OTLP/HTTP; nowhere when absent. The exporters read this and the other
    `OTEL_EXPORTER_OTLP_*` variables themselves."""
    otlp_traces_endpoint: str | None = Field(None, validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
    otlp_logs_endpoint: str | None = Field(None, validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"))
    otlp_metrics_endpoint: str | None = Field(
        None, validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    )
    otel_disabled: bool = Field(False, validation_alias=AliasChoices("OTEL_SDK_DISABLED"))
    content_capture: Literal["off", "preview", "full"] = "preview"
    """What prompts, answers and other texts telemetry holds: none, 2 KB of each, or all."""
    trace_messages: bool = False
    """Also a span for each message between processes: some 200 per run."""
    phoenix_url: str | None = Field(None, validation_alias=AliasChoices("PHOENIX_COLLECTOR_ENDPOINT"))
    """The base URL of Phoenix, for links to traces and for scores; traces go to the OTLP endpoint."""
    phoenix_api_key: SecretStr | None = Field(None, validation_alias=AliasChoices("PHOENIX_API_KEY"))
    phoenix_project: str = Field("coatcheck", validation_alias=AliasChoices("PHOENIX_PROJECT_NAME"))

    embedding_model: str | None = None
    """Of the OpenAI-compatible endpoint, for `coatcheck similar`; the small one on this machine when absent."""

    ready_file: Path | None = None
    """Touched by a worker once it polls; the supervisor waits for it."""
    health_host: str = "127.0.0.1"
    """Where `/healthz` and `/readyz` of a worker listen."""
    health_port: Annotated[int | None, BeforeValidator(_none_if_empty)] = None
    """Their port, 0 for a free one; there are none when absent or empty."""
    deployment: Annotated[str | None, BeforeValidator(_none_if_empty)] = None
    """The name of a Temporal worker deployment: runs then stay with the build of the core worker that began them."""
    build_id: Annotated[str | None, BeforeValidator(_none_if_empty)] = None
    """Of the deployment, such as the image's tag; the package's version when absent."""
    agent_slots: int = 200
    """Agent turns in flight per agent worker; they wait, they do not burn CPU."""

    def require_temporal_address(self) -> str:
        """The address of Temporal, or an error that names the variable."""
        return _require(self.temporal_address, "TEMPORAL_ADDRESS")

    def require_nats_url(self) -> str:
        """The URL of NATS, or an error that names the variable."""
        return _require(self.nats_url, "NATS_URL")

    def require_database_url(self) -> str:
        """The DSN of PostgreSQL, or an error that names the variable."""
        return _require(_secret(self.database_url), "DATABASE_URL")

    def require_gateway_database_url(self) -> str:
        """The DSN with the gateway's role; the owner's when none is set."""
        return _require(_secret(self.gateway_database_url or self.database_url), "GATEWAY_DATABASE_URL or DATABASE_URL")

    def has_otlp(self, signal: Literal["traces", "logs", "metrics"]) -> bool:
        """Whether there is an endpoint for that kind of telemetry."""
        own: str | None = getattr(self, f"otlp_{signal}_endpoint")
        return not self.otel_disabled and bool(own or self.otlp_endpoint)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every secret of this environment, also the passwords inside addresses."""
        held = [
            secret.get_secret_value()
            for secret in (
                self.openai_api_key,
                self.anthropic_api_key,
                self.database_url,
                self.gateway_database_url,
                self.phoenix_api_key,
            )
            if secret is not None
        ]
        if self.payload_keys is not None:
            held += [key.partition(":")[2] for key in self.payload_keys.get_secret_value().split(",")]
        addresses = [*held, self.nats_url or ""]
        passwords = [urlsplit(text).password for text in addresses if "://" in text]
        return (*filter(None, held), *(text for text in passwords if text))

    @property
    def workspaces_dir(self) -> Path:
        """Where agents' files lie while they work on them; nothing in it has to survive."""
        return self.data_dir / "workspaces"

    @property
    def archive_place(self) -> str:
        """The folder or URL of the archive."""
        return self.archive or str(self.data_dir / "archive")

    @property
    def models(self) -> tuple[str, ...]:
        """The models of `COATCHECK_MODEL`, in order of preference."""
        return tuple(name.strip() for name in (self.model or "").split(",") if name.strip())

    @property
    def placement(self) -> Placement:
        """Where streams are kept."""
        tags = tuple(tag.strip() for tag in self.placement_tags.split(",") if tag.strip())
        return Placement(replicas=self.replicas, tags=tags)

    @property
    def keys_dir(self) -> Path:
        """Where the NATS identities are kept."""
        return self.nats_keys_dir or self.data_dir / "nats" / "keys"


def _require(value: str | None, variable: str) -> str:
    if not value:
        raise CoatcheckError(f"{variable} is not set", hint="`coatcheck up` starts local servers and sets it")
    return value


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None

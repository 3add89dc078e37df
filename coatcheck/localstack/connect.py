"""How to reach the servers of a stack, ours or external ones, as the status says it and as workers are told."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from coatcheck.errors import DependencyDownError
from coatcheck.localstack import nats, postgres, temporal
from coatcheck.localstack.binaries import script
from coatcheck.localstack.config import StackConfig
from coatcheck.localstack.ports import LOOPBACK
from coatcheck.localstack.status import NatsStatus, PhoenixStatus, PostgresStatus, TemporalStatus


class Connections(BaseModel):
    """One entry per server that the stack has."""

    temporal: TemporalStatus | None = None
    nats: NatsStatus | None = None
    postgres: PostgresStatus | None = None
    phoenix: PhoenixStatus | None = None

    def variables(self) -> dict[str, str]:
        """The environment variables that tell a worker where the servers are."""
        told: dict[str, str | None] = {}
        if self.temporal:
            told |= {"TEMPORAL_ADDRESS": self.temporal.address, "TEMPORAL_NAMESPACE": self.temporal.namespace}
            told |= {"TEMPORAL_TLS_SERVER_CA_CERT_PATH": _text(self.temporal.ca_file)}
        if self.nats:
            told |= {"NATS_URL": self.nats.url, "NATS_MONITOR_URL": self.nats.monitor_url}
            told |= {"NATS_CA": _text(self.nats.ca_file)}
        if self.postgres:
            told |= {"DATABASE_URL": self.postgres.dsn, "GATEWAY_DATABASE_URL": self.postgres.gateway_dsn}
        if self.phoenix:
            told |= {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{self.phoenix.url}/v1/traces",
                "PHOENIX_COLLECTOR_ENDPOINT": self.phoenix.url,
            }
        return {name: value for name, value in told.items() if value is not None}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def describe(config: StackConfig, ports: Mapping[str, int]) -> Connections:
    """Connections for `config`; makes the keys, passwords and NATS configuration that are missing."""
    return Connections(
        temporal=_temporal(config, ports),
        nats=_nats(config, ports),
        postgres=_postgres(config, ports),
        phoenix=PhoenixStatus(url=f"http://{LOOPBACK}:{ports['phoenix']}") if config.managed("phoenix") else None,
    )


def _temporal(config: StackConfig, ports: Mapping[str, int]) -> TemporalStatus | None:
    if address := config.external.temporal_address:
        namespace = config.external.temporal_namespace
        return TemporalStatus(address=address, namespace=namespace, ui_url=None, cli=_cli())
    if not config.managed("temporal"):
        return None
    return TemporalStatus(
        address=f"{LOOPBACK}:{ports['temporal_tls' if config.tls else 'temporal']}",
        namespace=temporal.NAMESPACE,
        ui_url=f"http://{LOOPBACK}:{ports['temporal_ui']}",
        cli=_cli(),
        ca_file=config.ca_file,
    )


def _cli() -> Path | None:
    try:
        return script("temporal")
    except DependencyDownError:
        return None


def _nats(config: StackConfig, ports: Mapping[str, int]) -> NatsStatus | None:
    if url := config.external.nats_url:
        return NatsStatus(url=url, monitor_url=config.external.nats_monitor_url, users=nats.prepare(config))
    if not config.managed("nats"):
        return None
    monitor = f"http://{LOOPBACK}:{ports['nats_monitor']}"
    url = f"{'tls' if config.tls else 'nats'}://{LOOPBACK}:{ports['nats']}"
    return NatsStatus(url=url, monitor_url=monitor, ca_file=config.ca_file, users=nats.prepare(config))


def _postgres(config: StackConfig, ports: Mapping[str, int]) -> PostgresStatus | None:
    if dsn := config.external.database_url:
        return PostgresStatus(dsn=dsn, gateway_dsn=config.external.gateway_database_url or dsn)
    if not config.managed("postgres"):
        return None
    port = ports["postgres_tls" if config.tls else "postgres"]
    return postgres.status(config.data_dir, port, ca_file=config.ca_file, own_port=ports["postgres"])

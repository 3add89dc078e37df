"""What each component of the collector takes: its keys and the form of their values, as of collector 0.159.

Only the components that our configuration has. The collector refuses an unknown key, so every model here does.
No maintained schema is to be had from a registry: upstream describes its components one by one, in its own dialect.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Duration = Annotated[str, Field(pattern=r"^(\d+(\.\d+)?(ns|us|ms|s|m|h))+$")]
Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-]+:\d{1,5}$|^\[[0-9a-f:]+\]:\d{1,5}$")]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+(/\S*)?$")]
Id = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(/\S+)?$")]
"""`type` or `type/name`."""
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(gt=0)]
TlsVersion = Literal["1.2", "1.3"]


class Part(BaseModel):
    """A mapping of the configuration."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ServerTls(Part):
    enabled: bool = True
    cert_file: Text
    key_file: Text
    client_ca_file: str = ""
    min_version: TlsVersion = "1.2"


class ClientTls(Part):
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    min_version: TlsVersion = "1.2"
    insecure: bool = False
    insecure_skip_verify: Literal[False] = False


class Auth(Part):
    authenticator: Id


class Server(Part):
    endpoint: Address
    auth: Auth
    tls: ServerTls


class Protocols(Part):
    grpc: Server
    http: Server


class Otlp(Part):
    protocols: Protocols


class HealthCheck(Part):
    endpoint: Address
    path: Text = "/"


class BearerTokenAuth(Part):
    token: Text
    scheme: str = "Bearer"


class FileStorage(Part):
    directory: Text
    create_directory: bool = False
    fsync: bool = False
    timeout: Duration = "1s"


class MemoryLimiter(Part):
    check_interval: Duration
    limit_mib: Count
    spike_limit_mib: Count

    @model_validator(mode="after")
    def _works(self) -> "MemoryLimiter":
        if float(self.check_interval.rstrip("nuµmsh")) == 0:
            raise ValueError("check_interval 0 switches the limiter off")
        if self.spike_limit_mib >= self.limit_mib:
            raise ValueError("spike_limit_mib must be below limit_mib")
        return self


class ResourceDetection(Part):
    detectors: Annotated[list[Literal["env", "system", "docker", "k8s_api"]], Field(min_length=1)]
    timeout: Duration = "5s"
    override: bool = True


class DecisionCache(Part):
    sampled_cache_size: Count
    non_sampled_cache_size: Count


class StatusCode(Part):
    status_codes: Annotated[list[Literal["ERROR", "OK", "UNSET"]], Field(min_length=1)]


class StringAttribute(Part):
    key: Text
    values: Annotated[list[Text], Field(min_length=1)]
    enabled_regex_matching: bool = False
    invert_match: bool = False


class Latency(Part):
    threshold_ms: Count


class Probabilistic(Part):
    sampling_percentage: Annotated[float, Field(gt=0, le=100, strict=False)]


class Policy(Part):
    name: Text
    type: Literal["status_code", "string_attribute", "latency", "probabilistic"]
    status_code: StatusCode | None = None
    string_attribute: StringAttribute | None = None
    latency: Latency | None = None
    probabilistic: Probabilistic | None = None

    @model_validator(mode="after")
    def _is_of_its_type(self) -> "Policy":
        if [self.type] != sorted(self.model_fields_set - {"name", "type"}):
            raise ValueError(f"a policy of type {self.type} has exactly the key {self.type}")
        return self


class TailSampling(Part):
    decision_wait: Duration
    num_traces: Count
    expected_new_traces_per_sec: Count | None = None
    sample_on_first_match: bool = False
    decision_cache: DecisionCache
    policies: Annotated[list[Policy], Field(min_length=1)]

    @model_validator(mode="after")
    def _remembers(self) -> "TailSampling":
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError("two policies of one name")
        if min(self.decision_cache.sampled_cache_size, self.decision_cache.non_sampled_cache_size) < self.num_traces:
            raise ValueError("a decision is forgotten while its trace is in memory: the caches are below num_traces")
        return self


class Batch(Part):
    timeout: Duration
    send_batch_size: Count
    send_batch_max_size: Count

    @model_validator(mode="after")
    def _fits(self) -> "Batch":
        if self.send_batch_max_size < self.send_batch_size:
            raise ValueError("send_batch_max_size must not be below send_batch_size")
        return self


class Retry(Part):
    enabled: bool = True
    initial_interval: Duration = "5s"
    max_interval: Duration = "30s"
    max_elapsed_time: Duration = "300s"
    multiplier: float = 1.5


class Queue(Part):
    enabled: bool = True
    storage: Id | None = None
    queue_size: Count = 1000
    num_consumers: Count = 10
    block_on_overflow: bool = False


class Sender(Part):
    """What every exporter that sends has."""

    endpoint: Url
    compression: Literal["gzip", "zstd", "none"] = "gzip"
    timeout: Duration = "30s"
    headers: dict[str, str] = {}
    tls: ClientTls = ClientTls()
    retry_on_failure: Retry
    sending_queue: Queue


class OtlpHttp(Sender):
    encoding: Literal["proto", "json"] = "proto"


class InfluxDb(Sender):
    org: Text
    bucket: Text
    token: str
    metrics_schema: Literal["telegraf-prometheus-v1", "telegraf-prometheus-v2", "otel-v1"]


class Prometheus(Part):
    endpoint: Address
    metric_expiration: Duration = "5m"
    namespace: str = ""


class Debug(Part):
    verbosity: Literal["basic", "normal", "detailed"] = "basic"


class Pipeline(Part):
    receivers: Annotated[list[Id], Field(min_length=1)]
    processors: list[Id] = []
    exporters: Annotated[list[Id], Field(min_length=1)]


class PullPrometheus(Part):
    host: Text
    port: Annotated[int, Field(gt=0, lt=65536)]


class PullExporter(Part):
    prometheus: PullPrometheus


class Pull(Part):
    exporter: PullExporter


class Reader(Part):
    pull: Pull


class OwnMetrics(Part):
    level: Literal["none", "basic", "normal", "detailed"]
    readers: Annotated[list[Reader], Field(min_length=1)]


class OwnLogs(Part):
    level: Literal["debug", "info", "warn", "error"] = "info"


class Telemetry(Part):
    logs: OwnLogs
    metrics: OwnMetrics


class Service(Part):
    extensions: list[Id]
    pipelines: dict[Annotated[str, Field(pattern=r"^(traces|metrics|logs)(/\S+)?$")], Pipeline]
    telemetry: Telemetry


class Collector(Part):
    """The whole file; the components by their ids."""

    extensions: dict[Id, Any]
    receivers: dict[Id, Any]
    processors: dict[Id, Any]
    exporters: dict[Id, Any]
    service: Service


COMPONENTS: dict[str, dict[str, type[Part]]] = {
    "extensions": {"health_check": HealthCheck, "bearertokenauth": BearerTokenAuth, "file_storage": FileStorage},
    "receivers": {"otlp": Otlp},
    "processors": {
        "memory_limiter": MemoryLimiter,
        "resource_detection": ResourceDetection,
        "tail_sampling": TailSampling,
        "batch": Batch,
    },
    "exporters": {"otlp_http": OtlpHttp, "influxdb": InfluxDb, "prometheus": Prometheus, "debug": Debug},
}
"""Kind → type → model."""
SIGNALS: dict[str, frozenset[str]] = {
    "otlp": frozenset({"traces", "metrics", "logs"}),
    "otlp_http": frozenset({"traces", "metrics", "logs"}),
    "influxdb": frozenset({"traces", "metrics", "logs"}),
    "debug": frozenset({"traces", "metrics", "logs"}),
    "memory_limiter": frozenset({"traces", "metrics", "logs"}),
    "resource_detection": frozenset({"traces", "metrics", "logs"}),
    "batch": frozenset({"traces", "metrics", "logs"}),
    "tail_sampling": frozenset({"traces"}),
    "prometheus": frozenset({"metrics"}),
}
"""Type → what may flow through it."""

"""`deploy/otel`: right in every environment, and no seeded mistake gets past the check."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.collector_check import SECRETS, check, defined, read_env, unknown, used, variables

OTEL = Path(__file__).parents[2] / "deploy" / "otel"
CONFIG = (OTEL / "collector.yaml").read_text()
GIVEN = {"COLLECTOR_TOKEN": "given", "PHOENIX_API_KEY": "given"}
"""What the store of secrets gives."""
ENVIRONMENTS = {name: read_env((OTEL / f"{name}.env").read_text()) for name in ("dev", "test", "prod")}


@pytest.mark.parametrize("env", [{}, *ENVIRONMENTS.values()], ids=["defaults", *ENVIRONMENTS])
def test_the_configuration_is_right_in_every_environment(env: dict[str, str]) -> None:
    """Form, graph and substitution."""
    assert check(CONFIG, GIVEN | env) == []
    assert unknown(env, CONFIG) == set()


def test_every_component_is_used_in_some_environment() -> None:
    """InfluxDB is one of them: it is switched by a variable alone."""
    assert defined(CONFIG) == set().union(*(used(CONFIG, GIVEN | env) for env in ENVIRONMENTS.values()))
    assert "exporters.influxdb" not in used(CONFIG, GIVEN)
    assert "exporters.influxdb" in used(CONFIG, GIVEN | {"COLLECTOR_METRICS_EXPORTERS": "[prometheus,influxdb]"})


def test_production_is_encrypted_and_keeps_its_secrets_elsewhere() -> None:
    """TLS for all that leaves or enters the machine; no secret in the file of production."""
    prod = ENVIRONMENTS["prod"]
    assert prod["COLLECTOR_TLS"] == "true"
    assert [name for name, value in prod.items() if value.startswith("http://")] == []
    assert SECRETS & prod.keys() == set()
    assert variables(CONFIG) >= SECRETS


MISTAKES = {
    "unknown key": ("send_batch_size: 256", "send_batch_sise: 256"),
    "unknown key of a policy": ("threshold_ms:", "treshold_ms:"),
    "unknown component": ("  batch:\n    timeout", "  batchh:\n    timeout"),
    "deprecated name of an exporter": ("otlp_http/phoenix", "otlphttp/phoenix"),
    "deprecated name of a processor": ("resource_detection", "resourcedetection"),
    "not defined": ("exporters: [otlp_http/phoenix]", "exporters: [otlp_http/phoenx]"),
    "limiter not first": ("[memory_limiter, resource_detection, tail", "[resource_detection, memory_limiter, tail"),
    "batch before sampling": ("tail_sampling, batch]", "batch, tail_sampling]"),
    "no sampling": ("resource_detection, tail_sampling, batch]", "resource_detection, batch]"),
    "sampling of metrics": (
        "processors: [memory_limiter, resource_detection, batch]\n      exporters: ${env:COLLECTOR_METRICS",
        (
            "processors: [memory_limiter, resource_detection, tail_sampling, batch]\n"
            "      exporters: ${env:COLLECTOR_METRICS"
        ),
    ),
    "traces to prometheus": ("exporters: [otlp_http/phoenix]", "exporters: [prometheus]"),
    "extension not started": ("[health_check, bearertokenauth, file_storage]", "[health_check, bearertokenauth]"),
    "authenticator not started": ("[health_check, bearertokenauth, file_storage]", "[health_check, file_storage]"),
    "health check not started": ("[health_check, bearertokenauth, file_storage]", "[bearertokenauth, file_storage]"),
    "no authentication": ("        auth:\n          authenticator: bearertokenauth\n", ""),
    "no certificate": ("          cert_file: ${env:COLLECTOR_TLS_CERT_FILE:-/etc/otelcol/tls/tls.crt}\n", ""),
    "no queue on disk": ("      storage: file_storage\n", ""),
    "gives up": ("max_elapsed_time: 0s #", "max_elapsed_time: 300s #"),
    "tries once": ("    retry_on_failure:\n      enabled: true", "    retry_on_failure:\n      enabled: false"),
    "wrong duration": ("check_interval: 1s", "check_interval: 1 second"),
    "number for a duration": ("check_interval: 1s", "check_interval: 1"),
    "limiter switched off": ("check_interval: 1s", "check_interval: 0s"),
    "spike over limit": ("SPIKE_MIB:-128", "SPIKE_MIB:-1024"),
    "text for a number": ("MEMORY_MIB:-512", "MEMORY_MIB:-half"),
    "share over 100": ("INFRASTRUCTURE_PERCENT:-10", "INFRASTRUCTURE_PERCENT:-110"),
    "policy of another type": ("type: latency", "type: status_code"),
    "unknown status": ("[ERROR]", "[FAILED]"),
    "unknown detector": ("[env, system]", "[env, sytem]"),
    "decision forgotten": ("SAMPLED_CACHE:-200000", "SAMPLED_CACHE:-200"),
    "largest batch below its size": ("send_batch_max_size: 512", "send_batch_max_size: 128"),
    "no port": ("GRPC_ENDPOINT:-127.0.0.1:4317", "GRPC_ENDPOINT:-127.0.0.1"),
    "no scheme": ("PHOENIX_COLLECTOR_ENDPOINT:-http://", "PHOENIX_COLLECTOR_ENDPOINT:-"),
    "unknown schema of metrics": ("telegraf-prometheus-v2", "telegraf-prometheus-v9"),
    "unknown compression": ("compression: gzip", "compression: gzp"),
    "no default and no secret": ("QUEUE_SIZE:-2000", "QUEUE_SIZE"),
    "secret with a default": ("${env:COLLECTOR_TOKEN}", "${env:COLLECTOR_TOKEN:-changeme}"),
    "secret in clear text": ("Bearer ${env:PHOENIX_API_KEY}", "Bearer 0123456789"),
    "another scheme of substitution": ("${env:COLLECTOR_BATCH", "${file:COLLECTOR_BATCH"),
    "name of a variable": ("${env:COLLECTOR_BATCH_TIMEOUT", "${env:COLLECTOR-BATCH-TIMEOUT"),
    "shell's substitution": ("org: ${env:INFLUXDB_ORG:-coatcheck}", "org: $INFLUXDB_ORG"),
    "certificates not verified": (
        "    tls:\n      ca_file",
        "    tls:\n      insecure_skip_verify: true\n      ca_file",
    ),
    "key twice": ("    verbosity: basic", "    verbosity: basic\n    verbosity: detailed"),
    "no YAML": ("receivers:\n", "receivers\n"),
    "no logs": ("    logs:\n      receivers", "    logz:\n      receivers"),
    "no metrics of its own": ("      level: normal\n", "      level: normal\n      readerz: []\n"),
}
"""What is replaced, and by what."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_seeded_mistake_is_found(mistake: str) -> None:
    """Each alone."""
    right, wrong = MISTAKES[mistake]
    assert right in CONFIG
    assert (
        check(CONFIG.replace(right, wrong, 1), GIVEN | {"COLLECTOR_METRICS_EXPORTERS": "[prometheus,influxdb]"}) != []
    )


def test_a_component_that_no_pipeline_has_is_noticed() -> None:
    """The collector would start without it and say nothing."""
    assert defined(CONFIG.replace("  debug:\n", "  debug/again:\n  debug:\n")) - used(CONFIG, GIVEN) >= {
        "exporters.debug/again"
    }


def test_a_missing_secret_is_found() -> None:
    """The collector takes an unset variable as empty."""
    assert check(CONFIG, {"COLLECTOR_TOKEN": "given"}) != []


def test_the_collector_itself_agrees_where_there_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`otelcol validate`, in every environment; says aloud when there is no collector to ask."""
    program = shutil.which("otelcol-contrib")
    if program is None:
        with capsys.disabled():
            print("\nSKIPPED otelcol validate: no otelcol-contrib on this machine; the strict check alone has looked")
        return
    for name, env in ENVIRONMENTS.items():
        given = {**os.environ, **GIVEN, **env, "COLLECTOR_STORAGE_DIR": str(tmp_path)}
        command = [program, "validate", "--config", str(OTEL / "collector.yaml")]
        done = subprocess.run(command, env=given, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{name}: {done.stderr}"

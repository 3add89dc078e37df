"""deploy/kubernetes against Kubernetes' own schemas (a package has them), strictly: an unknown field is a mistake.

No package has the schema of KEDA's resources, so those are held against what its manual lists (2.22, Temporal scaler).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from coatcheck.settings import Settings
from schemas.streams import AGENTS
from schemas.task_queues import CORE, agent_queue
from tests.deploy.test_compose import FILE as COMPOSE
from tests.deploy.test_compose import variables_of_settings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
WORKERS = {"core", "gateway", "agents"}
SCALER = {"endpoint", "namespace", "taskQueue", "queueTypes", "targetQueueSize", "tlsServerName"}
KEDA = "keda.sh/v1alpha1"

Resource = dict[str, Any]


def resources() -> Iterator[Resource]:
    """Every resource that the kustomization names."""
    for name in yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]:
        yield from yaml.safe_load_all((FOLDER / name).read_text())


def of_kind(kind: str) -> dict[str, Resource]:
    """Name → resource."""
    return {item["metadata"]["name"]: item for item in resources() if item["kind"] == kind}


def test_every_file_is_named() -> None:
    """One that is not would never be applied."""
    named = set(yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"])
    assert named | {"kustomization.yaml"} == {path.name for path in FOLDER.glob("*.yaml")}


def test_the_resources_are_what_kubernetes_takes() -> None:
    """By the schemas of the newest version that the package knows."""
    version = kubernetes_validate.latest_version()
    checked = [item for item in resources() if item["apiVersion"] != KEDA]
    for item in checked:
        kubernetes_validate.validate(item, version, strict=True)
    assert {item["kind"] for item in checked} >= {"Deployment", "Job", "NetworkPolicy", "PodDisruptionBudget"}
    wrong = of_kind("Deployment")["core"]
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_every_worker_is_confined_and_probed() -> None:
    """As in docker-compose.yml, and what may be evicted at once is bounded."""
    deployments, budgets = of_kind("Deployment"), of_kind("PodDisruptionBudget")
    assert deployments.keys() == budgets.keys() == WORKERS
    for name, item in (deployments | of_kind("Job")).items():
        pod = item["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["automountServiceAccountToken"] is False, name
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert {"requests", "limits"} == container["resources"].keys(), name
        if name in WORKERS:
            probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
            assert {kind: probe["path"] for kind, probe in probes.items()} == {
                "startup": "/readyz",
                "readiness": "/readyz",
                "liveness": "/healthz",
            }, name
            [port] = container["ports"]
            assert {probe["port"] for probe in probes.values()} == {port["name"]}
            assert f"COATCHECK_HEALTH_PORT={port['containerPort']}" in (FOLDER / "environment.env").read_text()
            assert budgets[name]["spec"]["selector"] == item["spec"]["selector"]
            compose = yaml.safe_load(COMPOSE.read_text())["services"][name]
            assert container["args"] == compose["command"]


def test_the_environment_is_one_that_settings_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three replicas, TLS, and secrets by file."""
    lines = (FOLDER / "environment.env").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines)
    assert environment.keys() <= variables_of_settings()
    for name, value in environment.items():
        if name != "COATCHECK_SECRETS_DIR":
            monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.placement.replicas == 3
    assert settings.nats_ca_file == settings.temporal_ca_file == Path("/run/secrets/authority/ca.pem")


def test_workers_are_scaled_by_their_own_queues() -> None:
    """Each queue that the product has, and nothing else; the gateway has none."""
    scaled = of_kind("ScaledObject")
    triggers = {name: [item["metadata"] for item in one["spec"]["triggers"]] for name, one in scaled.items()}
    queues = {name: {item["taskQueue"]: item["queueTypes"] for item in items} for name, items in triggers.items()}
    agents = {agent_queue(agent): "activity" for agent in AGENTS}
    assert queues == {"core": {CORE: "workflow"}, "agents": agents}
    for name, item in scaled.items():
        assert item["spec"]["scaleTargetRef"] == {"name": name}
        assert "replicas" not in of_kind("Deployment")[name]["spec"], "two would set it"
        for trigger in item["spec"]["triggers"]:
            assert trigger["type"] == "temporal"
            assert trigger["metadata"].keys() == SCALER
            assert all(isinstance(value, str) for value in trigger["metadata"].values())
            assert trigger["authenticationRef"]["name"] in of_kind("TriggerAuthentication")

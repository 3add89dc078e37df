"""A strict check of the collector's configuration, for a machine without the collector: form, graph, substitution.

It is stricter than `otelcol validate`: what the collector takes and then does not do (a processor that no pipeline
has, a limiter that is not first, a queue that is lost at a restart, a key in clear text) is a finding, too. It does not
know what a value means to a server that is not there.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from tests.deploy.collector_parts import COMPONENTS, SIGNALS, Collector, Pipeline, Service

SECRETS = frozenset({"COLLECTOR_TOKEN", "PHOENIX_API_KEY", "INFLUXDB_TOKEN"})
"""Never in a file of production."""
KINDS = ("receivers", "processors", "exporters")
_REFERENCE = re.compile(r"\$\{(?P<scheme>[^:}]*):(?P<name>[^:}]*)(?P<default>:-[^}]*)?\}")
_NAME = re.compile(r"^[A-Z][A-Z0-9_]*$")
_SECRET_KEYS = frozenset({"token", "authorization", "password", "api_key"})


@dataclass
class Expansion:
    """A document with its variables put in, and what was noticed on the way."""

    env: Mapping[str, str]
    findings: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    required: set[str] = field(default_factory=set)
    """Names without a default."""

    def of(self, value: Any, path: str = "") -> Any:
        """`value` as the collector sees it: a variable that stands alone is read as YAML, one in a text is text."""
        if isinstance(value, dict):
            return {key: self.of(inner, f"{path}.{key}".lstrip(".")) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.of(inner, f"{path}[{index}]") for index, inner in enumerate(value)]
        if not isinstance(value, str):
            return value
        self._check_secret(value, path)
        if found := _REFERENCE.fullmatch(value):
            text = self._value(found, path)
            return "" if text == "" else yaml.safe_load(text)
        text = _REFERENCE.sub(lambda found: self._value(found, path), value)
        if "$" in text:
            self.findings.append(f"{path}: a dollar sign that is no ${{env:NAME}}")
        return text

    def _value(self, found: re.Match[str], path: str) -> str:
        name, default = found["name"], found["default"]
        if found["scheme"] != "env":
            self.findings.append(f"{path}: only env may be substituted, not {found['scheme']!r}")
        if not _NAME.fullmatch(name):
            self.findings.append(f"{path}: {name!r} is no name of a variable")
        self.names.add(name)
        if default is None:
            self.required.add(name)
        if name not in self.env and default is None:
            self.findings.append(f"{path}: {name} has no default and is not set")
        return self.env.get(name, (default or "").removeprefix(":-"))

    def _check_secret(self, value: str, path: str) -> None:
        if path.rpartition(".")[2] not in _SECRET_KEYS:
            return
        references = list(_REFERENCE.finditer(value))
        if not references or any((found["default"] or ":-") != ":-" for found in references):
            self.findings.append(f"{path}: a secret in clear text")


def check(text: str, env: Mapping[str, str]) -> list[str]:
    """What is wrong with the configuration `text` in the environment `env`; empty when nothing is."""
    try:
        document = yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    expansion = Expansion(env)
    resolved = expansion.of(document)
    findings = [*expansion.findings]
    findings += [f"{name} has no default and is no secret" for name in sorted(expansion.required - SECRETS)]
    try:
        collector = Collector.model_validate(resolved)
    except ValidationError as error:
        return findings + _problems("", error)
    findings += _parts(collector)
    findings += _graph(collector)
    return findings


def used(text: str, env: Mapping[str, str]) -> set[str]:
    """`kind.id` of every component that some pipeline or the service has."""
    service = Service.model_validate(Expansion(env).of(yaml.safe_load(text))["service"])
    named = {f"{kind}.{name}" for pipeline in service.pipelines.values() for kind, name in _members(pipeline)}
    return named | {f"extensions.{name}" for name in service.extensions}


def defined(text: str) -> set[str]:
    """`kind.id` of every component of the file."""
    document = yaml.safe_load(text)
    return {f"{kind}.{name}" for kind in ("extensions", *KINDS) for name in document[kind]}


def variables(text: str) -> set[str]:
    """Every variable of the file."""
    expansion = Expansion({})
    expansion.of(yaml.safe_load(text))
    return expansion.names


def _parts(collector: Collector) -> Iterator[str]:
    for kind, models in COMPONENTS.items():
        for name, settings in getattr(collector, kind).items():
            model = models.get(name.partition("/")[0])
            if model is None:
                yield f"{kind}.{name}: no such component"
                continue
            try:
                model.model_validate(settings if settings is not None else {})
            except ValidationError as error:
                yield from _problems(f"{kind}.{name}", error)


def _graph(collector: Collector) -> Iterator[str]:
    service = collector.service
    for signal in ("traces", "metrics", "logs"):
        if signal not in service.pipelines:
            yield f"service.pipelines: none for {signal}"
    for name, pipeline in service.pipelines.items():
        yield from _pipeline(name, pipeline, collector)
    for name in service.extensions:
        if name not in collector.extensions:
            yield f"service.extensions: {name} is not defined"
    for name in collector.extensions.keys() - set(service.extensions):
        yield f"extensions.{name}: defined and not started"
    yield from _references(collector)


def _pipeline(name: str, pipeline: Pipeline, collector: Collector) -> Iterator[str]:
    where = f"service.pipelines.{name}"
    for kind, member in _members(pipeline):
        if member not in getattr(collector, kind):
            yield f"{where}.{kind}: {member} is not defined"
        elif name.partition("/")[0] not in SIGNALS.get(member.partition("/")[0], ()):
            yield f"{where}.{kind}: {member} does not take {name}"
    types = [member.partition("/")[0] for member in pipeline.processors]
    if types[:1] != ["memory_limiter"]:
        yield f"{where}: memory_limiter must be first"
    if types[-1:] != ["batch"]:
        yield f"{where}: batch must be last"
    if len(set(types)) < len(types):
        yield f"{where}: a processor twice"
    if "resource_detection" not in types:
        yield f"{where}: no resource_detection"
    if name == "traces" and "tail_sampling" not in types:
        yield f"{where}: no tail_sampling"


def _references(collector: Collector) -> Iterator[str]:
    """Extensions that components name, and senders whose queue would not outlive the process."""
    for name, settings in collector.exporters.items():
        sends = isinstance(settings, dict) and "sending_queue" in settings
        storage = settings["sending_queue"].get("storage") if sends else None
        if storage is not None and storage not in collector.service.extensions:
            yield f"exporters.{name}: its storage {storage} is not started"
        if sends and storage is None:
            yield f"exporters.{name}: what waits in its queue is lost at a restart"
        if sends and settings.get("retry_on_failure", {}).get("max_elapsed_time") != "0s":
            yield f"exporters.{name}: gives up after a time"
        if sends and not settings["sending_queue"].get("enabled", True):
            yield f"exporters.{name}: no queue"
        if sends and not settings.get("retry_on_failure", {}).get("enabled", True):
            yield f"exporters.{name}: tries only once"
    for name, settings in collector.receivers.items():
        for protocol, server in (settings or {}).get("protocols", {}).items():
            authenticator = (server or {}).get("auth", {}).get("authenticator")
            if authenticator not in collector.service.extensions:
                yield f"receivers.{name}.{protocol}: its authenticator {authenticator} is not started"


def _members(pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    for kind in KINDS:
        for member in getattr(pipeline, kind):
            yield kind, member


def _problems(where: str, error: ValidationError) -> list[str]:
    return [
        ".".join(filter(None, (where, *map(str, problem["loc"])))) + f": {problem['msg']}"
        for problem in error.errors(include_url=False)
    ]


class _UniqueKeys(yaml.SafeLoader):
    """The collector refuses a key that is there twice; PyYAML would take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def read_env(text: str) -> dict[str, str]:
    """`NAME=value` per line, as Docker and systemd read it: no quotes, no expansion.

    Raises:
        ValueError: a line is none of comment, blank and assignment, or a name is there twice.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not _NAME.fullmatch(name) or name in found or value != value.strip():
            raise ValueError(f"not an assignment: {line}")
        found[name] = value
    return found


def unknown(env: Collection[str], text: str) -> set[str]:
    """Variables that are set and that the file does not have."""
    return set(env) - variables(text)

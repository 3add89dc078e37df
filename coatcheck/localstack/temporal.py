"""The Temporal development server: one process with SQLite, the Web UI and the HTTP API."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from temporalio.common import SearchAttributeKey

from coatcheck.localstack.binaries import script
from coatcheck.localstack.files import private_dir
from coatcheck.localstack.member import MemberSpec
from coatcheck.localstack.ports import LOOPBACK
from coatcheck.localstack.probe import http_ok
from schemas import search_attributes

NAMESPACE: Final = "default"
PORTS: Final = ("temporal", "temporal_ui", "temporal_http", "temporal_metrics")

_SQLITE: Final = {"journal_mode": "wal", "synchronous": "normal"}
"""The default journal is 4 to 5 times slower (measured)."""
_DYNAMIC: Final[dict[str, object]] = {
    # The default of 20 polls per second, with the one shard of this server, delays each task by up to 50 ms: a run of
    # five no-op activities takes 300 ms instead of 47 (measured).
    "history.transferProcessorMaxPollRPS": 5000,
    # A core worker that dies inside a workflow task goes unnoticed for this long. The default of 10 s made runs end up
    # to 9.4 s after the worker was back (tests/chaos); much less and a worker that replays 150 runs is too slow for it.
    "history.defaultWorkflowTaskTimeout": "5s",
    # Weights between tenants hold only with the new matcher and one partition (3:1 weights dispatch 3:1).
    "matching.useNewMatcher": True,
    "matching.enableFairness": True,
    "matching.numTaskqueueReadPartitions": 1,
    "matching.numTaskqueueWritePartitions": 1,
    "frontend.WorkflowPauseEnabled": True,
}


def member(data_dir: Path, ports: Mapping[str, int], env: Mapping[str, str]) -> MemberSpec:
    """The server with its database under `<data_dir>/temporal/`."""
    folder = private_dir(data_dir / "temporal")
    return MemberSpec(
        name="temporal",
        argv=(str(script("temporal")), "server", "start-dev", *_flags(folder, ports)),
        # A client configuration in the user's home must not reach a server that belongs to this stack.
        env={**env, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
        ready=partial(http_ok, ports["temporal_http"], f"/api/v1/namespaces/{NAMESPACE}"),
    )


def _flags(folder: Path, ports: Mapping[str, int]) -> list[str]:
    flags = ["--db-filename", str(folder / "temporal.db"), "--ip", LOOPBACK, "--port", str(ports["temporal"])]
    flags += ["--ui-port", str(ports["temporal_ui"]), "--http-port", str(ports["temporal_http"])]
    flags += ["--metrics-port", str(ports["temporal_metrics"]), "--log-level", "warn", "--ui-disable-news-fetch"]
    flags += [f"--sqlite-pragma={name}={value}" for name, value in _SQLITE.items()]
    flags += [f"--search-attribute={key.name}={_type_name(key)}" for key in search_attributes.ALL]
    flags += [f"--dynamic-config-value={key}={json.dumps(value)}" for key, value in _DYNAMIC.items()]
    return flags


def _type_name(key: SearchAttributeKey[str]) -> str:
    """`KEYWORD_LIST` → `KeywordList`, as the server spells it."""
    return "".join(part.capitalize() for part in key.indexed_value_type.name.split("_"))

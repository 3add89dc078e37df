"""Arize Phoenix, where the traces of runs are looked at: with SQLite, offline, and on the loopback alone.

850 MB, under the Elastic License 2.0: never a dependency of ours. It runs from an environment of its own, which
`make phoenix` makes, or from ours with the extra `phoenix`.
"""

import sys
import sysconfig
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from coatcheck.errors import DependencyDownError
from coatcheck.localstack.files import private_dir
from coatcheck.localstack.member import MemberSpec
from coatcheck.localstack.ports import LOOPBACK
from coatcheck.localstack.probe import http_ok

PORTS: Final = ("phoenix", "phoenix_grpc")
OWN_ENVIRONMENT: Final = ".venv-phoenix"
"""Beside ours."""
_OFFLINE: Final = {
    "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    "PHOENIX_TELEMETRY_ENABLED": "false",
    # An assistant with a shell of its own is on by default.
    "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
    "PHOENIX_ENABLE_MCP_SERVER": "false",
    "PHOENIX_LOG_MIGRATIONS": "false",
}
_SERVE: Final = f"""
from grpc.aio._server import Server
from phoenix.server.main import main

bind = Server.add_insecure_port
Server.add_insecure_port = lambda self, address: bind(self, address.replace("[::]", "{LOOPBACK}"))
main()
"""
"""Phoenix itself binds its gRPC port to every interface, whatever PHOENIX_HOST says."""


def member(data_dir: Path, ports: Mapping[str, int], env: Mapping[str, str]) -> MemberSpec:
    """The server with its database under `<data_dir>/phoenix`.

    Raises:
        DependencyDownError: it is not installed.
    """
    folder = private_dir(data_dir / "phoenix")
    variables = {
        **_OFFLINE,
        "HOME": str(folder),
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_HOST": LOOPBACK,
        "PHOENIX_PORT": str(ports["phoenix"]),
        "PHOENIX_GRPC_PORT": str(ports["phoenix_grpc"]),
    }
    return MemberSpec(
        name="phoenix",
        argv=(str(interpreter()), "-c", _SERVE, "serve"),
        env={**env, **variables},
        ready=partial(http_ok, ports["phoenix"], "/readyz"),
    )


def interpreter() -> Path:
    """The interpreter of an environment that has Phoenix.

    Raises:
        DependencyDownError: there is none.
    """
    for scripts in (Path(sysconfig.get_path("scripts")), Path(sys.prefix).with_name(OWN_ENVIRONMENT) / "bin"):
        if (scripts / "phoenix").is_file():
            return scripts / "python"
    raise DependencyDownError(
        "Phoenix is not installed",
        hint=f"`make phoenix` installs it into {OWN_ENVIRONMENT} (850 MB), `pip install 'coatcheck[phoenix]'` here",
    )

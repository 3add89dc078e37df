"""The same tests with TLS: `COATCHECK_TEST_TLS=1 make test TESTS=tests/acceptance`.

Every stack of this process gets TLS, by certificates of one authority that the process and its children trust. What a
test says about how it connects stays as it is.
"""

import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from temporalio.client import Client
from temporalio.service import TLSConfig

from coatcheck.localstack import LocalStack
from coatcheck.localstack.certificates import issue_certificates
from coatcheck.localstack.status import TemporalStatus

IS_ON = os.environ.get("COATCHECK_TEST_TLS") == "1"
_WITH_TLS: set[str] = set()
"""Addresses of Temporal in stacks of ours."""


def flags(temporal: TemporalStatus) -> list[str]:
    """What the `temporal` program has to be told besides the address."""
    return [] if temporal.ca_file is None else ["--tls-ca-path", str(temporal.ca_file)]


def switch_on() -> None:
    """From here on."""
    authority = issue_certificates(Path(tempfile.mkdtemp(prefix="coatcheck-ca-")))[0]
    # Read by OpenSSL wherever no authority is named: raw clients of NATS, and asyncpg.
    os.environ["SSL_CERT_FILE"] = str(authority)
    made, started, connected = LocalStack.__init__, LocalStack.start, Client.connect

    @functools.wraps(made)
    def make(self: LocalStack, data_dir: Path, **options: Any) -> None:
        made(self, data_dir, **{"tls": True, **options})

    @functools.wraps(started)
    def start(self: LocalStack) -> Any:
        self.config.certs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("ca.pem", "ca.key"):
            if not (self.config.certs_dir / name).exists():
                shutil.copy(authority.with_name(name), self.config.certs_dir / name)
        status = started(self)
        if status.temporal is not None and status.temporal.ca_file is not None:
            _WITH_TLS.add(status.temporal.address)
        return status

    @functools.wraps(connected)
    async def connect(target: str, **options: Any) -> Client:
        if target in _WITH_TLS and not options.get("tls"):
            options["tls"] = TLSConfig(server_root_ca_cert=authority.read_bytes())
        return await connected(target, **options)

    LocalStack.__init__ = make  # type: ignore[method-assign]
    LocalStack.start = start  # type: ignore[method-assign]
    Client.connect = staticmethod(connect)  # type: ignore[method-assign,assignment]

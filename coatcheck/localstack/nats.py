"""nats-server with JetStream, run from the same configuration file as in production."""

import json
import shutil
from collections.abc import Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Final

from coatcheck.config import load_config
from coatcheck.localstack.binaries import script
from coatcheck.localstack.config import StackConfig
from coatcheck.localstack.files import private_dir, write_private
from coatcheck.localstack.member import MemberSpec
from coatcheck.localstack.ports import LOOPBACK
from coatcheck.localstack.probe import http_ok
from coatcheck.localstack.status import NatsUserStatus
from coatcheck.messaging import accounts

PORTS: Final = ("nats", "nats_monitor")
_CONF: Final = "nats-server.conf"
_TLS_CONF: Final = "tls.conf"
_MAX_FILE_STORE: Final = "64GB"
"""Each agent's stream and bucket reserve 3 GiB, so this is room for 20 agents; they take from the disk only what they
hold. The server would otherwise take three quarters of the free disk as its limit and refuse streams beyond it."""


def prepare(config: StackConfig) -> dict[str, NatsUserStatus]:
    """Make missing keys and write the two configuration files; returns the identities by name.

    Also done for an external server: its operator needs the accounts, the workers need the keys.

    Raises:
        ConfigError: the stack's `coatcheck.toml` is wrong.
    """
    team = load_config(config.config_file)
    users = accounts.ensure_keys(private_dir(config.keys_dir), team.agents)
    folder = private_dir(config.data_dir / "nats")
    write_private(folder / "accounts.conf", accounts.render_accounts(users, team.streams))
    for name in (_CONF, _TLS_CONF):
        shutil.copyfile(_conf_source(name), folder / name)
    return {
        name: NatsUserStatus(
            account=user.account,
            user=user.user,
            password_file=user.password_file,
            nkey_file=user.nkey_file,
            inbox_prefix=user.inbox_prefix,
            js_prefix=user.js_prefix,
        )
        for name, user in users.items()
    }


def member(
    data_dir: Path, ports: Mapping[str, int], env: Mapping[str, str], *, certs: Path | None = None
) -> MemberSpec:
    """The server with its store under `<data_dir>/nats/jetstream` (it adds that folder itself).

    With `certs`, the folder of its certificate, clients speak TLS.
    """
    folder = data_dir / "nats"
    variables = {
        "NATS_SERVER_NAME": "coatcheck",
        "NATS_HOST": json.dumps(LOOPBACK),
        "NATS_PORT": str(ports["nats"]),
        "NATS_MONITOR": json.dumps(f"{LOOPBACK}:{ports['nats_monitor']}"),
        "NATS_STORE_DIR": json.dumps(str(folder)),
        "NATS_MAX_FILE_STORE": _MAX_FILE_STORE,
    }
    if certs is not None:
        files = {"CERT": "nats.pem", "KEY": "nats.key", "CA": "ca.pem"}
        variables |= {f"NATS_TLS_{name}": json.dumps(str(certs / file)) for name, file in files.items()}
    return MemberSpec(
        name="nats",
        argv=(str(script("nats-server")), "--config", str(folder / (_TLS_CONF if certs else _CONF))),
        env={**env, **variables},
        # 200 only when JetStream has recovered every stream.
        ready=partial(http_ok, ports["nats_monitor"], "/healthz"),
    )


def _conf_source(name: str) -> Path:
    """The wheel installs `deploy/` beside the package, as it lies in a checkout."""
    return Path(str(resources.files("coatcheck"))).parent / "deploy" / "nats" / name

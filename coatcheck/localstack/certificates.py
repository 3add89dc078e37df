"""Certificates for trying out TLS: an authority of one's own and a certificate per server, all in one folder.

For development and for a closed network. The authority's key lies beside the certificates, so whoever can read the
folder can be any server: a company has an authority of its own, and its certificates go to the same places.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coatcheck.errors import CoatcheckError
from coatcheck.localstack.files import private_dir, write_private

if TYPE_CHECKING:
    from trustme import CA

SERVERS: Final[dict[str, tuple[str, ...]]] = {
    "nats": ("nats", "nats-1", "nats-2", "nats-3"),
    "postgres": ("postgres",),
    "temporal": ("temporal",),
    "otelcol": ("otel-collector", "otelcol"),
    "phoenix": ("phoenix",),
}
"""Server → the names that it has in docker-compose.yml."""
LOCAL: Final = ("localhost", "127.0.0.1", "::1")
DEFAULT_DAYS: Final = 365
_ORGANIZATION: Final = "Coatcheck"
_CLOCKS: Final = timedelta(hours=1)
"""By so much may another machine's clock be behind."""


def issue_certificates(folder: Path, *, hosts: Iterable[str] = (), days: int = DEFAULT_DAYS) -> list[Path]:
    """Write `ca.pem`, `ca.key`, and `<server>.pem` and `<server>.key` of every server; returns the certificates.

    The authority stays when it is there, so a second call renews what it has signed and nobody has to be told.

    Args:
        folder: Made with mode 0700; every file in it has 0600.
        hosts: Names and addresses that every certificate has besides the server's own.
        days: How long they hold.

    Raises:
        CoatcheckError: the library is not installed, a host is no name, or the folder cannot be read or written.
    """
    try:
        authority = _authority(private_dir(folder))
        until = datetime.now(UTC) + timedelta(days=days)
        for server, names in SERVERS.items():
            leaf = authority.issue_cert(
                *dict.fromkeys((*names, *LOCAL, *hosts)),
                common_name=names[0],
                organization_name=_ORGANIZATION,
                not_before=datetime.now(UTC) - _CLOCKS,
                not_after=until,
            )
            write_private(folder / f"{server}.key", leaf.private_key_pem.bytes().decode())
            write_private(folder / f"{server}.pem", "".join(pem.bytes().decode() for pem in leaf.cert_chain_pems))
    except OSError as error:
        raise CoatcheckError(f"cannot write {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise CoatcheckError(
            f"no certificates: {error}", hint="a host is a name or an address, without a port"
        ) from error
    return [folder / f"{name}.pem" for name in ("ca", *SERVERS)]


def _authority(folder: Path) -> "CA":
    try:
        import trustme  # noqa: PLC0415  an extra
    except ImportError as error:
        raise CoatcheckError(
            "certificates need the library trustme", hint="install it with `pip install 'coatcheck[local]'`"
        ) from error
    certificate, key = folder / "ca.pem", folder / "ca.key"
    if certificate.exists() and key.exists():
        return trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())
    authority = trustme.CA(organization_name=_ORGANIZATION)
    # The key first: a certificate without its key would be an authority that can never sign again.
    write_private(key, authority.private_key_pem.bytes().decode())
    write_private(certificate, authority.cert_pem.bytes().decode())
    return authority

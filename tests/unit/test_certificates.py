"""`coatcheck certs`: who may read what, what a second call renews, and what it says when it cannot."""

import json
import ssl
import stat
import sys
from pathlib import Path

import pytest

from coatcheck.cli.deploying import write_certificates
from coatcheck.errors import CoatcheckError
from coatcheck.localstack.certificates import SERVERS, issue_certificates


def names(certificate: Path) -> set[str]:
    """What a certificate is for, as a client reads it."""
    decoded = ssl._ssl._test_decode_cert(str(certificate))  # type: ignore[attr-defined]
    return {value for _, value in decoded["subjectAltName"]}


def test_every_server_has_its_names(tmp_path: Path) -> None:
    """Those of docker-compose.yml, the loopback, and what was asked for besides."""
    issue_certificates(tmp_path, hosts=["build-7.example.com", "10.1.2.3"])
    for server, own in SERVERS.items():
        assert {*own, "localhost", "127.0.0.1", "build-7.example.com", "10.1.2.3"} <= names(tmp_path / f"{server}.pem")


def test_nobody_else_can_read_them(tmp_path: Path) -> None:
    """The folder and every file in it."""
    issue_certificates(tmp_path / "certs")
    assert stat.S_IMODE((tmp_path / "certs").stat().st_mode) == 0o700
    files = list((tmp_path / "certs").iterdir())
    assert len(files) == 2 + 2 * len(SERVERS)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_a_second_call_renews_what_the_same_authority_has_signed(tmp_path: Path) -> None:
    """Whoever trusts the authority need not be told."""
    [authority, *certificates] = issue_certificates(tmp_path)
    before = [path.read_bytes() for path in (authority, *certificates)]
    issue_certificates(tmp_path)
    after = [path.read_bytes() for path in (authority, *certificates)]
    assert after[0] == before[0]
    assert all(new != old for new, old in zip(after[1:], before[1:], strict=True))


def test_what_cannot_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with a port, a folder that is a file, a library that is not installed."""
    with pytest.raises(CoatcheckError, match="no certificates") as refused:
        issue_certificates(tmp_path / "a", hosts=["nats 1:4222"])
    assert "without a port" in str(refused.value.hint)
    (tmp_path / "file").touch()
    with pytest.raises(CoatcheckError, match="cannot write"):
        issue_certificates(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(CoatcheckError, match="trustme") as refused:
        issue_certificates(tmp_path / "b")
    assert "coatcheck[local]" in str(refused.value.hint)


def test_the_command_says_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As paths, or as JSON; and how to trust them."""
    write_certificates(tmp_path, [], days=3, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["authority"] == str(tmp_path / "ca.pem")
    assert len(told["certificates"]) == len(SERVERS)
    write_certificates(tmp_path, [], days=3, as_json=False)
    assert f"NATS_CA={tmp_path / 'ca.pem'}" in capsys.readouterr().err

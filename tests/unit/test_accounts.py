"""Keys and the rendered accounts."""

import stat
from pathlib import Path

import nkeys  # type: ignore[import-untyped]
import pytest

from coatcheck.errors import NotAuthorizedError
from coatcheck.messaging.accounts import ensure_keys, load_user, render_accounts
from schemas.streams import AGENTS, STREAMS


def test_keys_are_private_and_stay(tmp_path: Path) -> None:
    """Files 0600 in a folder 0700; a second call changes nothing."""
    folder = tmp_path / "nats" / "keys"
    users = ensure_keys(folder, AGENTS)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(users) == {"core", "gateway", "sys", "observer", "judge", *AGENTS}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert ensure_keys(folder, AGENTS) == users
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_one_more_agent_keeps_the_others(tmp_path: Path) -> None:
    """Adding an agent makes one key."""
    first = ensure_keys(tmp_path, ["roy"])
    second = ensure_keys(tmp_path, ["roy", "new-agent"])
    assert second["roy"] == first["roy"]
    assert second["new-agent"].account == "NEW-AGENT"


def test_a_process_needs_its_own_key_only(tmp_path: Path) -> None:
    """And is told when it has none."""
    users = ensure_keys(tmp_path / "all", ["roy"])
    alone = tmp_path / "alone"
    alone.mkdir()
    key = users["roy"].nkey_file
    assert key is not None
    (alone / "roy.nk").write_bytes(key.read_bytes())
    assert load_user(alone, "roy").user == users["roy"].user
    with pytest.raises(NotAuthorizedError, match="no NATS key for 'jen'"):
        load_user(alone, "jen")


@pytest.mark.parametrize("name", ["hub", "core", "gateway", "sys", "observer", "judge", "Roy", "a.b", ""])
def test_names_that_are_taken_or_illegal_are_refused(tmp_path: Path, name: str) -> None:
    """Before any key is made."""
    with pytest.raises(ValueError, match=r"slug|named"):
        ensure_keys(tmp_path, [name])
    assert not list(tmp_path.iterdir())


def test_the_configuration_holds_no_seed(tmp_path: Path) -> None:
    """Public keys and the observer's password only; the status of a user never shows the password."""
    users = ensure_keys(tmp_path, AGENTS)
    text = render_accounts(users, STREAMS)
    for user in users.values():
        if user.nkey_file is not None:
            seed = user.nkey_file.read_bytes()
            assert seed.decode() not in text
            assert nkeys.from_seed(bytearray(seed)).public_key.decode() == user.user
            assert user.user in text
    password = users["observer"].password_file
    assert password is not None
    assert password.read_text() in text
    assert password.read_text() not in users["observer"].model_dump_json() + repr(users["observer"])

"""New keys for NATS identities while everything runs: three steps, each of which can be repeated after a crash.

`begin` makes the next key; the server, told by `accounts.conf`, takes the present and the next one. `switch` puts it in
the present one's place, and whoever uses the file follows within seconds (`NatsClient`, `Signatures`). `finish` retires
the old one; what it has signed stays good. What is under way is said by files: `<name>.nk.next`, a seed, and
`<name>.nk.previous`, a public key. A password has no next one: a user of NATS has one, so `switch` replaces it, and who
holds the old one is cut off when the server is told.
"""

import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import nkeys  # type: ignore[import-untyped]

from coatcheck.messaging.accounts import NEXT, PREVIOUS, NatsUser, load_user, new_seed, write_once
from coatcheck.messaging.keyring import KEYRING_FILE, Keyring

CLOCKS: Final = timedelta(minutes=5)
"""By so much may this machine's clock be behind the NATS server's, which says when a deliverable was stored."""


def begin(keys_dir: Path, names: Iterable[str]) -> None:
    """Make the next key of each that has one, and put it into the keyring before anybody signs with it."""
    ring = Keyring.load(keys_dir / KEYRING_FILE)
    for name in names:
        user = load_user(keys_dir, name)
        if user.nkey_file is None or _previous(user.nkey_file).exists():
            continue  # one without a key, or switched already
        write_once(_next(user.nkey_file), new_seed())
        ring = ring.with_key(name, _public(_next(user.nkey_file)))
    ring.save(keys_dir / KEYRING_FILE)


def next_user(keys_dir: Path, name: str) -> NatsUser | None:
    """The identity with its next key; `None` without one."""
    user = load_user(keys_dir, name)
    if user.nkey_file is None or not _next(user.nkey_file).exists():
        return None
    file = _next(user.nkey_file)
    return user.model_copy(update={"nkey_file": file, "user": _public(file)})


def switch(keys_dir: Path, names: Iterable[str]) -> Mapping[str, str]:
    """Put next keys and new passwords in place.

    Returns:
        Identity → the public key that it had, which the server still takes.
    """
    had = {}
    for name in names:
        user = load_user(keys_dir, name)
        if user.password_file is not None:
            _replace(user.password_file, secrets.token_urlsafe(24))
        if user.nkey_file is None:
            continue
        if _next(user.nkey_file).exists():
            _replace(_previous(user.nkey_file), user.user)
            _next(user.nkey_file).replace(user.nkey_file)
        if _previous(user.nkey_file).exists():
            had[name] = _previous(user.nkey_file).read_text().strip()
    return had


def finish(keys_dir: Path, names: Iterable[str]) -> None:
    """Retire what was replaced; the server, told by `accounts.conf`, takes it no longer."""
    ring = Keyring.load(keys_dir / KEYRING_FILE)
    for name in names:
        user = load_user(keys_dir, name)
        if user.nkey_file is not None:
            ring = ring.with_key(name, user.user).retiring(name, but=user.user, at=datetime.now(UTC) + CLOCKS)
            ring.save(keys_dir / KEYRING_FILE)
            _previous(user.nkey_file).unlink(missing_ok=True)


def _next(file: Path) -> Path:
    return file.with_name(file.name + NEXT)


def _previous(file: Path) -> Path:
    return file.with_name(file.name + PREVIOUS)


def _public(file: Path) -> str:
    public: str = nkeys.from_seed(bytearray(file.read_bytes().strip())).public_key.decode()
    return public


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_once(draft, text.encode())
    draft.replace(path)

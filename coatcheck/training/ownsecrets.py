"""The secrets of this very installation, by value: what an operator would least like to find in a data set.

Their values are looked for as they are, so that a key of a kind that no rule knows does not get out either.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from coatcheck.training.detectors import KEY_NAME
from coatcheck.training.redaction import LEAST_SECRET

_MORE_NAMES: Final = ("TOKEN", "AUTH", "PRIVATE", "SIGNING", "DSN", "KEY")


def own_secrets(environment: Mapping[str, str], *, folders: Iterable[Path] = (), urls: Iterable[str] = ()) -> set[str]:
    """Passwords, keys and tokens that this process can reach.

    Args:
        environment: Every variable whose name speaks of a secret, and the password in any address.
        folders: Every file in them is a key, such as those of the NATS identities.
        urls: Addresses with passwords that are not in the environment, such as those of the local stack.

    Raises:
        OSError: a key cannot be read, so nobody could tell whether it gets out.
    """
    found: set[str] = set()
    for name, value in environment.items():
        found.update(_passwords(value))
        if KEY_NAME.search(name) or any(word in name.upper() for word in _MORE_NAMES):
            found.add(value.strip())
    for url in urls:
        found.update(_passwords(url))
    for folder in folders:
        for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
            if path.is_file():
                found.update(line.strip() for line in path.read_text("utf-8", "replace").splitlines())
    return {secret for secret in found if len(secret) >= LEAST_SECRET and not _is_place(secret)}


def spellings(secret: str) -> Iterator[bytes]:
    """How a secret may stand in a file: plain, in JSON, in CSV, in an address, in base64 at each of three offsets."""
    raw = secret.encode("utf-8", "surrogatepass")
    plain = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    plain |= {secret.replace('"', '""'), quote(secret, safe="", errors="replace")}
    yield from sorted(text.encode("utf-8", "surrogatepass") for text in plain)
    for offset in range(3):
        # The first and the last characters depend on the neighbours, so they are left out.
        coded = base64.b64encode(b"\0" * offset + raw)
        inner = coded[(offset * 8 + 5) // 6 : (offset + len(raw)) * 8 // 6]
        if len(inner) >= LEAST_SECRET:
            yield inner
            yield inner.replace(b"+", b"-").replace(b"/", b"_")


def _passwords(value: str) -> Iterator[str]:
    if "://" not in value or "@" not in value:
        return
    try:
        password = urlsplit(value.strip()).password
    except ValueError:
        return
    if password:
        yield from (password, unquote(password))


def _is_place(value: str) -> bool:
    """A variable such as `COATCHECK_NATS_KEYS_DIR` speaks of keys, and its value is none."""
    return value.startswith(("/", "./", "~")) and Path(value).expanduser().exists()

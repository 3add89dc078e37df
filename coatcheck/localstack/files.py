"""Files that only their owner may read, written whole or not at all."""

import os
import secrets
from pathlib import Path
from typing import IO


def private_dir(path: Path) -> Path:
    """Create `path` (and its parents) with mode 0700 and return it; an existing folder keeps its mode."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step, mode 0600. A reader sees the old text or the new one."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.touch(mode=0o600)
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def append_private(path: Path) -> IO[bytes]:
    """Open `path` for appending, mode 0600; several writers' lines do not overwrite each other."""
    private_dir(path.parent)
    path.touch(mode=0o600)
    return path.open("ab")


def password(path: Path) -> str:
    """The password kept in `path`; a new one (32 hex digits) is written there when it is missing."""
    if not path.exists():
        write_private(path, secrets.token_hex(16))
    return path.read_text(encoding="utf-8").strip()

"""A role's prompt: a Markdown file beside `coatcheck.toml`, or one of ours by its name."""

from importlib import resources
from pathlib import Path
from typing import Final

MAX_PROMPT_BYTES: Final = 256 * 1024
"""As large as a brief may be; it is sent with every model call of the role."""


class UnreadableError(Exception):
    """A file is not there, not to be read from here, or not what it should be; the text says so to its writer."""


def read_prompt(name: str, folder: Path) -> str:
    """The text of the prompt file `name`.

    Args:
        name: Relative to `folder` and inside it, links followed; or absolute; or the name of a prompt of ours, which
            is taken when `folder` has no such file.
        folder: Where `coatcheck.toml` is.

    Raises:
        UnreadableError: there is none, it leads out of `folder`, or it is no UTF-8 text of at most 256 KB.
    """
    if "\0" in name:
        raise UnreadableError(f"{name!r} is no file's name")
    path = folder / name
    if not Path(name).is_absolute() and not path.resolve().is_relative_to(folder.resolve()):
        raise UnreadableError(f"{name!r} leads out of {folder}; a file elsewhere needs its absolute path")
    if not path.exists() and (ours := _ours(name)) is not None:
        return ours
    text = read_text(path, MAX_PROMPT_BYTES)
    if not text.strip():
        raise UnreadableError(f"{path} is empty")
    return text


def read_text(path: Path, limit: int) -> str:
    """A regular file of at most `limit` bytes as UTF-8.

    Raises:
        UnreadableError: it is not that.
    """
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may never end
            raise UnreadableError(f"{path} is not a file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise UnreadableError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise UnreadableError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > limit:
        raise UnreadableError(f"{path} has more than {limit:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnreadableError(f"{path} is not UTF-8 text: line {line} has the byte {data[error.start]:#04x}") from error


def _ours(name: str) -> str | None:
    if Path(name).name != name:
        return None
    file = resources.files("coatcheck.agents").joinpath("prompts", name)
    return file.read_text(encoding="utf-8") if file.is_file() else None

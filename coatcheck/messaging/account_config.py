"""A NATS account as data, and how nats-server's file spells it. Who has which is `accounts`.

Apart, so that what is declared can be held against what a server does (`authorization`), not only be written out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Share:
    """What one account lets others use, or uses of another."""

    kind: Literal["service", "stream"]
    """Requests go in, or messages come out."""
    subject: str
    accounts: tuple[str, ...]
    """Of an export: who may; of an import: whose it is."""
    to: str | None = None
    """Of an import: where it is found instead."""
    more: str = ""


@dataclass(frozen=True)
class Login:
    """The user of an account; `None` for whoever may do everything inside it."""

    name: str
    credentials: tuple[str, ...]
    """Any of which will do: two while a key is being replaced."""
    publish: tuple[str, ...] | None = None
    subscribe: tuple[str, ...] | None = None
    responses: str = ""


@dataclass(frozen=True)
class Account:
    """One NATS account with its one user."""

    name: str
    login: Login
    exports: tuple[Share, ...] = ()
    imports: tuple[Share, ...] = ()
    jetstream: bool = False


def rendered(account: Account) -> str:
    """The account as it stands in the server's file."""
    lines = [f"  {account.name}: {{"]
    if account.jetstream:
        lines.append("    jetstream: enabled")
    users = [_user(account.login, credentials) for credentials in account.login.credentials]
    exports, imports = map(_rendered_export, account.exports), map(_rendered_import, account.imports)
    for key, items in (("users", users), ("exports", [*exports]), ("imports", [*imports])):
        if items:
            lines += [f"    {key}: [", *(f"      {item}" for item in items), "    ]"]
    return "\n".join([*lines, "  }"])


def _user(login: Login, credentials: str) -> str:
    if login.publish is None or login.subscribe is None:
        return f"{{ {credentials} }}"
    rules = [f"{verb}: {{ allow: {json.dumps(list(subjects))} }}" for verb, subjects in _rules(login)]
    return f"{{ {credentials}, permissions: {{ {', '.join(filter(None, (*rules, login.responses)))} }} }}"


def _rules(login: Login) -> Sequence[tuple[str, tuple[str, ...]]]:
    return (("publish", login.publish or ()), ("subscribe", login.subscribe or ()))


def _rendered_export(share: Share) -> str:
    return f"{{ {share.kind}: {json.dumps(share.subject)}, accounts: {json.dumps(list(share.accounts))}{share.more} }}"


def _rendered_import(share: Share) -> str:
    target = f", to: {json.dumps(share.to)}" if share.to else ""
    return f"{{ {share.kind}: {{ account: {share.accounts[0]}, subject: {json.dumps(share.subject)} }}{target} }}"

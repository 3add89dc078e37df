"""Planted secrets and personal data: each made up, in its vendor's form, with the part that must never get out.

Tokens are put together from halves, so that no scanner takes this file for a leak.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_A: Final = "abcdEFGH1234567890"
_PEM: Final = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\nZx81QuokkaLagoonWTx0vLrXc9b7"
OWN_SECRET: Final = "Zx81_quokka_lagoon"
"""Of no known form: found by its value alone."""


@dataclass(frozen=True)
class Canary:
    """A text with a secret in it, and pieces of it by which a leak is noticed."""

    name: str
    text: str
    pieces: tuple[str, ...]


def _canary(name: str, secret: str, text: str = "use {} now", pieces: tuple[str, ...] = ()) -> Canary:
    return Canary(name, text.format(secret), pieces or (secret,))


CANARIES: Final = (
    _canary("openai", f"sk-proj-{_A}{_A}T3BlbkFJ{_A}"),
    _canary("anthropic", "sk-ant-" + "api03-Zk9vQ2xLb3JwNnJtU0dYcTdZd0p4ZTVWYm1OaEtqTHBPdVl0UmVX"),
    _canary("aws", "AKIA" + "QYLPMN5HFIQR7XYA"),
    _canary("aws secret", "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYzQ8kLmNoPq", "aws_secret_access_key = {}"),
    _canary("github", "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"),
    _canary("github fine", "github_pat_" + "11ABCDEFG0abcdefghijkl_MNOPQRSTUVWXYZabcdefghijklmnopq"),
    _canary("gitlab", "glpat-" + "AbCdEfGhIjKlMnOpQrSt"),
    _canary("slack", "xoxb-" + "1234567890123-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx"),
    _canary("google", "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q"),
    _canary("stripe", "sk_live_" + "51H8abcDEFghiJKLmnoPQRstuVWXyz0123456789"),
    _canary("hugging face", "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh"),
    _canary("sendgrid", "SG." + "abcdefghijklmnopqrstuv.abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"),
    _canary("npm", "npm_" + "abcdefghijklmnopqrstuvwxyz0123456789"),
    _canary("nats", "SUAIBDPBAUTWCWBKIO6XHQNINK5FWJW4" + "OHLXC3HQ2KFE4PEJUA44CNHTC4"),
    _canary("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"),
    _canary("bearer", "0pAqUe-" + "token.without~form", "Authorization: Bearer {}"),
    _canary("url", "Sup3rS3cret" + "Pw", "postgres://coat:{}@db.internal:5432/x"),
    _canary("password", "correct-horse-" + "battery", 'password = "{}"'),
    _canary("yaml", "hunter2" + "hunter", "db_password: {}"),
    _canary("json", "hunter3" + "hunter", '{{"api_key": "{}", "n": 1}}'),
    _canary(
        "private key",
        f"-----BEGIN PRIVATE KEY-----\n{_PEM}\n-----END PRIVATE KEY-----",
        pieces=tuple(_PEM.splitlines()),
    ),
    _canary("cut private key", f"-----BEGIN RSA PRIVATE KEY-----\n{_PEM}", pieces=tuple(_PEM.splitlines())),
    _canary("basic", base64.b64encode(b"alice:wonderland9").decode(), "Authorization: Basic {}"),
    _canary("own", OWN_SECRET),
    _canary("email", "bob.smith+x@corp.internal"),
    _canary("email of Unicode", "jürgen@exämple.de"),
    _canary("phone abroad", "+41 44 668 18 00", "call {}!"),
    _canary("phone in the US", "(415) 555-2671", "call {}!"),
    _canary("phone in Britain", "020 7946 0958", "call {}!"),
    _canary("card", "4111 1111 1111 1111", "{} 12/30"),
    _canary("card beside a number", "5500005555555559", "{} 12 items"),
    _canary("iban", "DE89 3704 0044 0532 0130 00", "to {} please"),
    _canary("iban in one word", "GB82WEST12345698765432", "to {} please"),
    _canary("ssn", "078-05-1120"),
    _canary("public address", "8.8.4.4", "from {} today"),
)


def escaped(canary: Canary) -> dict[str, Canary]:
    """The same as it is spelled elsewhere: within JSON, JSON in JSON, an address, base64."""
    json_text = json.dumps({"said": canary.text})
    coded = base64.b64encode(canary.text.encode()).decode()
    return {
        "json": Canary(canary.name, json_text, canary.pieces),
        "json in json": Canary(canary.name, json.dumps({"arguments": json_text}), canary.pieces),
        "every character escaped": _spelled(canary, lambda text: "".join(f"\\u{ord(item):04x}" for item in text)),
        "every third escaped": _spelled(canary, _every_third),
        "percent": _spelled(canary, lambda text: "".join(f"%{byte:02X}" for byte in text.encode("latin-1"))),
        "html": _spelled(canary, lambda text: "".join(f"&#{ord(item)};" for item in text)),
        "unseen characters": _spelled(canary, "\u200b".join),
        "base64": Canary(canary.name, coded, (coded,)),
        "hexadecimal": Canary(canary.name, canary.text.encode().hex(), (canary.text.encode().hex(),)),
    }


def _spelled(canary: Canary, spell: Callable[[str], str]) -> Canary:
    return Canary(canary.name, spell(canary.text), tuple(spell(piece) for piece in canary.pieces))


def _every_third(text: str) -> str:
    return "".join(f"\\u{ord(item):04x}" if number % 3 == 2 else item for number, item in enumerate(text))

"""The ledger's names and messages: accounts, what moved, and the service `agog.svc.ledger.<verb>.<agent>`.

Amounts are integer micro-credits; a credit is a US dollar. Who asks the service is told by the subject, never by the
body: an agent sees and spends its own account, and cannot name another one.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

MICROCREDITS: Final = 1_000_000
"""Of one credit."""
MOST_MICROCREDITS: Final = 10**15
"""A thousand million dollars in one movement: far below the 64 bits of the database, so that no sum overflows."""
MAX_PAGE: Final = 500

TREASURY: Final = "treasury"
"""Where credits come from; negative by as much as all other accounts have together."""
MARKET: Final = "market"

Amount = Annotated[int, Field(strict=True, gt=0, le=MOST_MICROCREDITS)]
"""Micro-credits that move or are held."""
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/-]{1,100}$")]
"""The caller's own idempotency key."""


def tenant_account(tenant: str) -> str:
    """Of a tenant, who pays for its runs."""
    return f"tenant/{tenant}"


def run_account(run_key: str) -> str:
    """Where a run's budget is while the run is under way."""
    return f"run/{run_key}"


def agent_account(agent: str) -> str:
    """An agent's own money, for what it buys itself."""
    return f"agent/{agent}"


def provider_account(model: str) -> str:
    """Who is paid for a call of `provider:model`."""
    return f"provider/{model.partition(':')[0]}"


class Balance(BaseModel):
    """An account as it is."""

    model_config = ConfigDict(frozen=True)

    account: str
    balance: int
    """Micro-credits; negative for the treasury alone."""
    held: int
    """Of the balance, what reservations hold."""
    free: int


class Entry(BaseModel):
    """One side of a transfer, as the account's statement has it."""

    model_config = ConfigDict(frozen=True)

    sequence: int
    transfer_id: str
    kind: str
    account: str
    other: str
    """The account at the other end."""
    amount: int
    """Negative when the account paid."""
    agent: str | None
    """Whose work it was for."""
    memo: str
    timestamp: datetime


class Page(BaseModel):
    """Entries, newest first."""

    model_config = ConfigDict(frozen=True)

    entries: list[Entry]
    before: int | None
    """Ask again with this for older ones; `None` at the end."""


class HoldStatus(StrEnum):
    """What became of a reservation."""

    HELD = "held"
    REFUSED = "refused"
    SETTLED = "settled"
    """It was, and paid for, before."""


class Reservation(BaseModel):
    """The answer to `reserve`. That there is too little is an answer and no error."""

    model_config = ConfigDict(frozen=True)

    status: HoldStatus
    amount: int = 0
    """What is held."""
    by: str = ""
    """The account or limit that is short."""
    unit: Literal["credits", "tokens", "calls"] = "credits"
    left: int = 0
    """What it has left; credits are micro-credits."""
    needed: int = 0


class Verb(StrEnum):
    """What an agent may ask; the last but one token of the subject."""

    BALANCE = "balance"
    HISTORY = "history"
    RESERVE = "reserve"
    SETTLE = "settle"
    RELEASE = "release"


class HistoryRequest(BaseModel):
    """Ask for a page of one's own statement."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    before: Annotated[int, Field(strict=True, ge=1)] | None = None
    limit: Annotated[int, Field(strict=True, ge=1, le=MAX_PAGE)] = 50


class ReserveRequest(BaseModel):
    """Hold an amount for something that is about to be bought. The same key again replaces its reservation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Key
    amount: Amount
    seconds: Annotated[int, Field(strict=True, ge=1, le=86_400)] = 600
    """Then it expires by itself."""


class SettleRequest(BaseModel):
    """Pay what was really used, at most what is held; the rest is free again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Key
    amount: Annotated[int, Field(strict=True, ge=0, le=MOST_MICROCREDITS)]
    memo: Annotated[str, Field(max_length=200)] = ""


class ReleaseRequest(BaseModel):
    """Give a reservation back whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Key


class LedgerReply(BaseModel):
    """Exactly one of the answers, or an error."""

    balance: Balance | None = None
    page: Page | None = None
    reservation: Reservation | None = None
    settled: Literal["settled", "duplicate", "gone"] | None = None
    """`gone`: nothing is held under that key, because it was released or has expired; nothing was paid."""
    released: bool | None = None
    code: str | None = None
    message: str = ""
    retryable: bool = False

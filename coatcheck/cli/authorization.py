"""`doctor authz`: every NATS identity and every action, as declared and as the server lets them."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import typer

from coatcheck.cli.output import columns, emit, emit_json
from coatcheck.cli.session import UP_HINT, load_settings
from coatcheck.cli.voice import EXIT_FAILED, tell
from coatcheck.config import load_config
from coatcheck.errors import CoatcheckError, MessagingUnavailableError
from coatcheck.messaging.accounts import FIXED_IDENTITIES, declared_accounts, load_user
from coatcheck.messaging.authorization import actions
from coatcheck.messaging.authorization_trial import Court, Found, Trial

_HINT: Final = (
    "the server's accounts.conf is not what `coatcheck nats-config` writes now: write it, and reload the server"
)


async def authz(*, as_json: bool, data_dir: Path) -> None:
    """Try everything and print the matrix.

    Raises:
        MessagingUnavailableError: NATS is away.
        NotAuthorizedError: the key of an identity is not here, or the server does not accept it.
        CoatcheckError: all share one account.
        Exit: with 1 when the server lets anybody do more or less than is declared.
    """
    settings = load_settings(data_dir)
    if settings.nats_isolation == "shared":
        raise CoatcheckError(
            "all share one NATS account, so everybody may do everything", hint="COATCHECK_NATS_ISOLATION"
        )
    if settings.nats_url is None:
        raise MessagingUnavailableError("no NATS is known", hint=UP_HINT)
    team, begun = load_config(settings.config_file), time.monotonic()
    users = {name: load_user(settings.keys_dir, name) for name in (*FIXED_IDENTITIES, *team.agents)}
    court = Court(settings.nats_url, users, declared_accounts(users, team.streams), ca_file=settings.nats_ca_file)
    # Of two answers to one probe, the server may refuse the later one: ours, since a worker was there.
    logging.getLogger("coatcheck.messaging.connection").setLevel(logging.ERROR)
    trials = await court.try_all(actions(users, team.streams))
    problems = [trial for trial in trials if trial.is_hole or trial.is_missing]
    if as_json:
        emit_json({"problems": list(map(_told, problems)), "trials": list(map(_told, trials))})
    else:
        emit(_matrix(trials, list(users)))
        tell(f"{len(trials):,} attempts of {len(users)} identities in {time.monotonic() - begun:.1f} s")
        for trial in problems:
            tell(f"error: {_said(trial)}")
    if problems:
        tell(f"hint: {_HINT}")
        raise typer.Exit(EXIT_FAILED)


def _matrix(trials: Sequence[Trial], users: Sequence[str]) -> str:
    """A row per family: which share of it each identity has; `!` where that is not what is declared."""
    families = dict.fromkeys(trial.action.family for trial in trials)
    rows = [
        [family, *(_cell([it for it in trials if it.action.family == family and it.user == user]) for user in users)]
        for family in families
    ]
    return columns(("action", *users), rows)


def _cell(trials: Sequence[Trial]) -> str:
    able = sum(it.found == Found.REACHED or (it.declared and it.found == Found.UNTRIED) for it in trials)
    share = "-" if not able else "all" if able == len(trials) else f"{able}/{len(trials)}"
    return f"{share} !" if any(it.is_hole or it.is_missing for it in trials) else share


def _said(trial: Trial) -> str:
    action = trial.action
    what = f"{trial.user}: {action.family}, {action.target} ({action.subject.removeprefix('{js}.')})"
    return f"{what} is {trial.found}, and " + ("should be possible" if trial.declared else "must not be")


def _told(trial: Trial) -> dict[str, object]:
    action = trial.action
    return {
        "user": trial.user,
        "action": action.family,
        "target": action.target,
        "subject": action.subject,
        "declared": trial.declared,
        "found": trial.found,
        "problem": "hole" if trial.is_hole else "missing" if trial.is_missing else None,
    }

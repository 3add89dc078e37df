"""The circuit breaker as a value: what opens it, for how long, who may try, and what is too old to count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.gateway import breaker
from coatcheck.gateway.breaker import BreakerState, Cause

NOW = 1_000_000.0
CLOSED = BreakerState()


def trip(state: BreakerState = CLOSED, *, now: float = NOW, **fields: object) -> BreakerState | None:
    """A refusal of a call that was begun just now."""
    known = {"began": now, "cause": Cause.RATE_LIMIT, "reason": "429", "retry_after": None, "base_seconds": 30.0}
    return breaker.trip(state, now=now, **(known | fields))  # type: ignore[arg-type]


def opened(state: BreakerState = CLOSED, **fields: object) -> BreakerState:
    """A breaker that such a refusal opens."""
    new = trip(state, **fields)  # type: ignore[arg-type]
    assert new is not None
    return new


def test_it_opens_for_as_long_as_the_provider_says() -> None:
    """To the second, and says so."""
    state = opened(retry_after=7.5)
    assert (state.state, state.until, state.opens, state.reason) == ("open", NOW + 7.5, 1, "429")
    assert not state.closed()
    assert not state.may_probe(NOW + 7.4)
    assert state.may_probe(NOW + 7.5)


@pytest.mark.parametrize(
    ("cause", "waits"),
    [
        (Cause.RATE_LIMIT, [5, 10, 20, 40, 60, 60]),
        (Cause.OUTAGE, [30, 60, 120, 240, 300, 300]),
        (Cause.REFUSED, [300, 300]),
    ],
)
def test_waits_grow_while_nothing_answers(cause: Cause, waits: list[float]) -> None:
    """Each window is opened by the probe of the one before."""
    state, now, found = CLOSED, NOW, []
    for _ in waits:
        state = opened(state, now=now, cause=cause)
        found.append(state.until - now)
        now = state.until
        probing = breaker.probe(state, now=now)
        assert probing is not None
        state = probing
    assert found == waits
    assert state.opens == len(waits)


def test_another_cause_begins_anew() -> None:
    """A provider that was over its limit and is now down is not away for longer than one that is just down."""
    state = opened(opened(retry_after=1), now=NOW + 2, cause=Cause.OUTAGE)
    assert (state.until, state.opens, state.streak) == (NOW + 32, 2, 1)


def test_a_window_is_opened_once() -> None:
    """Those who meet the same refusal while it is open change nothing, unless they were told to stay away longer."""
    state = opened(retry_after=5)
    assert trip(state, now=NOW + 1) is None
    assert trip(state, now=NOW + 1, retry_after=4.5) is None
    assert trip(state, now=NOW + 1, retry_after=0) is None
    longer = trip(state, now=NOW + 1, began=NOW - 1, retry_after=60)
    assert longer is not None
    assert (longer.until, longer.opens) == (NOW + 61, 1)


def test_one_probes_and_the_others_wait() -> None:
    """Until it has an answer, or has been away for too long."""
    state = opened(retry_after=5)
    assert breaker.probe(state, now=NOW + 4) is None
    assert breaker.probe(CLOSED, now=NOW) is None
    probing = breaker.probe(state, now=NOW + 5)
    assert probing is not None
    assert probing.state == "half_open"
    assert breaker.probe(probing, now=NOW + 6) is None
    again = breaker.probe(probing, now=NOW + 5 + breaker.PROBE_SECONDS)
    assert again is not None
    assert again.since == NOW + 35


def test_an_answer_to_the_probe_closes_it() -> None:
    """The count of windows stays, and when it came back; nothing else does."""
    probing = breaker.probe(opened(retry_after=5), now=NOW + 5)
    assert probing is not None
    closed = breaker.recover(probing, now=NOW + 9, began=NOW + 5)
    assert closed == BreakerState(since=NOW + 9, opens=1, recovered=NOW + 9)


def test_it_remembers_through_later_windows_when_it_last_came_back() -> None:
    """Or a turn that closes it again at once could not be told from an outage; another version's value has none."""
    closed = breaker.recover(opened(retry_after=0), now=NOW + 1, began=NOW)
    assert closed is not None
    again = opened(closed, now=NOW + 2)
    probing = breaker.probe(again, now=again.until)
    assert probing is not None
    given_back = breaker.give_back(probing, now=again.until, taken=again.until)
    assert given_back is not None
    assert {state.recovered for state in (again, probing, given_back, opened(probing, now=again.until + 1))} == {
        NOW + 1
    }
    assert BreakerState.model_validate_json('{"state": "open", "until": 5}').recovered is None
    assert breaker.recover(CLOSED, now=NOW, began=NOW) is None


def test_a_probe_without_a_call_is_given_back() -> None:
    """The next one may try at once; a probe that is not the present one gives nothing back."""
    probing = breaker.probe(opened(retry_after=5), now=NOW + 5)
    assert probing is not None
    assert breaker.give_back(probing, now=NOW + 6, taken=NOW + 4) is None
    back = breaker.give_back(probing, now=NOW + 6, taken=NOW + 5)
    assert back is not None
    assert (back.state, back.opens) == ("open", 1)
    assert back.may_probe(NOW + 6)


def test_old_evidence_says_nothing() -> None:
    """A call begun before the breaker closed cannot open it; one begun before it opened cannot close it."""
    state = BreakerState(since=NOW, opens=1)
    assert trip(state, now=NOW + 1, began=NOW - 1) is None
    assert trip(state, now=NOW + 1, began=NOW) is not None
    assert breaker.recover(opened(retry_after=5), now=NOW + 6, began=NOW - 1) is None


def test_an_answer_does_not_cut_a_retry_after_short() -> None:
    """Of a call that was begun after it, by a gateway that had not heard; it does show that an outage is over."""
    assert breaker.recover(opened(retry_after=5), now=NOW + 1, began=NOW + 0.5) is None
    assert breaker.recover(opened(cause=Cause.OUTAGE), now=NOW + 1, began=NOW + 0.5) is not None


def test_nobody_is_left_alone_for_a_day() -> None:
    """However long a provider says; and no time is before now."""
    assert opened(retry_after=86_400).until == NOW + 3600
    assert opened(retry_after=-5).until == NOW


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["trip", "probe", "answer", "give_back"]),
        st.floats(0, 40),  # seconds that pass
        st.floats(0, 60),  # how old the call is
        st.sampled_from([None, 0.0, 0.5, 3.0, 100.0]),  # Retry-After
        st.sampled_from(Cause),
    ),
    max_size=40,
)


@given(EVENTS)
def test_whatever_happens(events: list[tuple[str, float, float, float | None, Cause]]) -> None:
    """Nobody may ask before a window is over, one at a time may probe, and windows are counted exactly."""
    state, now, windows, probe_until = CLOSED, NOW, 0, 0.0
    for event, passed, age, retry_after, cause in events:
        now += passed
        began = now - age
        match event:
            case "trip":
                new = trip(state, now=now, began=began, retry_after=retry_after, cause=cause)
            case "probe":
                new = breaker.probe(state, now=now)
            case "answer":
                new = breaker.recover(state, now=now, began=began)
            case _:
                new = breaker.give_back(state, now=now, taken=state.since)
        if new is None:
            continue
        assert new != state
        if event == "trip" and not (state.state == "open" and state.until > now):
            windows += 1
        if event == "probe":
            assert now >= state.until
            assert now >= probe_until or state.state != "half_open"
            probe_until = new.until
        if state.state == "open" and state.until > now:
            # nothing but a longer wait, or an answer that came after the window had begun, changes an open window
            is_longer = new.state == "open" and new.until > state.until
            assert is_longer or (event == "answer" and began >= state.since and state.cause is not Cause.RATE_LIMIT)
        assert new.since <= now
        assert new.closed() or new.until >= now
        assert new.closed() or new.until <= now + breaker.LONGEST_RETRY_AFTER_SECONDS
        state = new
        assert state.opens == windows
    assert BreakerState.model_validate_json(state.model_dump_json()) == state

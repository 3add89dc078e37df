"""Which feature of a program is next, whatever the order in which the others end."""

from collections import Counter
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import Tenant
from schemas.pipeline import FeatureRequest, PipelineResult
from schemas.program import MAX_REASON_CHARACTERS, FeatureState, FeatureWaits, ProgramRequest
from workflows.program_state import Feature, ProgramState

TENANTS = ("a", "b", "c")


def program(*features: dict[str, object], places: int = 5, weights: dict[str, float] | None = None) -> ProgramState:
    """A program of features that are named by their place in it."""
    requests = tuple(
        FeatureRequest.model_validate({"feature": f"f{index}", "brief": "b", **fields})
        for index, fields in enumerate(features)
    )
    tenants = {name: Tenant(weight=weight) for name, weight in (weights or {}).items()}
    request = ProgramRequest(name="p", features=requests, max_concurrent=places, tenants=tenants)
    return ProgramState(request, places)


def result(feature: Feature, status: str = "completed", cost: str | None = "0.1", reason: str = "r") -> PipelineResult:
    """What its pipeline returned."""
    return PipelineResult.model_validate(
        {
            "feature": feature.request.feature,
            "status": status,
            "reason": reason,
            "stages": [],
            "tokens": 10,
            "cost_usd": cost,
            "run_key": "x",
        }
    )


def working(state: ProgramState) -> list[Feature]:
    """The features that have a place."""
    return [feature for feature in state.features if feature.state is FeatureState.RUNNING]


@given(
    st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(1, 5)), min_size=1, max_size=40),
    st.integers(1, 8),
    st.data(),
)
def test_every_feature_gets_its_turn_within_the_bound_and_the_priorities(
    wanted: list[tuple[str, int]], places: int, data: st.DataObject
) -> None:
    """Places are never left empty, never exceeded, and nobody passes a feature of a higher priority."""
    state = program(*({"tenant": tenant, "priority": priority} for tenant, priority in wanted), places=places)
    begun: list[Feature] = []
    while len(begun) < len(wanted) or working(state):
        while (chosen := state.choose()) is not None:
            pending = [feature for feature in state.features if feature.state is FeatureState.PENDING]
            assert chosen.request.priority == min(feature.request.priority for feature in pending)
            state.start(chosen)
            begun.append(chosen)
        assert len(working(state)) == min(places, len(wanted) - len(begun) + len(working(state)))
        ending = data.draw(st.sampled_from(working(state)))
        state.finish(ending, result(ending))
    assert len({feature.index for feature in begun}) == len(wanted)


@settings(deadline=None)  # an example of 18 ms took 400 on a busy machine
@given(st.integers(1, 6), st.integers(2, 3), st.data())
def test_tenants_with_features_left_share_the_places_equally(places: int, tenants: int, data: st.DataObject) -> None:
    """Nobody has two places more than another one who still has something to do."""
    state = program(*({"tenant": tenant} for tenant in TENANTS[:tenants] for _ in range(12)), places=places)
    while state.has_pending:
        while (chosen := state.choose()) is not None:
            state.start(chosen)
            left = Counter(item.request.tenant for item in state.features if item.state is FeatureState.PENDING)
            at_work = Counter(item.request.tenant for item in working(state))
            assert all(at_work[chosen.request.tenant] <= at_work[tenant] + 1 for tenant in left)
        ending = data.draw(st.sampled_from(working(state)))
        state.finish(ending, result(ending))


def test_shares_follow_the_weights() -> None:
    """3 to 1, of the places and of the starts."""
    features = [{"tenant": tenant} for tenant in ("a", "b") for _ in range(30)]
    state = program(*features, places=8, weights={"a": 3})
    while (chosen := state.choose()) is not None:
        state.start(chosen)
    assert Counter(item.request.tenant for item in working(state)) == {"a": 6, "b": 2}
    one_place = program(*features, places=1, weights={"a": 3})
    begun = []
    for _ in range(20):
        chosen = one_place.choose()
        assert chosen is not None
        one_place.start(chosen)
        begun.append(chosen.request.tenant)
        one_place.finish(chosen, result(chosen))
    assert Counter(begun) == {"a": 15, "b": 5}


def test_a_feature_that_was_blocked_is_not_counted_as_a_start() -> None:
    """Its tenant has got nothing by it."""
    state = program({"tenant": "a"}, {"tenant": "a"}, {"tenant": "b"}, places=1)
    first = state.choose()
    assert first is not None
    state.start(first)
    state.end(first, FeatureState.BLOCKED, "already runs as feature/f0")
    chosen = state.choose()
    assert chosen is not None
    assert chosen.request.feature == "f1"


def test_what_went_through_and_what_did_not_is_summed_up() -> None:
    """An unknown price makes the sum unknown; reasons are one short line."""
    state = program({}, {}, {}, places=3)
    first, second, third = state.features
    for feature in state.features:
        state.start(feature)
    state.finish(first, result(first, cost="0.25"))
    state.finish(second, result(second, "rejected", cost="0.5", reason="no\n\n  good " + "x" * 500))
    state.end(third, FeatureState.FAILED, "boom")
    summary = state.result()
    assert (summary.tokens, summary.cost_usd) == (20, Decimal("0.75"))
    assert summary.counts == {"completed": 1, "rejected": 1, "failed": 1}
    reason = summary.features[1].reason
    assert reason.startswith("no good xx")
    assert (len(reason), reason[-1]) == (MAX_REASON_CHARACTERS, "…")
    state.finish(first, result(first, cost=None))
    assert state.result().cost_usd is None


def test_the_table_keeps_its_columns_whatever_a_reason_says() -> None:
    """Reasons come from people and models."""
    state = program({"priority": 2, "tenant": "a"})
    state.start(state.features[0])
    state.note_waiting(FeatureWaits(workflow_id="feature/f0", stage="qa", reason="a | b"))
    assert "| f0 | a | 2 | waiting | qa: a \\| b |" in state.details()


def test_only_what_says_something_is_sent() -> None:
    """500 lines of a result have to be short."""
    state = program({}, {"tenant": "a", "priority": 1})
    lines = [line.model_dump_json(exclude_unset=True) for line in state.progress().features]
    assert lines[0] == '{"feature":"f0","state":"pending"}'
    assert lines[1] == '{"feature":"f1","state":"pending","tenant":"a","priority":1}'

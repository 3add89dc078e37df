"""Has the judges that a scenario names speak of a recorded run; the runner calls it when a run has ended.

Each judge is asked by the criteria that some threshold wants of it, and by no others: a model is paid for each.
"""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

from coatcheck.bench.judges.checks import Limits
from coatcheck.bench.judges.composing import Surroundings, UnknownJudgeError, open_judges, who_judges
from coatcheck.bench.judges.questions import AskedJudge
from coatcheck.bench.judging import JudgeCase
from coatcheck.bench.panel import Report, hear
from coatcheck.bench.recording import Recording
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.event_reports import report_events
from schemas.config import Config
from schemas.events import JUDGE
from schemas.scenario import Scenario


@dataclass(frozen=True)
class ScenarioJudges:
    """The judges of a configuration, for scenarios.

    Args:
        config: The team's.
        surroundings: Keys and the like.
        client: As `judge`.
    """

    config: Config
    surroundings: Surroundings
    client: NatsClient

    def wanted(self, scenario: Scenario) -> dict[str, list[str]]:
        """Judge → criteria.

        Raises:
            UnknownJudgeError: nobody judges by a criterion that the scenario wants.
        """
        wanted: dict[str, dict[str, None]] = {}
        for threshold in scenario.expect.judges:
            names = [threshold.judge] if threshold.judge else who_judges(self.config, threshold.criterion)
            if not names:
                raise UnknownJudgeError(f"{scenario.id}: no judge has the criterion {threshold.criterion!r}")
            for name in names:
                wanted.setdefault(name, {})[threshold.criterion] = None
        return {name: list(criteria) for name, criteria in wanted.items()}

    async def __call__(self, recording: Recording, scenario: Scenario) -> None:
        """Judge; every opinion is an event of the run when this returns, a failure too.

        Raises:
            UnknownJudgeError: as `wanted`, or a judge of that name does not know its criterion.
            CoatcheckError: a key is not set, or phoenix-evals is not installed.
            DependencyDownError: NATS or the core worker does not answer.
        """
        budget = scenario.expect.budget
        usd = None if budget.usd is None else Decimal(str(budget.usd))
        limits = None if (budget.tokens, usd) == (None, None) else Limits(max_tokens=budget.tokens, max_cost_usd=usd)
        case = JudgeCase(
            run_key=recording.run_key,
            feature=scenario.input.request.feature,
            brief=scenario.input.request.brief,
            scenario=scenario.id,
            events=recording.events,
            fetch=DeliverableService(self.client, streams=self.config.streams).fetch,
        )
        report: Report = partial(report_events, self.client, JUDGE)
        async with AsyncExitStack() as stack:
            judges: list[AskedJudge] = []
            for name, criteria in self.wanted(scenario).items():
                opening = open_judges(self.config, [name], self.surroundings, criteria=criteria, limits=limits)
                judges += await stack.enter_async_context(opening)
            await hear(case, judges, report)

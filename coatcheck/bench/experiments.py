"""A benchmark's result as experiments in Phoenix: a dataset per scenario, an experiment per result, a run per run.

Each run is linked to its trace, and scored by whether anything is wrong with it and by its judges. Sent again, a result
finds its dataset, its experiment and its runs, and changes nothing but what is missing. A report knows a scenario by
its id alone, so scenarios of one's own are told by their ids.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self

import httpx2

from coatcheck.bench.results import BenchReport, RunReport
from coatcheck.errors import CoatcheckError, TelemetryUnavailableError
from coatcheck.telemetry.privacy import Privacy
from coatcheck.telemetry.scores import ANNOTATORS
from schemas.event_payloads import Scored
from schemas.tracing import trace_id

TIMEOUT_SECONDS: Final = 30.0
_EXISTS: Final = 409


class Experiments:
    """One Phoenix; an async context manager.

    Args:
        url: Of Phoenix.
        api_key: Of a system user; only where Phoenix asks for one.
        privacy: How much of what judges and checks say is sent.
    """

    def __init__(self, url: str, *, api_key: str | None, privacy: Privacy) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx2.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False)
        self._privacy = privacy

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def publish(self, report: BenchReport) -> int:
        """Send a result; returns how many of its runs Phoenix did not have yet.

        Raises:
            TelemetryUnavailableError: Phoenix does not answer; send it again.
            CoatcheckError: Phoenix refuses.
        """
        new = 0
        for scenario in dict.fromkeys(run.scenario for run in report.runs):
            runs = [run for run in report.runs if run.scenario == scenario]
            dataset, example = await self._dataset(scenario, runs[0].title)
            experiment = await self._experiment(dataset, report, runs)
            new += sum([await self._run(experiment, example, run, report) for run in runs])
        return new

    async def _dataset(self, scenario: str, title: str) -> tuple[str, str]:
        """The ids of the scenario's dataset and of its one example."""
        given = {
            "action": "update",
            "name": f"coatcheck {scenario}",
            "description": title,
            "inputs": [{"scenario": scenario}],
            "outputs": [{"result": "good"}],
            "metadata": [{"title": title}],
            "example_ids": [scenario],
        }
        dataset = (await self._ask("POST", "/v1/datasets/upload?sync=true", given))["dataset_id"]
        examples = (await self._ask("GET", f"/v1/datasets/{dataset}/examples"))["examples"]
        return dataset, examples[0]["node_id"]

    async def _experiment(self, dataset: str, report: BenchReport, runs: Sequence[RunReport]) -> str:
        name = f"bench {report.started_at:%Y-%m-%d %H:%M:%S.%f}"
        known = await self._ask("GET", f"/v1/datasets/{dataset}/experiments")
        for experiment in known:
            if experiment["name"] == name:
                return str(experiment["id"])
        given = {"name": name, "repetitions": max(run.repeat for run in runs)}
        return str((await self._ask("POST", f"/v1/datasets/{dataset}/experiments", given))["id"])

    async def _run(self, experiment: str, example: str, run: RunReport, report: BenchReport) -> bool:
        """Log one run with its scores; `False` when Phoenix has it already."""
        begun = run.started_at or report.started_at
        times = {"start_time": begun.isoformat(), "end_time": (begun + timedelta(seconds=run.seconds)).isoformat()}
        said = run.model_dump(mode="json", include={"run_key", "status", "seconds", "events", "tokens", "usd", "calls"})
        given = {
            "dataset_example_id": example,
            "output": said,
            "repetition_number": run.repeat,
            "trace_id": trace_id(run.run_key),
            **times,
        }
        logged = await self._ask("POST", f"/v1/experiments/{experiment}/runs", given, is_known=True)
        key = logged["id"] if logged is not None else await self._known_run(experiment, run.repeat)
        for score in (self._result(run), *(self._score(item) for item in run.scores)):
            await self._ask("POST", "/v1/experiment_evaluations", {**score, "experiment_run_id": key, **times})
        return logged is not None

    async def _known_run(self, experiment: str, repeat: int) -> str:
        """The id of a run that is logged; its scores may not have been sent any more."""
        known = await self._ask("GET", f"/v1/experiments/{experiment}/runs")
        return next(str(run["id"]) for run in known if run["repetition_number"] == repeat)

    def _result(self, run: RunReport) -> dict[str, Any]:
        wrong = self._privacy.content("\n".join(map(str, run.violations)))
        result = {"label": "good" if run.passed else "wrong", "score": float(run.passed), "explanation": wrong}
        return {"name": "scenario", "annotator_kind": "CODE", "result": result}

    def _score(self, said: Scored) -> dict[str, Any]:
        explanation = self._privacy.content(said.explanation)
        result = {"label": said.label or None, "score": said.score, "explanation": explanation}
        name = f"{said.criterion} ({said.judge})" if said.stage is None else f"{said.criterion} of {said.stage}"
        return {"name": name, "annotator_kind": ANNOTATORS[said.kind], "result": result}

    async def _ask(
        self, method: str, path: str, given: Mapping[str, Any] | None = None, *, is_known: bool = False
    ) -> Any:
        """The data of an answer; with `is_known`, `None` when what is given is there already."""
        try:
            answer = await self._client.request(method, path, json=given)
        except httpx2.HTTPError as error:
            raise TelemetryUnavailableError(f"Phoenix does not answer: {error or type(error).__name__}") from error
        if is_known and answer.status_code == _EXISTS:
            return None
        if answer.is_server_error:
            raise TelemetryUnavailableError(f"Phoenix fails: HTTP {answer.status_code} for {path}")
        if answer.is_client_error:
            raise CoatcheckError(f"Phoenix refuses {path}: HTTP {answer.status_code} {answer.text[:200]}")
        return answer.json()["data"]

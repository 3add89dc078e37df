"""What the workers of a stack tell Prometheus, read by Prometheus' own client library."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from coatcheck.localstack.status import StackStatus

Series = tuple[str, tuple[tuple[str, str], ...]]
"""Name and labels."""


@dataclass
class Scrape:
    """One look at every worker; each sample also has its worker and job as labels, as Prometheus adds them."""

    values: dict[Series, float] = field(default_factory=dict)
    counts: set[str] = field(default_factory=set)
    """Names of samples that only grow."""

    def names(self) -> set[str]:
        """Of all samples."""
        return {name for name, _ in self.values}

    def labels(self) -> Mapping[str, set[str]]:
        """Name → every label that any of its samples has."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for name, labels in self.values:
            found[name] |= {key for key, _ in labels}
        return found

    def total(self, name: str, **wanted: str) -> float:
        """Sum of the samples that have these labels."""
        return sum(value for labels, value in self.of(name) if wanted.items() <= labels.items())

    def of(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """The samples of one name."""
        yield from ((dict(labels), value) for (known, labels), value in self.values.items() if known == name)


def scrape(status: StackStatus) -> Scrape:
    """Look at every worker."""
    found = Scrape()
    for worker in status.workers:
        assert worker.metrics_url is not None
        with urlopen(worker.metrics_url, timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = {**sample.labels, "job": "coatcheck", "worker": worker.name}
                series = (sample.name, tuple(sorted(labels.items())))
                assert series not in found.values, f"twice: {series}"
                found.values[series] = sample.value
                if family.type in {"counter", "histogram"}:
                    found.counts.add(sample.name)
        found.values["up", (("job", "coatcheck"), ("worker", worker.name))] = 1
    return found

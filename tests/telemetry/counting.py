"""What a meter has counted."""

from collections.abc import Mapping

from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint


def counted(reader: InMemoryMetricReader, name: str, attributes: Mapping[str, str]) -> int | float:
    """The sum over the points of a metric that have these attributes."""
    found = reader.get_metrics_data()
    if found is None:
        return 0
    points = [
        point
        for resource in found.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
        if metric.name == name and isinstance(point, NumberDataPoint)
    ]
    return sum(point.value for point in points if attributes.items() <= dict(point.attributes or {}).items())

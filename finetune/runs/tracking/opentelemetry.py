"""OpenTelemetry: each metric as a gauge, over OTLP/HTTP to a collector, or to a file of the run folder.

The names are those of metrics.jsonl; `step` is a gauge of its own. Texts are no metrics, and aren't sent. See
https://opentelemetry.io/docs/specs/otlp/ and, for the file,
https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.disk import append_own
from finetune import __version__
from finetune.recipe.schema.tracking import TrackingSection
from finetune.runs.folder import TELEMETRY
from finetune.runs.tracking.base import GeneratedSample, Tracker
from finetune.runs.tracking.queued import QueuedTracker

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricsData

EXPORTER = "opentelemetry.exporter.otlp.proto.http.metric_exporter"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class OpenTelemetryTracker:
    """Gauges of one run; each log is one export, of what was logged alone."""

    def __init__(self, section: TrackingSection, run_id: str, folder: Path):
        self.resource, self.attributes = _resource(section, run_id), {"run": run_id}
        self.exporter: _Lines | MetricExporter
        if any(map(os.environ.get, ENDPOINTS)):
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

            self.exporter = OTLPMetricExporter()
        else:
            self.exporter = _Lines(folder / TELEMETRY)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Send a point of each metric. Raises ConnectionError where nobody took them."""
        from opentelemetry.sdk.metrics.export import MetricExportResult

        with _in_place_of_printing() as said:
            result = self.exporter.export(self._points(metrics | {"step": float(step)}))
        if result != MetricExportResult.SUCCESS:
            raise ConnectionError(f"{' or '.join(ENDPOINTS)} takes no metrics: {' '.join(said[:1])}")

    def _points(self, metrics: dict[str, float]) -> "MetricsData":
        # Not by the SDK's own gauges: they send each value again with every export.
        from opentelemetry.sdk.metrics.export import (
            Gauge,
            Metric,
            MetricsData,
            NumberDataPoint,
            ResourceMetrics,
            ScopeMetrics,
        )
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        now = time.time_ns()
        gauges = [
            Metric(name, "", "", Gauge([NumberDataPoint(self.attributes, 0, now, value)]))
            for name, value in metrics.items()
        ]
        scope = ScopeMetrics(InstrumentationScope("finetune", __version__), gauges, "")
        return MetricsData([ResourceMetrics(self.resource, [scope], "")])

    def log_samples(self, samples: Sequence[GeneratedSample], step: int) -> None:
        """Nothing: samples.jsonl has them."""

    def upload(self, adapter: Path) -> None:
        """Nothing: the rules of the recipe refuse it."""

    def finish(self, status: str) -> None:
        """Nothing is outstanding."""
        self.exporter.shutdown()


@contextmanager
def _in_place_of_printing() -> Iterator[list[str]]:
    """What the exporter would say, a line for each try: it is the reason of one message of ours."""
    said, thread = list[str](), threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread == thread:
            said.append(record.getMessage())
        return record.thread != thread

    logger = logging.getLogger(EXPORTER)
    logger.addFilter(keep)
    try:
        yield said
    finally:
        logger.removeFilter(keep)


class _Lines:
    """A file with a JSON object for each export."""

    def __init__(self, path: Path):
        self.file = append_own(path)

    def export(self, data: "MetricsData") -> Any:
        """Write one line."""
        import json

        from google.protobuf.json_format import MessageToDict
        from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
        from opentelemetry.sdk.metrics.export import MetricExportResult

        self.file.write(json.dumps(MessageToDict(encode_metrics(data))) + "\n")
        self.file.flush()
        return MetricExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        self.file.close()


def _resource(section: TrackingSection, run_id: str) -> Any:
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    ours = {"service.name": "finetune", "finetune.project": section.project, "finetune.run": run_id}
    if section.group is not None:
        ours["finetune.group"] = section.group
    return Resource.create(ours | dict(OTELResourceDetector().detect().attributes))


def start_opentelemetry(section: TrackingSection, run_id: str, folder: Path) -> Tracker:
    """OpenTelemetry in a thread of its own. Raises what keeps it from starting."""
    return QueuedTracker(lambda: OpenTelemetryTracker(section, run_id, folder))
